"""Grouped matmuls for TPUs: JAX's megablox kernels (Pallas), given the types that a shard_map wants."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxscale import private


def rows(
    x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, transposed: bool, *, interpret: bool = False
) -> jax.Array:
    """See `grouped.Kernel`. A tile writes the rows of its expert only."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    E, *matrix = w_EDF.shape
    inner, columns = reversed(matrix) if transposed else matrix
    tiles = tile_sizes(x_RD, E, inner, columns)
    x = padded(x_RD, tiles[0])
    y = typed(gmm, x, w_EDF, sizes_E, x.dtype, tiles, transpose_rhs=transposed, interpret=interpret)
    return y[: x_RD.shape[0]]


def weights(x_RD: jax.Array, dy_RF: jax.Array, sizes_E: jax.Array, *, interpret: bool = False) -> jax.Array:
    """See `grouped.Kernel`. The kernel masks rows of others in both operands."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    tiles = tile_sizes(x_RD, sizes_E.shape[0], x_RD.shape[1], dy_RF.shape[1])
    x, dy = (padded(a, tiles[0]) for a in (x_RD, dy_RF))
    return typed(tgmm, x.swapaxes(0, 1), dy, sizes_E, x.dtype, tiles, interpret=interpret)


def tile_sizes(x_RD: jax.Array, E: int, inner: int, columns: int) -> tuple[int, int, int]:
    """Rows, inner and columns of a tile.

    A tile of rows that several experts share is computed for each of them: R / rows + E - 1 tiles. So tiles are small
    where experts have few rows. The other two fit the vector memory of every chip, buffered twice.
    """
    each = x_RD.shape[0] // E
    tall = 512 if each >= 1024 else 256 if each >= 256 else 128
    wide = 1024 * 2 // x_RD.dtype.itemsize
    return tall, even_tile(inner, wide), even_tile(columns, wide)


def even_tile(length: int, largest: int) -> int:
    """Length of the fewest tiles that cover `length`, in whole lanes: a tile's rest would be computed too."""
    return math.ceil(length / math.ceil(length / largest) / 128) * 128


def padded(x_RD: jax.Array, multiple: int) -> jax.Array:
    return jnp.pad(x_RD, ((0, -x_RD.shape[0] % multiple), (0, 0)))


def typed(kernel: Callable[..., Any], x: jax.Array, *more: Any, **options: Any) -> jax.Array:
    """The kernel's result, which varies over the axes of a shard_map that `x` varies over; its own has no such type."""
    axes = tuple(jax.typeof(x).mat.varying)
    with private.find("check_types")(False):
        y: jax.Array = kernel(x, *more, **options)
    return lax.pcast(y, axes, to="varying") if axes else y
