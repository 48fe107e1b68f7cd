"""Attention's three ways against plain numpy: masks, documents, windows, grouped heads, soft caps."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import Setup, make_config

from jaxscale.models import attention as module
from jaxscale.models.attention import Attention, attention, choose, splash_attention, xla_attention
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.sharding import on_mesh

RNG = np.random.default_rng(0)


def numbers(B, T, N, K, H):
    return [RNG.normal(size=(B, T, n, H)).astype(np.float32) for n in (N, K, K)]


def by_hand(q, k, v, segments, how):
    """Loops over queries and keys, in float64."""
    B, T, N, H = q.shape
    out = np.zeros_like(q, dtype=np.float64)
    for b in range(B):
        for n in range(N):
            kv = n // (N // k.shape[2])
            for t in range(T):
                seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]
                        and (how.sliding_window is None or t - s < how.sliding_window)]  # fmt: skip
                scores = k[b, seen, kv].astype(np.float64) @ q[b, t, n] / H**0.5
                if how.softcap:
                    scores = how.softcap * np.tanh(scores / how.softcap)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = weights / weights.sum() @ v[b, seen, kv]
    return out


@pytest.mark.parametrize("T", [9, 64, 150], ids=["one block", "a whole block", "a part of a block"])
@pytest.mark.parametrize(
    "how", [Attention(), Attention(sliding_window=5), Attention(sliding_window=70, softcap=2.0)], ids=str
)
def test_the_reference_is_attention_by_its_definition(T, how):
    q, k, v = numbers(2, T, 4, 2, 8)
    segments = np.sort(RNG.integers(1, 4, (2, T)), axis=1)
    got = xla_attention(*map(jnp.asarray, (q, k, v, segments)), how=how)
    np.testing.assert_allclose(got, by_hand(q, k, v, segments, how), rtol=2e-5, atol=2e-5)
    alone = np.ones_like(segments)
    got = xla_attention(*map(jnp.asarray, (q, k, v)), None, how=how)
    np.testing.assert_allclose(got, by_hand(q, k, v, alone, how), rtol=2e-5, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", [Attention(), Attention(sliding_window=100), Attention(softcap=2.0)], ids=str)
@pytest.mark.parametrize("documents", [False, True])
def test_splash_equals_the_reference(how, documents):
    """The TPU kernel, run by Pallas' interpreter."""
    q, k, v = map(jnp.asarray, numbers(1, 256, 2, 1, 128))
    segments = jnp.asarray(np.sort(RNG.integers(1, 4, (1, 256)), axis=1), jnp.int32) if documents else None
    got = splash_attention(q, k, v, segments, how=how, interpret=True)
    np.testing.assert_allclose(got, xla_attention(q, k, v, segments, how=how), rtol=2e-3, atol=2e-3)


def test_splash_lowers_for_a_tpu():
    q, k, v = (jax.ShapeDtypeStruct((1, 256, n, 128), jnp.bfloat16) for n in (2, 1, 1))

    def loss(q, k, v):
        return splash_attention(q, k, v, None, how=Attention()).astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, v).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") >= 2  # forward and backward kernels


def test_auto_takes_what_this_platform_can_run_and_the_impossible_is_refused():
    q = jnp.zeros((1, 8, 2, 8))
    with on_mesh(make_mesh(data=8)):
        assert choose(Attention(), q) == "xla"
        with pytest.raises(
            ValueError, match=r"step\.attention=cudnn: it needs an NVIDIA GPU and this is cpu; use auto or xla"
        ):
            choose(Attention(implementation="cudnn"), q)
        with pytest.raises(ValueError, match="splash: it needs a TPU"):
            choose(Attention(implementation="splash"), q)


@pytest.mark.parametrize(("capability", "takes"), [("7.0", "xla"), ("7.5", "xla"), ("gfx942", "xla"), ("8.0", "cudnn"),
                                                   ("8.9", "cudnn"), ("10.3", "cudnn"), ("12.0", "cudnn")])  # fmt: skip
def test_auto_takes_cudnn_only_on_gpus_that_have_its_kernel(monkeypatch, capability, takes):
    """A T4 or V100, and an AMD GPU, which JAX calls gpu too, have the reference."""
    device = SimpleNamespace(platform="gpu", compute_capability=capability)
    for name in ("models.attention.device", "parallel.sharding.device"):
        monkeypatch.setattr(f"jaxscale.{name}", lambda: device)
    q = jax.ShapeDtypeStruct((1, 8, 2, 64), jnp.bfloat16)
    assert choose(Attention(), q) == takes
    if takes == "xla":
        with pytest.raises(ValueError, match=f"compute capability 8.0 .Ampere. or newer, not {capability}; use auto"):
            choose(Attention(implementation="cudnn"), q)


@pytest.mark.parametrize(("kind", "takes"), [("TPU v2", "xla"), ("TPU v3", "xla"), ("TPU v4", "splash"),
                                             ("TPU v5 lite", "splash")])  # fmt: skip
def test_auto_takes_splash_only_on_tpus_that_compile_it(monkeypatch, kind, takes):
    """libtpu, for a TPU v3: Mosaic failed to compile TPU kernel: Unsupported matmul RHS type, bf16."""
    device = SimpleNamespace(platform="tpu", device_kind=kind)
    for name in ("models.attention.device", "parallel.sharding.device"):
        monkeypatch.setattr(f"jaxscale.{name}", lambda: device)
    assert choose(Attention(), jax.ShapeDtypeStruct((1, 128, 2, 64), jnp.bfloat16)) == takes


def test_heads_split_over_tensor_send_nothing():
    with on_mesh(make_mesh(data=2, tensor=4)):
        q, k, v = (jnp.asarray(x) for x in numbers(2, 16, 8, 4, 8))
        how = Attention(implementation="xla")
        split = [jax.device_put(x, jax.P("data", None, "tensor", None)) for x in (q, k, v)]
        run = jax.jit(lambda q, k, v: attention(q, k, v, None, how))
        got = run(*split)
        assert "replica_groups" not in run.lower(*split).compile().as_text()
    np.testing.assert_allclose(got, xla_attention(q, k, v, None, how=how), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_packed_documents_are_as_if_each_were_alone(position):
    """A row of two documents gives each the logits that it has in a row of its own."""
    config = make_config(model={"position": position, "sliding_window": 7}, data={"batch_size": 1})
    setup = Setup(config)
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 250, 13), rng.integers(0, 250, 19)

    with setup.context():
        params = setup.program.init().params
        run = jax.jit(lambda p, tokens, **about: setup.program.merge(p)(tokens, **about))
        packed = run(
            params, jnp.asarray([np.concatenate([first, second])]),
            segments=jnp.asarray([[1] * 13 + [2] * 19]), positions=jnp.asarray([[*range(13), *range(19)]]),
        )  # fmt: skip
        alone = [run(params, jnp.asarray([text])) for text in (first, second)]
    np.testing.assert_allclose(packed[:, :13], alone[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(packed[:, 13:], alone[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["xla", "splash"])
def test_what_remat_may_keep_of_attention_is_there_once(name, monkeypatch):
    """One array of the context's size has the name, whichever order of dims the kernel has."""
    monkeypatch.setattr(module, "choose", lambda how, q: name)
    config = make_config(model={"num_kv_heads": 8, "head_dim": 128}, data={"seq_len": 128, "batch_size": 2})
    setup = Setup(config)
    with setup.context():
        tokens, params = setup.batch["tokens"][0], setup.program.abstract.params
        traced = jax.make_jaxpr(jax.grad(lambda p: setup.program.merge(p)(tokens).sum()))(params)
    kept = [e.outvars[0].aval for e in equations(traced.jaxpr) if e.params.get("name") == "attended"]
    assert [x.size for x in kept if x.ndim == 4] == [2 * 128 * 8 * 128]


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)
