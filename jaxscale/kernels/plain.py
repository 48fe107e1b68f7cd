"""Attention by blocks in plain XLA: a part of the keys at a time, forward and backward.

A row's softmax over all its keys is the merge of its parts. Each part gives `out`, normalised over its own keys, and
`lse`, the log of the sum of its exponentials. The backward of a part takes the `out` and `lse` of the whole row, so
the gradients of the parts add up (FlashAttention-2, arXiv:2307.08691, section 3.1). All arrays are local.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

NEGATIVE = -1e30  # finite, so that a row with nothing to see gives no NaN


def visible(query: Any, key: Any, sliding_window: int | None) -> Any:
    """True where a query at index `query` may see a key at index `key`."""
    mask = key <= query
    return mask if sliding_window is None else mask & (query - key < sliding_window)


def block_of(T: int) -> int:
    """Queries of a block: at most 16 blocks, none too small to keep a CPU busy."""
    return max(64, -(-T // 16))


def forward(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: Any | None, *, softcap: float | None = None
) -> tuple[jax.Array, jax.Array]:
    """Attention over these keys, and the log of each row's sum of exponentials.

    Args:
        q_BTNH: queries; N is a multiple of K, query head n reads kv head n // (N / K).
        mask_BTS: bool, [B or 1, T, S]: True where a query sees a key. None: it sees all.
        softcap: scores become cap * tanh(scores / cap).

    Returns:
        out [B, T, N, H] and lse [B, T, N], both float32. A row that sees nothing has out 0 and lse NEGATIVE.
    """
    T = q_BTNH.shape[1]
    block = block_of(T)

    def one(part: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
        return block_forward(part[0], k_BSKH, v_BSKH, part[1], softcap)

    if block >= T:
        return one((q_BTNH, mask_BTS))
    out, lse = lax.map(one, jax.tree.map(lambda x: split(x, block), (q_BTNH, mask_BTS)))  # scores of one at a time
    return join(out, T), join(lse, T)


def backward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: Any | None,
    out_BTNH: jax.Array,
    lse_BTN: jax.Array,
    dout_BTNH: jax.Array,
    *,
    softcap: float | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients through these keys, given `out` and `lse` of the whole rows.

    Returns:
        dq [B, T, N, H], dk and dv [B, S, K, H], in float32. A row with lse NEGATIVE adds nothing to them.
    """
    lse, delta = row_sums(out_BTNH, lse_BTN, dout_BTNH)
    T = q_BTNH.shape[1]
    block = block_of(T)
    queries = (q_BTNH, mask_BTS, lse, delta, dout_BTNH)

    def one(total: tuple[jax.Array, jax.Array], part: Any) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        q, mask, lse, delta, dout = part
        dq, dk, dv = block_backward(q, k_BSKH, v_BSKH, mask, lse, delta, dout, softcap)
        return (total[0] + dk, total[1] + dv), dq

    zeros = (jnp.zeros_like(k_BSKH, jnp.float32), jnp.zeros_like(v_BSKH, jnp.float32))
    if block >= T:
        (dk, dv), dq = one(zeros, queries)
        return dq, dk, dv
    (dk, dv), dq = lax.scan(one, zeros, jax.tree.map(lambda x: split(x, block), queries))
    return join(dq, T), dk, dv


def merge(
    out_BTNH: jax.Array, lse_BTN: jax.Array, out2_BTNH: jax.Array, lse2_BTN: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Two parts of each row's softmax as one, in float32: out = (e^lse out + e^lse2 out2) / (e^lse + e^lse2)."""
    top = jnp.maximum(lse_BTN, lse2_BTN)
    a, b = jnp.exp(lse_BTN - top), jnp.exp(lse2_BTN - top)  # one of them is 1
    out = (out_BTNH * a[..., None] + out2_BTNH * b[..., None]) / (a + b)[..., None]
    return out, jnp.where(seen(top), top + jnp.log(a + b), NEGATIVE)


def seen(lse: jax.Array) -> jax.Array:
    """True for rows that see a key. The kernels have values of their own for the others, all far below any score."""
    return lse > NEGATIVE / 2


def row_sums(out: jax.Array, lse: jax.Array, dout: jax.Array) -> tuple[jax.Array, jax.Array]:
    """lse, with 0 for rows that see nothing, so that their exp(NEGATIVE - lse) is 0; and sum(out * dout) over H."""
    delta = jnp.einsum("btnh,btnh->btn", out.astype(jnp.float32), dout.astype(jnp.float32))
    return jnp.where(seen(lse), lse, 0), delta


# --- one block of queries -------------------------------------------------------------------------------------


def block_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: Any | None, softcap: float | None
) -> tuple[jax.Array, jax.Array]:
    B, T, N, _ = q.shape
    K, S = k.shape[2], k.shape[1]
    scores, _ = scores_of(q, k, mask, softcap)
    top = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    weights = (weights / total).astype(v.dtype).reshape(B * K, -1, S)
    out = jnp.einsum("gts,gsh->gth", weights, fold(v, K), preferred_element_type=jnp.float32)
    lse = (top + jnp.log(total)).reshape(B, N, T).swapaxes(1, 2)
    out = jnp.where(seen(lse)[..., None], unfold(out, B, T, N), 0)
    return out, jnp.where(seen(lse), lse, NEGATIVE)


def block_backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Any | None,
    lse: jax.Array,
    delta: jax.Array,
    dout: jax.Array,
    softcap: float | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """FlashAttention-2, algorithm 2: p = exp(s - lse), ds = p * (dout v^T - delta), and the chain rule of the cap."""
    B, T, N, H = q.shape
    K, S = k.shape[2], k.shape[1]

    def of_rows(x: jax.Array) -> jax.Array:  # [B, T, N] as the scores have it
        return x.swapaxes(1, 2).reshape(B, K, N // K, T)[..., None]

    def times(spec: str, *x: jax.Array) -> jax.Array:
        return jnp.einsum(spec, *x, preferred_element_type=jnp.float32)

    scores, slope = scores_of(q, k, mask, softcap)
    weights = jnp.exp(scores - of_rows(lse))
    qf, kf, vf, df = fold(q, K), fold(k, K), fold(v, K), fold(dout.astype(v.dtype), K)
    dv = times("gts,gth->gsh", weights.astype(v.dtype).reshape(B * K, -1, S), df)
    dweights = times("gth,gsh->gts", df, vf).reshape(scores.shape)
    dscores = (weights * (dweights - of_rows(delta)) * slope * H**-0.5).astype(q.dtype).reshape(B * K, -1, S)
    dq, dk = times("gts,gsh->gth", dscores, kf), times("gts,gth->gsh", dscores, qf)
    return unfold(dq, B, T, N), unfold(dk, B, S, K), unfold(dv, B, S, K)


def scores_of(q: jax.Array, k: jax.Array, mask: Any | None, softcap: float | None) -> tuple[jax.Array, Any]:
    """Masked scores [B, K, N/K, T, S], float32, and their slope by the uncapped ones (1 without a cap)."""
    B, T, N, H = q.shape
    S, K = k.shape[1:3]
    scores = jnp.einsum("gth,gsh->gts", fold(q, K), fold(k, K), preferred_element_type=jnp.float32)
    scores = scores.reshape(B, K, N // K, T, S) * H**-0.5
    slope: Any = 1
    if softcap is not None:
        capped = jnp.tanh(scores / softcap)
        scores, slope = softcap * capped, 1 - jnp.square(capped)
    return (scores if mask is None else jnp.where(mask[:, None, None], scores, NEGATIVE)), slope


def fold(x_BTNH: jax.Array, K: int) -> jax.Array:
    """[B, T, N, H] -> [B*K, N/K*T, H]: one batch dim and rows, the form of XLA's fast matmul on CPUs."""
    B, T, N, H = x_BTNH.shape
    return x_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B * K, -1, H)


def unfold(x: jax.Array, B: int, T: int, N: int) -> jax.Array:
    """What `fold` makes, as [B, T, N, H] again."""
    return x.reshape(B, N, T, -1).swapaxes(1, 2)


def split(x: jax.Array, block: int) -> jax.Array:
    """[B, T, ...] -> [blocks, B, block, ...]. Zeros fill the last one: queries that no gradient comes from."""
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % block)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(x.shape[0], -1, block, *x.shape[2:]).swapaxes(0, 1)


def join(x: jax.Array, T: int) -> jax.Array:
    """What `split` makes, as [B, T, ...] again."""
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :T]
