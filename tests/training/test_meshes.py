"""The central test: every mesh gives the losses and the gradients of one device."""

import functools
from itertools import combinations, product

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import Setup, assert_gradients_equal, make_batch, make_config, random_params

from jaxscale.blueprint.sequence import order
from jaxscale.training.step import gradients

AXES = ("data", "fsdp", "context", "tensor")
SIZES = (1, 2, 4, 8)
FACTORISATIONS = [(d, f, 1, 8 // d // f) for d, f in product(SIZES, SIZES) if 8 % (d * f) == 0]
SPLIT = [(d, f, c, 8 // d // f // c) for d, f, c in product(SIZES, SIZES, SIZES[1:]) if 8 % (d * f * c) == 0]
# batch 16, so that two microbatches still fill data * fsdp = 8
PLAIN = {}
ALL_AT_ONCE = {
    "step": {"microbatches": 2, "remat": {"q": "save", "mlp_out": "save"}},
    "loss": {"chunk": 16, "z_loss": 1e-3},
}
ALONE = {
    "accumulation": {"step": {"microbatches": 2}},
    "full remat": {"step": {"remat": "full"}},
    "dots remat": {"step": {"remat": "dots"}},
    "offloaded activations": {"step": {"remat": {"attended": "offload", "layer_in": "offload"}}},
    "chunked loss": {"loss": {"chunk": 8}},
    "unrolled layers": {"step": {"unroll_layers": True}},
}


def loss_and_gradients(config, params, batch=None):
    """Loss and every gradient of a batch, on the host, from the same parameters on any mesh."""
    setup = Setup(config, batch=batch)
    with setup.context():
        layout = jax.tree.map(lambda x: x.sharding, setup.program.abstract.params)
        placed = jax.device_put(params, layout)
        grad = jax.jit(functools.partial(gradients, config, setup.program.merge))
        return jax.device_get(grad(placed, setup.batch, jax.random.key(0))[::-1])


@functools.cache
def reference(z_loss: float):
    """One device, no accumulation, no remat, the loss in one piece: parameters and what they give."""
    config = make_config(data={"batch_size": 16}, loss={"z_loss": z_loss})
    params = random_params(config)
    return params, loss_and_gradients(config, params)


def assert_same(got, wanted):
    (metrics, grads), (wanted_metrics, wanted_grads) = got, wanted
    assert metrics["tokens"] == wanted_metrics["tokens"]
    np.testing.assert_allclose(metrics["loss"], wanted_metrics["loss"], rtol=1e-5)
    assert_gradients_equal(grads, wanted_grads)


def check(mesh, sections):
    config = make_config(mesh, data={"batch_size": 16}, **sections)
    params, wanted = reference(config.loss.z_loss)
    assert_same(loss_and_gradients(config, params), wanted)


@pytest.mark.parametrize(("data", "fsdp", "context", "tensor"), FACTORISATIONS + SPLIT)
def test_every_factorisation_equals_one_device(data, fsdp, context, tensor):
    check({"data": data, "fsdp": fsdp, "context": context, "tensor": tensor}, ALL_AT_ONCE)


@pytest.mark.parametrize("mesh", [{axis: 8} for axis in AXES] + [dict.fromkeys(m, 2) for m in combinations(AXES, 3)],
                         ids=str)  # fmt: skip
def test_a_step_in_one_piece_equals_one_device(mesh):
    """Each axis alone and every three of them: two are met as two of three."""
    check(mesh, PLAIN)


def test_expert_is_fsdp_to_a_model_without_experts():
    check({"fsdp": 2, "expert": 2, "tensor": 2}, PLAIN)


@pytest.mark.parametrize("mesh", [{"context": 8}, {"fsdp": 2, "context": 2, "tensor": 2}], ids=str)
def test_a_ring_equals_one_device(mesh):
    check(mesh, {"step": {"context_attention": "ring", "remat": "full"}, "loss": {"chunk": 16}})


@pytest.mark.parametrize("sections", [PLAIN, ALL_AT_ONCE], ids=["plain", "accumulation, remat, chunked loss"])
def test_a_device_whose_tokens_all_weigh_nothing_adds_nothing(sections):
    """All tokens of device 0 along context are padding, and half of those of device 1: `order` says which."""
    config = make_config({"context": 4, "tensor": 2}, data={"batch_size": 16}, **sections)
    batch = make_batch(config)
    batch["weights"][:, order(config.data.seq_len, 4)[: config.data.seq_len * 3 // 8]] = 0
    alone = make_config(data={"batch_size": 16}, loss={"z_loss": config.loss.z_loss})
    params = random_params(alone)
    assert_same(loss_and_gradients(config, params, batch), loss_and_gradients(alone, params, batch))


@pytest.mark.parametrize("mesh", [{"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=["one device", "2x2x2"])
@pytest.mark.parametrize("sections", ALONE.values(), ids=ALONE)
def test_each_way_to_compute_the_step_equals_the_plain_one(mesh, sections):
    check(mesh, sections)


def test_training_on_a_mesh_follows_one_device():
    one = Setup(make_config()).steps(5)
    many = Setup(make_config({"data": 2, "fsdp": 2, "tensor": 2}, step={"microbatches": 2})).steps(5)
    np.testing.assert_allclose(many[0], one[0], rtol=1e-5)
    np.testing.assert_allclose(many[1], one[1], rtol=1e-5)


@st.composite
def runs(draw):
    """A model, a mesh that it fits, and a way to compute the step."""
    data, fsdp, context, tensor = draw(st.sampled_from(FACTORISATIONS + SPLIT))
    tensor_multiple = st.integers(1, 2).map(lambda n: n * tensor)
    kv_heads = draw(st.sampled_from([k for k in (1, 2, 3, 4, 8) if tensor % k == 0 or k % tensor == 0]))
    heads = max(tensor, kv_heads) * draw(st.integers(1, 2))
    microbatches = draw(st.sampled_from([1, 2, 3]))
    T = 16
    model = {
        "vocab_size": draw(st.integers(11, 300)), "num_layers": draw(st.integers(1, 2)),
        "embed_dim": 8 * draw(st.integers(1, 4)), "num_heads": heads, "num_kv_heads": kv_heads,
        "head_dim": draw(st.sampled_from([4, 8])), "mlp_dim": 8 * draw(tensor_multiple),
        "norm": draw(st.sampled_from(["rmsnorm", "layernorm"])), "position": draw(st.sampled_from(["rope", "learned"])),
        "max_seq_len": 16, "mlp": draw(st.sampled_from(["swiglu", "gelu"])), "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()), "qk_norm": draw(st.booleans()), "tie_embeddings": draw(st.booleans()),
        "sliding_window": draw(st.sampled_from([None, 5])), "logits_softcap": draw(st.sampled_from([None, 5.0])),
        "attention_softcap": draw(st.sampled_from([None, 5.0])), "vocab_multiple": 8, "init_std": 0.1,
    }  # fmt: skip
    step = {"microbatches": microbatches, "remat": draw(st.sampled_from(["none", "full", "dots"])),
            "unroll_layers": draw(st.booleans())}  # fmt: skip
    shape = {"batch_size": data * fsdp * microbatches * draw(st.integers(1, 2)), "seq_len": T}
    loss = {"chunk": draw(st.sampled_from([None, 8])), "z_loss": draw(st.sampled_from([0.0, 1e-2]))}
    return {"data": data, "fsdp": fsdp, "context": context, "tensor": tensor}, {
        "model": model,
        "step": step,
        "data": shape,
        "loss": loss,
    }


@pytest.mark.slow
@settings(
    max_examples=8,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(runs())
def test_random_models_and_meshes_equal_one_device(run):
    mesh, sections = run
    batch = make_batch(make_config(**sections), padding=0.4)
    one = sections | {"step": {"microbatches": 1, "remat": "none"}, "loss": sections["loss"] | {"chunk": None}}
    alone = make_config(**one)
    params = random_params(alone)
    assert_same(
        loss_and_gradients(make_config(mesh, **sections), params, batch), loss_and_gradients(alone, params, batch)
    )
