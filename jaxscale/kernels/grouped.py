"""Matmuls of rows that are sorted by group, each with its group's matrix."""

import jax


def grouped_matmul(x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array, *, platform: str) -> jax.Array:
    """Rows of each group times its matrix: [R, F]. Rows past the sizes' sum may hold anything, and give anything.

    Args:
        sizes_E: int32 rows of each group.
        platform: that is compiled for.
    """
    return jax.lax.ragged_dot(x_RD, w_EDF, sizes_E, preferred_element_type=x_RD.dtype)
