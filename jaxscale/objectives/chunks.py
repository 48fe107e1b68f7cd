"""Parts of a batch's tokens, cut and joined on each device, so that a sequence that is split stays where it lies.

Arrays are [B, T, ...]. A part of `chunk` tokens of each row holds as many of each device's; a slice of the global
dim would be moved to all devices. Of replicas too each device cuts its own: by jax's vmap a slice becomes a gather,
which knows no array that is reduced or unreduced.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxscale.parallel.local import mapped_axes, on_each_device
from jaxscale.parallel.sharding import current_mesh, dims_of


def tokens_of(chunk: int, x: jax.Array) -> int:
    """Of a part of `chunk` tokens of each row, those of one device."""
    n = shards(x)
    if chunk % n:
        raise ValueError(f"loss.chunk {chunk} is not divisible by the {n} parts of a sequence; try {chunk * n}")
    return chunk // n


def shards(x: jax.Array) -> int:
    """Parts of a sequence."""
    return math.prod(current_mesh().shape[a] for a in dims_of(x)[1])


def is_cut_whole(x: jax.Array) -> bool:
    """Is a slice of the global array one of each device's, and can it be taken?"""
    return shards(x) == 1 and not mapped_axes()


def part(i: jax.Array | int, chunk: int, arrays: Any) -> Any:
    """The i-th part of each array."""

    def of_one(x: jax.Array) -> jax.Array:
        tokens = tokens_of(chunk, x)
        if is_cut_whole(x):
            return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, 1)
        here = layout(x)
        cut = on_each_device(
            lambda x, i: jax.lax.dynamic_slice_in_dim(x, i * tokens, tokens, 1), (here, PartitionSpec()), here
        )
        piece: jax.Array = cut(x, jnp.asarray(i))
        return piece

    return jax.tree.map(of_one, arrays)


def with_part(x: jax.Array, i: jax.Array | int, part: jax.Array) -> jax.Array:
    """x with its i-th part replaced."""
    chunk, tokens = part.shape[1], tokens_of(part.shape[1], x)
    if is_cut_whole(x):
        return jax.lax.dynamic_update_slice_in_dim(x, part, i * chunk, 1)
    here = layout(x)
    put = on_each_device(
        lambda x, i, part: jax.lax.dynamic_update_slice_in_dim(x, part, i * tokens, 1),
        (here, PartitionSpec(), here),
        here,
    )
    whole: jax.Array = put(x, jnp.asarray(i), part)
    return whole


def joined(parts: list[jax.Array]) -> jax.Array:
    """All parts in their order, as one array."""
    here = layout(parts[0])
    if is_cut_whole(parts[0]):
        return jnp.concatenate(parts, axis=1)
    join = on_each_device(lambda *parts: jnp.concatenate(parts, axis=1), (here,) * len(parts), here)
    whole: jax.Array = join(*parts)
    return whole


def layout(x: jax.Array) -> PartitionSpec:
    """With its marks, reduced and unreduced."""
    spec: PartitionSpec = jax.typeof(x).sharding.spec
    return spec
