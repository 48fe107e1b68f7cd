"""Grouped matmuls for XLA's CPU backend: a loop over experts, and in it one over blocks of their rows.

XLA knows bfloat16 there in matmuls only: some versions widen a whole array to float32 in order to update a few rows of
it. So arrays of bfloat16 are sliced and updated as bits.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# An expert's rows go in as many of the largest blocks as they fill, and then of the next; the last one may be partial
BLOCKS = (256, 128, 64, 32)


def rows(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, transposed: bool) -> jax.Array:
    """See `grouped.Kernel`. A block is written whole: the next expert overwrites what lies past this one's rows."""
    dtype, x_bits = x_RD.dtype, to_bits(x_RD)
    R, contracted = x_RD.shape[0], 1 if transposed else 0

    def of_expert(out_bits: jax.Array, expert: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        w_bits, start, end = expert

        def of_block(out_bits: jax.Array, first: jax.Array, size: int) -> jax.Array:
            at = jnp.minimum(first, R - size)
            x = from_bits(lax.dynamic_slice_in_dim(x_bits, at, size), dtype)
            dims = (((1,), (contracted,)), ((), ()))
            y = lax.dot_general(x, from_bits(w_bits, dtype), dims, preferred_element_type=jnp.float32)
            before = (at + jnp.arange(size) < first)[:, None]  # rows of a block at the array's end that others wrote
            old = lax.dynamic_slice_in_dim(out_bits, at, size)
            return lax.dynamic_update_slice_in_dim(out_bits, jnp.where(before, old, to_bits(y.astype(dtype))), at, 0)

        return in_blocks(of_block, out_bits, start, end, R), None

    zeros = varying_zeros((R, w_EDF.shape[2 - contracted]), dtype, x_RD)
    ends = jnp.cumsum(sizes_E)
    out_bits, _ = lax.scan(of_expert, to_bits(zeros), (to_bits(w_EDF), ends - sizes_E, ends))
    return from_bits(out_bits, dtype)


def weights(x_RD: jax.Array, dy_RF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """See `grouped.Kernel`. Rows of others in a block are masked in both operands: 0 * NaN is NaN."""
    dtype, x_bits, dy_bits = x_RD.dtype, to_bits(x_RD), to_bits(dy_RF)
    (R, D), F = x_RD.shape, dy_RF.shape[1]

    def of_expert(_: None, expert: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        start, end = expert

        def of_block(dw_DF: jax.Array, first: jax.Array, size: int) -> jax.Array:
            at = jnp.minimum(first, R - size)
            row = at + jnp.arange(size)
            mask = ((row >= first) & (row < end))[:, None]
            blocks = (from_bits(lax.dynamic_slice_in_dim(a, at, size), dtype) for a in (x_bits, dy_bits))
            x, dy = (jnp.where(mask, a, 0) for a in blocks)
            return dw_DF + lax.dot_general(x, dy, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)

        dw_DF = in_blocks(of_block, varying_zeros((D, F), jnp.float32, x_RD), start, end, R)
        return None, to_bits(dw_DF.astype(dtype))

    ends = jnp.cumsum(sizes_E)
    _, dw_bits = lax.scan(of_expert, None, (ends - sizes_E, ends))
    return from_bits(dw_bits, dtype)


def in_blocks(
    of_block: Callable[..., jax.Array], carry: jax.Array, start: jax.Array, end: jax.Array, R: int
) -> jax.Array:
    """`carry` after `of_block(carry, first row, size)` of blocks that cover the rows from start to end, of R."""
    for size in (sizes := [size for size in BLOCKS if size <= R] or [R]):
        needed = 1 if size == sizes[-1] else size  # rows left

        def more(state: tuple[jax.Array, jax.Array], needed: int = needed) -> jax.Array:
            return state[0] + needed <= end

        def step(state: tuple[jax.Array, jax.Array], size: int = size) -> tuple[jax.Array, jax.Array]:
            return state[0] + size, of_block(state[1], state[0], size)

        start, carry = lax.while_loop(more, step, (start, carry))
    return carry


def varying_zeros(shape: tuple[int, ...], dtype: Any, like: jax.Array) -> jax.Array:
    """Zeros that vary over the axes of a shard_map that `like` varies over, as a loop's carry must."""
    axes = tuple(jax.typeof(like).mat.varying)
    zeros = jnp.zeros(shape, dtype)
    return lax.pcast(zeros, axes, to="varying") if axes else zeros


def to_bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def from_bits(x: jax.Array, dtype: Any) -> jax.Array:
    return x if x.dtype == dtype else lax.bitcast_convert_type(x, dtype)
