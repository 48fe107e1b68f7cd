"""cuDNN's forward and backward over a part of the keys, without a GPU: what it is asked for, and what is lowered."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale import private
from jaxscale.kernels import cudnn, plain
from jaxscale.kernels.plain import visible


def normal(B, T, S, N, K, H):
    """q, k, v and the cotangent of the output."""
    rng = np.random.default_rng(0)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
    return [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]


def assert_close(got, wanted, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a = np.asarray(a, np.float32)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()))


def plain_cudnn(monkeypatch):
    """cuDNN's two private functions in plain XLA, with its own layouts and its own numbers for hidden scores."""

    def mask_of(q, k, bias, kind):
        mask = np.ones((1, q.shape[1], k.shape[1]), bool)
        if kind.name == "CAUSAL":
            mask = visible(np.arange(q.shape[1])[:, None], np.arange(k.shape[1])[None], None)[None]
        return mask if bias is None or not bias.size else mask & (bias[:, 0] == 0)

    def attention(q, k, v, *, bias, scale, mask_type, return_residual):
        assert scale == q.shape[-1] ** -0.5
        assert return_residual
        mask = mask_of(q, k, bias, mask_type)
        out, lse = plain.forward(q, k, v, mask)
        nothing = ~mask.any(-1)[..., None]
        out = jnp.where(nothing[..., None], 1.0, out).astype(q.dtype)  # the mean of some values
        return out, jnp.where(nothing, -(2.0**41), lse).swapaxes(1, 2)

    def bind(q, k, v, bias, *more, variadic_args, scale, mask_type, layout, sliding_window_length, **other):
        *empty, lse, out, dout = more
        assert all(not x.size for x in empty)
        assert len(empty) == 6
        assert variadic_args == (bool(bias.size), False)
        assert (layout, sliding_window_length, other["dropout_rate"]) == (0, None, 0)
        assert not np.any(lse < -1e20), "exp(HIDDEN - lse) would be infinite"
        grads = plain.backward(q, k, v, mask_of(q, k, bias, mask_type), out, lse.swapaxes(1, 2), dout)
        return [g.astype(x.dtype) for g, x in zip(grads, (q, k, v), strict=True)]

    found = {"cudnn_attention": attention, "cudnn_backward": SimpleNamespace(bind=bind)}
    find = private.find
    monkeypatch.setattr(private, "find", lambda key: found.get(key) or find(key))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_cudnn_is_asked_for_the_same_as_plain(causal, masked, monkeypatch):
    """Shapes, order, scale and hidden rows, with plain XLA in cuDNN's place; the numbers are bfloat16's."""
    plain_cudnn(monkeypatch)
    q, k, v, dout = normal(2, 16, 16, 4, 2, 8)
    segments = jnp.asarray([[1] * 8 + [9] * 8, [2] * 16])
    mask = segments[:, :, None] == jnp.asarray([[1] * 16, [2] * 16])[:, None] if masked else None
    out, lse = cudnn.forward(q, k, v, mask, causal=causal)
    seen = np.tril(np.ones((1, 16, 16), bool)) if causal else np.ones((1, 16, 16), bool)
    seen = seen if mask is None else seen & mask
    want, want_lse = plain.forward(q, k, v, seen)
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    assert_close((out, lse), (want, want_lse), 1e-2)
    got = cudnn.backward(q, k, v, mask, out, lse, dout, causal=causal)
    wanted = plain.backward(q, k, v, seen, want, want_lse, dout)
    assert_close(got, wanted, 2e-2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_cudnn_takes_and_gives_float32_sums(causal, masked, dtype, monkeypatch):
    """Lowered for CUDA by jax itself: custom calls of the right kind, with all shapes, and lse in float32."""
    monkeypatch.setattr(*private.owner_of("cudnn_version"), lambda: 91_200)
    B, T, S, N, K, H = 2, 256, 128, 4, 2, 64
    q, k, lse = (
        jax.ShapeDtypeStruct((B, T, N, H), dtype), jax.ShapeDtypeStruct((B, S, K, H), dtype),
        jax.ShapeDtypeStruct((B, T, N), jnp.float32),
    )  # fmt: skip
    mask = jax.ShapeDtypeStruct((B, T, S), bool) if masked else None

    def both(q, k, v, mask, lse, dout):
        out, sums = cudnn.forward(q, k, v, mask, causal=causal)
        return out, sums, cudnn.backward(q, k, v, mask, out, lse, dout, causal=causal)

    out, sums, (dq, dk, dv) = jax.eval_shape(both, q, k, k, mask, lse, q)
    assert (out.shape, out.dtype, sums.shape, sums.dtype) == (q.shape, q.dtype, lse.shape, lse.dtype)
    assert [(x.shape, x.dtype) for x in (dq, dk, dv)] == [(x.shape, x.dtype) for x in (q, k, k)]
    text = jax.jit(both).trace(q, k, k, mask, lse, q).lower(lowering_platforms=("cuda",)).as_text()
    name = "__cudnn$fmhaScaleBiasSoftmax" if masked else "__cudnn$fmhaSoftmax"
    calls = [line for line in text.splitlines() if "__cudnn$" in line]
    assert [f"@{name}" in line or f"@{name}Backward" in line for line in calls] == [True, True]
    assert all(f"tensor<{B}x{N}x{T}xf32>" in line for line in calls)
    assert all(('"CAUSAL' if causal else '"NO_MASK').replace('"', "") in line for line in calls)
