import jax.numpy as jnp

NEGATIVE = -1e30


def scores_of(q, k, softcap):
    B, T, N, H = q.shape
    K = k.shape[2]
    s = jnp.einsum("btkgh,bskh->bkgts", q.reshape(B, T, K, N // K, H), k, preferred_element_type=jnp.float32)
    s = s * H**-0.5
    return s if softcap is None else softcap * jnp.tanh(s / softcap)


def forward(q, k, v, mask, *, softcap=None):
    B, T, N, H = q.shape
    s = scores_of(q, k, softcap)
    if mask is not None:
        s = jnp.where(mask[:, None, None], s, NEGATIVE)
    m = s.max(-1, keepdims=True)
    p = jnp.exp(s - m)
    if mask is not None:
        p = jnp.where(mask[:, None, None], p, 0)
    l = p.sum(-1, keepdims=True)
    out = jnp.einsum(
        "bkgts,bskh->btkgh", (p / jnp.maximum(l, 1e-30)).astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    lse = jnp.where(l > 0, m + jnp.log(jnp.maximum(l, 1e-30)), NEGATIVE)[..., 0]
    return out.reshape(B, T, N, H).astype(q.dtype), lse.transpose(0, 3, 1, 2).reshape(B, T, N)


def backward(q, k, v, mask, out, lse, dout, *, softcap=None):
    B, T, N, H = q.shape
    K = k.shape[2]
    G = N // K
    delta = jnp.einsum("btnh,btnh->btn", out.astype(jnp.float32), dout.astype(jnp.float32))
    s = scores_of(q, k, softcap)
    fold = lambda x: x.reshape(B, T, K, G).transpose(0, 2, 3, 1)[..., None]  # noqa: E731
    p = jnp.exp(s - fold(lse))
    if mask is not None:
        p = jnp.where(mask[:, None, None], p, 0)
    do = dout.reshape(B, T, K, G, H)
    dv = jnp.einsum("bkgts,btkgh->bskh", p, do, preferred_element_type=jnp.float32)
    dp = jnp.einsum("btkgh,bskh->bkgts", do, v, preferred_element_type=jnp.float32)
    ds = p * (dp - fold(delta))
    if softcap is not None:
        ds = ds * (1 - jnp.square(s / softcap))
    ds = ds * H**-0.5
    dq = jnp.einsum("bkgts,bskh->btkgh", ds, k, preferred_element_type=jnp.float32).reshape(B, T, N, H)
    dk = jnp.einsum("bkgts,btkgh->bskh", ds, q.reshape(B, T, K, G, H), preferred_element_type=jnp.float32)
    return dq, dk, dv


def merge(out, lse, out_i, lse_i):
    top = jnp.maximum(lse, lse_i)
    a, b = jnp.exp(lse - top), jnp.exp(lse_i - top)
    a, b = jnp.where(lse <= NEGATIVE, 0, a), jnp.where(lse_i <= NEGATIVE, 0, b)
    total = a + b
    safe = jnp.maximum(total, 1e-30)
    out = (out * a[..., None] + out_i * b[..., None]) / safe[..., None]
    return out, jnp.where(total > 0, top + jnp.log(safe), NEGATIVE)
