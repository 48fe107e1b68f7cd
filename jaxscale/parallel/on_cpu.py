"""An einsum as one matmul of matrices, on a mesh of one device.

XLA's CPU backend is fast with matrices only: a float32 step took 1.4 times as long with the einsums as written.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def is_matmul(formula: str) -> bool:
    """Are x's last dims contracted with w's first (or last) ones, all in order: one matmul once dims are merged?"""
    x, w, out = formula.replace("->", ",").split(",")
    inner = "".join(c for c in x if c not in out)
    outer = w.removeprefix(inner) if w.startswith(inner) else w.removesuffix(inner)
    return bool(inner) and x.endswith(inner) and outer != w and x.removesuffix(inner) + outer == out


def flat_matmul(
    formula: str, x: jax.Array, w: jax.Array, *, layout: PartitionSpec, dtype: jnp.dtype | None
) -> jax.Array:
    """`jnp.einsum` of a formula that `is_matmul`. Merging dims meets no split, as there is one device.

    Args:
        layout: of the result, by its dims' logical names.
        dtype: of the accumulator and the result (`preferred_element_type`).
    """
    x_letters, w_letters, out_letters = formula.replace("->", ",").split(",")
    inner = [c for c in x_letters if c not in out_letters]
    size, first = math.prod(x.shape[-len(inner) :]), w_letters[0] == inner[0]
    shape = x.shape[: -len(inner)] + (w.shape[len(inner) :] if first else w.shape[: -len(inner)])
    x, w = (jax.reshard(a, PartitionSpec()) for a in (x, w))  # one device: only the types change
    matrix = w.reshape((size, -1) if first else (-1, size))
    dims = (((1,), (0 if first else 1,)), ((), ()))
    y = jax.lax.dot_general(x.reshape(-1, size), matrix, dims, preferred_element_type=dtype)
    result: jax.Array = jax.reshard(y.reshape(shape), layout)
    return result


def float32_sums(
    formula: str, x: jax.Array, w: jax.Array, *, out_sharding: PartitionSpec, preferred_element_type: jnp.dtype | None
) -> jax.Array:
    """`jnp.einsum` that adds in float32 and rounds once, as the matrix units of TPUs and GPUs do, in its gradients too.

    XLA's CPU backend adds in bfloat16 where it has no library for a product of bfloat16 (from jax 0.12 on): the
    gradients of gate, up and down over 1,024 tokens were 2.5 % off. Older versions widen every operand themselves.
    """
    narrow = preferred_element_type or jnp.result_type(x, w)
    wide = jnp.promote_types(narrow, jnp.float32)
    y = jnp.einsum(formula, x.astype(wide), w.astype(wide), out_sharding=out_sharding)
    return y.astype(narrow)
