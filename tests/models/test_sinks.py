"""Sinks: a score of each head for no token. Against a softmax that is written out, on every way of attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import Setup, assert_gradients_equal, make_batch, make_config, random_params

from jaxscale.kernels.blocks import KERNELS, Plain, Seen, Splash
from jaxscale.models.attention import attend
from jaxscale.models.context import block_attention
from jaxscale.training.step import gradients

B, T, N, K, H = 2, 128, 4, 2, 128
WINDOW = 40


def arrays():
    rng = np.random.default_rng(0)
    shapes = {"q": (B, T, N, H), "k": (B, T, K, H), "v": (B, T, K, H), "sinks": (N,)}
    found = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    return found | {"documents": jnp.asarray(np.sort(rng.integers(1, 3, (B, T)), axis=1), jnp.int32)}


def written_out(q, k, v, sinks, documents):
    k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
    t, s = np.arange(T)[:, None], np.arange(T)[None]
    mask = (s <= t) & (s > t - WINDOW) & (documents[:, :, None] == documents[:, None])
    weights = jnp.exp(jnp.where(mask[:, None], scores, -jnp.inf))
    total = weights.sum(-1, keepdims=True) + jnp.exp(sinks)[:, None, None]
    return jnp.einsum("bnts,bsnh->btnh", weights / total, v)


def with_gradients(run):
    x = arrays()
    documents = x.pop("documents")

    def loss(x):
        out = run(x["q"], x["k"], x["v"], x["sinks"], documents)
        return (out * jnp.cos(jnp.arange(out.size, dtype=out.dtype).reshape(out.shape))).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
    return jax.device_get((out, grads))


def by_attend(q, k, v, sinks, documents):
    t, s = np.arange(T)[:, None], np.arange(T)[None]
    mask = (s <= t) & (s > t - WINDOW) & (documents[:, :, None] == documents[:, None])
    return attend(q, k, v, mask, softcap=None, sinks_N=sinks)


def by_blocks(kernel):
    def run(q, k, v, sinks, documents):
        seen = Seen(np.arange(T, dtype=np.int32)[None])
        return block_attention(kernel, seen)(q, k, v, documents, documents, sinks)

    return run


WAYS = {"attend": by_attend, "plain": by_blocks(Plain(WINDOW, None)),
        "splash": by_blocks(Splash(WINDOW, None, interpret=True))}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_sink_takes_its_share_of_the_softmax(way):
    got, wanted = with_gradients(WAYS[way]), with_gradients(written_out)
    tolerance = 1e-5 if way != "splash" else 1e-4
    scale = {name: np.abs(x).max() for name, x in wanted[1].items()}
    np.testing.assert_allclose(got[0], wanted[0], atol=tolerance)
    for name, x in wanted[1].items():
        assert np.abs(got[1][name] - x).max() < tolerance * scale[name], name


def test_every_kernel_is_a_pair_of_blocks():
    assert set(KERNELS) == {"xla", "splash", "cudnn"}


# --- models ---------------------------------------------------------------------------------------------------

YARN = {"kind": "yarn", "factor": 4.0, "original_max_len": 16, "truncate": False, "beta_fast": 8.0}
MODELS = {
    "windows": {"sliding_window": 9},
    "mixed": {"pattern": [{"sliding_window": 9}, {}], "rope_scaling": YARN, "num_layers": 3,
              "moe": {"num_experts": 4, "top_k": 2, "mlp_dim": 32, "linear_bias": True, "mlp_bias": True,
                      "limit": 7.0}},
}  # fmt: skip
MESHES = [
    ("windows", {"context": 4, "data": 2}, {}),  # halo
    ("windows", {"fsdp": 2, "tensor": 2, "data": 2}, {"remat": "dots"}),
    ("mixed", {"context": 2, "tensor": 2, "fsdp": 2}, {}),  # gather
    ("mixed", {"context": 4, "data": 2}, {"context_attention": "ring", "remat": "full"}),
    ("mixed", {"expert": 2, "tensor": 4}, {}),  # kv heads are repeated; an expert's bias is added once
    ("mixed", {"expert": 4, "fsdp": 2}, {"expert_exchange": "gather"}),
]


@functools.cache
def start(name):
    return random_params(make_config(model=MODELS[name] | {"attention_sinks": True}))


def gradients_of(name, mesh=None, **step):
    config = make_config(mesh, model=MODELS[name] | {"attention_sinks": True}, step=step)
    setup = Setup(config, batch=make_batch(config))
    with setup.context():
        placed = jax.device_put(start(name), jax.tree.map(lambda x: x.sharding, setup.program.abstract.params))
        grad = jax.jit(functools.partial(gradients, config, setup.program.merge))
        return jax.device_get(grad(placed, setup.batch, jax.random.key(0)))


right = functools.cache(gradients_of)


@pytest.mark.parametrize(("name", "mesh", "step"), MESHES, ids=str)
def test_every_mesh_gives_the_gradients_of_one_device(name, mesh, step):
    grads, metrics = gradients_of(name, mesh, **step)
    wanted, wanted_metrics = right(name)
    np.testing.assert_allclose(metrics["loss"], wanted_metrics["loss"], rtol=1e-5)
    assert np.abs(wanted["layers"]["attention"]["sinks"]).min() > 0
    assert_gradients_equal(grads, wanted)
