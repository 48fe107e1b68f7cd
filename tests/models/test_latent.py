"""Multi-head latent attention: every mesh gives one device's losses and gradients, and what is refused is said."""

import functools

import jax
import numpy as np
import pytest
from support import Setup, assert_gradients_equal, make_config, random_params

from jaxscale import config as cfg
from jaxscale.models.attention import Attention, attend, choose
from jaxscale.predict import costs
from jaxscale.training.step import gradients

SIZES = {"kv_rank": 16, "q_rank": 24, "nope_head_dim": 16, "rope_head_dim": 8, "value_head_dim": 12}
MODEL = {"num_kv_heads": 8, "head_dim": 24, "num_layers": 2, "latent": SIZES}
MOE = {"num_experts": 8, "top_k": 2, "mlp_dim": 32, "shared_mlp_dim": 16, "score": "sigmoid"}


def loss_and_gradients(config, params):
    setup = Setup(config)
    with setup.context():
        placed = jax.device_put(params, jax.tree.map(lambda x: x.sharding, setup.program.abstract.params))
        grad = jax.jit(functools.partial(gradients, config, setup.program.merge))
        return jax.device_get(grad(placed, setup.batch, jax.random.key(0))[::-1])


def config_of(mesh, model=(), **sections):
    return make_config(mesh, model=MODEL | dict(model), data={"batch_size": 16}, **sections)


@functools.cache
def reference(model: tuple):
    config = config_of({}, model)
    params = random_params(config)
    return params, loss_and_gradients(config, params)


REMAT = {"remat": {"kv_latent": "save", "q_latent": "save", "attended": "save"}}
MESHES = [
    ({"data": 8}, {}),
    ({"fsdp": 8}, {"remat": "full"}),
    ({"data": 2, "fsdp": 2, "tensor": 2}, {"remat": "full"}),
    ({"data": 2, "tensor": 4}, {}),
    ({"fsdp": 2, "context": 2, "tensor": 2}, REMAT),
    ({"context": 4, "data": 2}, {"context_attention": "ring"}),
    ({"fsdp": 2, "tensor": 2, "data": 2}, {"microbatches": 2, "remat": "dots"}),
    ({"pipeline": 2, "tensor": 2, "fsdp": 2}, {"microbatches": 2, "remat": "full"}),
    ({"pipeline": 2, "context": 2, "fsdp": 2}, {"microbatches": 2, "remat": "full"}),
    ({"expert": 2, "fsdp": 2, "tensor": 2}, {}),
]


@pytest.mark.parametrize(("mesh", "step"), MESHES, ids=str)
def test_every_mesh_equals_one_device(mesh, step):
    params, (wanted_metrics, wanted) = reference(())
    metrics, grads = loss_and_gradients(config_of(mesh, step=step), params)
    np.testing.assert_allclose(metrics["loss"], wanted_metrics["loss"], rtol=1e-5)
    assert_gradients_equal(grads, wanted)


@pytest.mark.parametrize(
    "mesh", [{"expert": 2, "fsdp": 2, "tensor": 2}, {"pipeline": 2, "expert": 2, "fsdp": 2}], ids=str
)
def test_with_experts_too(mesh):
    model = {"moe": MOE}
    params = random_params(config_of({}, model))
    step = {"microbatches": 2, "remat": "full"} if "pipeline" in mesh else {}
    wanted_metrics, wanted = loss_and_gradients(config_of({}, model, step=step), params)
    metrics, grads = loss_and_gradients(config_of(mesh, model, step=step), params)
    np.testing.assert_allclose(metrics["loss"], wanted_metrics["loss"], rtol=1e-5)
    assert_gradients_equal(grads, wanted)


def test_values_may_be_of_another_size_than_keys():
    """One query sees one key: its result is that key's value, whole."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 3, 2, h)).astype(np.float32) for h in (6, 6, 4))
    out = attend(q, k, v, np.eye(3, dtype=bool)[None], softcap=None)
    np.testing.assert_allclose(out, v, rtol=1e-6)


def test_cudnn_refuses_such_heads_in_one_line():
    q = jax.ShapeDtypeStruct((1, 128, 8, 192), "bfloat16")
    with pytest.raises(ValueError, match=r"^step.attention=cudnn: [^\n]*; use auto or xla$"):
        choose(Attention(implementation="cudnn"), q)


def test_flops_count_keys_and_values_by_their_own_sizes():
    config = config_of({})
    matrices = 6 * costs.matmul_parameters(config.model)
    found = costs.train_flops_per_token(config.model, 64, convention="palm")
    assert found == matrices + 6 * 2 * 8 * (24 + 12) * 64


WRONG = [
    ({"head_dim": 32}, "head_dim 32 is not latent.nope_head_dim + latent.rope_head_dim (24); leave head_dim out"),
    ({"num_kv_heads": 4}, "num_kv_heads 4: with latent every query head has its own keys; leave num_kv_heads out"),
    ({"head_dim": 25, "latent": SIZES | {"rope_head_dim": 9}}, "latent.rope_head_dim 9 is odd"),
    ({"position": "none"}, "latent: the keys of every layer have rotary positions; set position=rope"),
    ({"qk_norm": True}, "latent: it has no qk_norm yet; remove one of the two"),
    ({"attention_bias": "qkv"}, "latent: it has no attention_bias yet"),
    ({"lora": {"rank": 2}}, "latent: it has no lora yet"),
]


@pytest.mark.parametrize(("model", "says"), WRONG, ids=[str(m) for m, _ in WRONG])
def test_what_a_latent_model_has_not_is_refused(model, says):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        config_of({}, model)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("model", "name", "says"),
    [
        (MODEL, "k", "but kv, kv_latent, q_latent"), ({}, "kv", "but q, k, v"),
        (MODEL | {"latent": SIZES | {"q_rank": None}}, "q_latent", "but kv, kv_latent"),
    ],
)  # fmt: skip
def test_remat_names_what_is_there(model, name, says):
    with pytest.raises(ValueError, match=rf"step.remat.{name}: the model does not have it, {says}; remove it"):
        make_config({}, model=model, step={"remat": {name: "save"}})


def test_the_cache_holds_latents():
    config = config_of({})
    setup = Setup(config)
    with setup.context():
        cache = setup.program.merge(random_params(config)).empty_cache(2, 10)
    assert {name: x.shape for name, x in cache.items()} == {"kv": (2, 2, 10, 16), "rope": (2, 2, 10, 8)}
    assert isinstance(config.model.latent, cfg.Latent)
