"""Operations whose gradient is a sum over all tokens: it is added in float32, and rounded once.

Added in bfloat16, the parts after the first few hundred are smaller than a unit of the sum and no longer count.
Matmuls are not here: every backend accumulates them in float32.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def take(table_VD: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a device's own block of a table. A token may stand in a batch a thousand times."""
    return table_VD[ids]


def take_forward(table_VD: jax.Array, ids: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return table_VD[ids], (table_VD, ids)


def take_backward(saved: tuple[jax.Array, jax.Array], rows: jax.Array) -> tuple[jax.Array, None]:
    table_VD, ids = saved
    total = jnp.zeros_like(table_VD, jnp.float32).at[ids].add(rows.astype(jnp.float32))
    return total.astype(table_VD.dtype), None


take.defvjp(take_forward, take_backward)


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y + bias over y's last dims, both of one dtype."""
    return y + bias


def add_bias_forward(y: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    return y + bias, bias


def add_bias_backward(bias: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    tokens = tuple(range(gradient.ndim - bias.ndim))
    return gradient, gradient.astype(jnp.float32).sum(tokens).astype(bias.dtype)


add_bias.defvjp(add_bias_forward, add_bias_backward)
