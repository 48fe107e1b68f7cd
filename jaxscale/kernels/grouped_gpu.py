"""Grouped matmuls for GPUs, in Pallas by Triton: a tile has rows of one expert, so work is proportional to rows."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

TALL, WIDE, DEEP = 128, 128, 32  # rows and columns of a tile, and how much of the inner dim it meets at one time


def rows(
    x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, transposed: bool, *, interpret: bool = False
) -> jax.Array:
    """See `grouped.Kernel`. The grid has as many tiles as any sizes need; those past the last one do nothing."""
    R, E, columns = x_RD.shape[0], w_EDF.shape[0], w_EDF.shape[1 if transposed else 2]
    tile = jnp.arange(pl.cdiv(R, TALL) + E - 1, dtype=jnp.int32)
    tiles_E, ends_E = pl.cdiv(sizes_E, TALL), jnp.cumsum(sizes_E)
    next_tile_E = jnp.cumsum(tiles_E)
    expert = jnp.minimum(jnp.searchsorted(next_tile_E, tile, side="right"), E - 1).astype(jnp.int32)
    first = (ends_E - sizes_E)[expert] + TALL * (tile - (next_tile_E - tiles_E)[expert])
    kernel = functools.partial(rows_kernel, transposed=transposed)
    grid = (tile.size, pl.cdiv(columns, WIDE))
    return call(kernel, grid, (R, columns), x_RD, interpret)(expert, first, ends_E[expert], x_RD, w_EDF)


def rows_kernel(
    expert_ref: Any, first_ref: Any, end_ref: Any, x_ref: Any, w_ref: Any, out_ref: Any, *, transposed: bool
) -> None:
    from jax.experimental.pallas import triton

    tile = pl.program_id(0)
    expert, first, end = expert_ref[tile], first_ref[tile], end_ref[tile]
    rows, rows_in = span(first, TALL, end)
    columns, columns_in = span(pl.program_id(1) * WIDE, WIDE, out_ref.shape[1])

    def step(i: jax.Array, y: jax.Array) -> jax.Array:
        inner, inner_in = span(i * DEEP, DEEP, x_ref.shape[1])
        x = triton.load(x_ref.at[rows, inner], mask=rows_in[:, None] & inner_in, other=0)
        if transposed:
            w = triton.load(w_ref.at[expert, columns, inner], mask=columns_in[:, None] & inner_in, other=0).T
        else:
            w = triton.load(w_ref.at[expert, inner, columns], mask=inner_in[:, None] & columns_in, other=0)
        return y + jnp.dot(x, w, preferred_element_type=jnp.float32)

    @pl.when(first < end)
    def _() -> None:
        y = lax.fori_loop(0, pl.cdiv(x_ref.shape[1], DEEP), step, jnp.zeros((TALL, WIDE), jnp.float32))
        triton.store(out_ref.at[rows, columns], y.astype(out_ref.dtype), mask=rows_in[:, None] & columns_in)


def weights(x_RD: jax.Array, dy_RF: jax.Array, sizes_E: jax.Array, *, interpret: bool = False) -> jax.Array:
    """See `grouped.Kernel`. Each tile of the gradient goes over its expert's rows; loads mask the rows of others."""
    shape, ends_E = (sizes_E.shape[0], x_RD.shape[1], dy_RF.shape[1]), jnp.cumsum(sizes_E)
    grid = (shape[0], pl.cdiv(shape[1], TALL), pl.cdiv(shape[2], WIDE))
    return call(weights_kernel, grid, shape, x_RD, interpret)(ends_E - sizes_E, ends_E, x_RD, dy_RF)


def weights_kernel(start_ref: Any, end_ref: Any, x_ref: Any, dy_ref: Any, out_ref: Any) -> None:
    from jax.experimental.pallas import triton

    expert = pl.program_id(0)
    start, end = start_ref[expert], end_ref[expert]
    inputs, inputs_in = span(pl.program_id(1) * TALL, TALL, x_ref.shape[1])
    outputs, outputs_in = span(pl.program_id(2) * WIDE, WIDE, dy_ref.shape[1])

    def step(i: jax.Array, dw: jax.Array) -> jax.Array:
        rows, rows_in = span(start + i * DEEP, DEEP, end)
        x = triton.load(x_ref.at[rows, inputs], mask=rows_in[:, None] & inputs_in, other=0)
        dy = triton.load(dy_ref.at[rows, outputs], mask=rows_in[:, None] & outputs_in, other=0)
        return dw + jnp.dot(x.T, dy, preferred_element_type=jnp.float32)

    dw = lax.fori_loop(0, pl.cdiv(end - start, DEEP), step, jnp.zeros((TALL, WIDE), jnp.float32))
    triton.store(out_ref.at[expert, inputs, outputs], dw.astype(out_ref.dtype), mask=inputs_in[:, None] & outputs_in)


def span(first: Any, size: int, end: Any) -> tuple[Any, jax.Array]:
    """A tile's slice of a dim, and which of it is before `end`."""
    return pl.ds(first, size), first + jnp.arange(size) < end


def call(kernel: Any, grid: tuple[int, ...], shape: tuple[int, ...], like: jax.Array, interpret: bool) -> Any:
    from jax.experimental.pallas import triton

    out = jax.ShapeDtypeStruct(shape, like.dtype, manual_axis_type=jax.typeof(like).mat)
    options = triton.CompilerParams(num_warps=8, num_stages=3)
    return pl.pallas_call(kernel, out, grid=grid, compiler_params=options, interpret=interpret)
