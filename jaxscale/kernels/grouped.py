"""Grouped matmuls: rows sorted by expert, each times the matrix of its expert.

Each platform has a kernel of two functions. XLA's own `ragged_dot` is none of them: on CPUs and GPUs, and with some
versions of libtpu, it computes every row with every expert.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxscale.kernels import grouped_cpu, grouped_gpu, grouped_tpu


class Kernel(NamedTuple):
    """Grouped matmuls of one platform. Rows past sum(sizes) may hold anything, NaN too.

    Attributes:
        rows: (x [R, D], w [E, D, F], sizes [E], transposed) -> x @ w of each row's expert [R, F], in x's dtype.
            Transposed: x [R, F] @ w.T [F, D]. Rows past sum(sizes) come out as anything.
        weights: (x [R, D], dy [R, F], sizes [E]) -> x.T @ dy of each expert's rows [E, D, F], in x's dtype, added up in
            float32. An expert without rows has zeros.
    """

    rows: Callable[[jax.Array, jax.Array, jax.Array, bool], jax.Array]
    weights: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


KERNELS = {
    "cpu": Kernel(grouped_cpu.rows, grouped_cpu.weights),
    "gpu": Kernel(grouped_gpu.rows, grouped_gpu.weights),
    "tpu": Kernel(grouped_tpu.rows, grouped_tpu.weights),
}


def grouped_matmul(
    x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, *, platform: str, transposed: bool = False
) -> jax.Array:
    """Multiply each row by its expert's matrix, with gradients of x and w.

    Inside a shard_map the arrays vary over the same axes. Compute is proportional to the rows that experts have.

    Args:
        x_RD: rows sorted by expert, in w's dtype: bfloat16 or float32.
        sizes_E: int32, how many rows each expert has. Their sum is at most R.
        platform: that the program is for, a key of `KERNELS`.
        transposed: w is [E, F, D], as it is stored: no copy of it is made.

    Returns:
        [R, F] in x's dtype, accumulated in float32. Rows past sum(sizes) are undefined, in the gradient of x too. What
        they hold, in x and in the incoming gradient, reaches no other row and no gradient of w.
    """
    assert x_RD.dtype == w_EDF.dtype
    return _grouped_matmul(platform, transposed, x_RD, w_EDF, sizes_E)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _grouped_matmul(
    platform: str, transposed: bool, x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array
) -> jax.Array:
    return KERNELS[platform].rows(x_RD, w_EDF, sizes_E, transposed)


def _forward(platform: str, transposed: bool, *arrays: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _grouped_matmul(platform, transposed, *arrays), arrays


def _backward(
    platform: str, transposed: bool, saved: tuple[jax.Array, ...], dy_RF: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    x_RD, w_EDF, sizes_E = saved
    kernel = KERNELS[platform]
    dw = kernel.weights(*((dy_RF, x_RD) if transposed else (x_RD, dy_RF)), sizes_E)
    return kernel.rows(dy_RF, w_EDF, sizes_E, not transposed), dw, None


_grouped_matmul.defvjp(_forward, _backward)
