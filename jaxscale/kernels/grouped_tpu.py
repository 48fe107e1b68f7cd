"""Grouped matmuls for TPUs: JAX's megablox kernels (Pallas), with tiles by shape."""

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale import private


def rows(
    x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, transposed: bool, *, interpret: bool = False
) -> jax.Array:
    """See `grouped.Kernel`. Where a tile meets all of the inner dim, weights stay while one expert's tiles pass."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    E, *matrix = w_EDF.shape
    inner, columns = reversed(matrix) if transposed else matrix
    tiles = tile_sizes(x_RD, E, inner, columns, widest=(4096, 512))
    x = padded(x_RD, tiles[0])
    y = typed(gmm, x, w_EDF, sizes_E, x.dtype, tiles, transpose_rhs=transposed, interpret=interpret)
    return y[: x_RD.shape[0]]


def weights(x_RD: jax.Array, dy_RF: jax.Array, sizes_E: jax.Array, *, interpret: bool = False) -> jax.Array:
    """See `grouped.Kernel`. The kernel masks rows of others in both operands."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    tiles = tile_sizes(x_RD, sizes_E.shape[0], x_RD.shape[1], dy_RF.shape[1], widest=(1024, 1024))
    x, dy = (padded(a, tiles[0]) for a in (x_RD, dy_RF))
    return typed(tgmm, x.swapaxes(0, 1), dy, sizes_E, x.dtype, tiles, interpret=interpret)


def tile_sizes(x_RD: jax.Array, E: int, inner: int, columns: int, *, widest: tuple[int, int]) -> tuple[int, int, int]:
    """Rows, inner and columns of a tile; the latter two are at most `widest`, for bfloat16.

    A tile of rows that several experts share is computed for each of them: R / rows + E - 1 tiles. So tiles are not
    tall. Two tiles of each operand have to fit the vector memory of any chip.
    """
    tall = 256 if x_RD.shape[0] >= 512 * E else 128
    inner_tile, columns_tile = (n * 2 // x_RD.dtype.itemsize for n in widest)
    return tall, even_tile(inner, inner_tile), even_tile(columns, columns_tile)


def even_tile(length: int, largest: int) -> int:
    """Length of the fewest tiles that cover `length`, in whole lanes: a tile's rest would be computed too."""
    return math.ceil(length / math.ceil(length / largest) / 128) * 128


def padded(x_RD: jax.Array, multiple: int) -> jax.Array:
    return jnp.pad(x_RD, ((0, -x_RD.shape[0] % multiple), (0, 0)))


def typed(kernel: Callable[..., jax.Array], x: jax.Array, *more: Any, **options: Any) -> jax.Array:
    """The kernel's result, varying over the mesh axes that x varies over: megablox itself would leave that type out."""
    struct = functools.partial(jax.ShapeDtypeStruct, manual_axis_type=jax.typeof(x).mat)
    theirs = private.find("megablox_jax")
    private.replace("megablox_jax", SimpleNamespace(**(vars(theirs) | {"ShapeDtypeStruct": struct})))
    try:
        return kernel(x, *more, **options)
    finally:
        private.replace("megablox_jax", theirs)
