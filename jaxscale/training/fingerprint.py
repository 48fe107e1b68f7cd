"""32-bit sums of arrays' bits, on the devices: what a checkpoint holds to be compared when it is read, and what two
computations of one step are compared by.

An array's sum weights each element by an odd number made of its place, so that any one changed element changes the
sum, and two that changed places do. Integers wrap and their sums have no order: the same on every mesh.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

PyTree = Any
UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
ODD = 0x9E3779B1  # 2^32 / golden ratio, as in Fibonacci hashing (Knuth, TAOCP 3, 6.4)
MULTIPLIER = 0x85EBCA6B  # murmur3's


def fingerprints(tree: PyTree) -> dict[str, str]:
    """Path -> eight hex digits for every array of a state; one number an array comes to the host.

    Every process of a run has to call it, as arrays are split over all of them.
    """
    found = jax.device_get(jitted_sums(named_leaves(tree)))
    return {name: f"{int(value):08x}" for name, value in found.items()}


def named_leaves(tree: PyTree) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): plain(x) for p, x in leaves}


def plain(x: Any) -> Any:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def weighted_sum(x: jax.Array) -> jax.Array:
    """uint32: the bits of x's elements, each times an odd number of its place, modulo 2^32."""
    return (bits_of(x) * places(x)).sum(dtype=jnp.uint32)


@jax.jit
def jitted_sums(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: weighted_sum(x) for name, x in leaves.items()}


def bits_of(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize == 8:
        raise ValueError(f"an array of {x.dtype} has no fingerprint; states hold at most 4 bytes an element")
    return jax.lax.bitcast_convert_type(x, UINTS[x.dtype.itemsize]).astype(jnp.uint32)


def places(x: jax.Array) -> jax.Array:
    """An odd number of each element's index, in x's layout: made where it is used, never sent. A few integer operations
    an element, so that the sum costs no more than reading the array."""
    total = jnp.zeros((), jnp.uint32)
    sharding = jax.typeof(x).sharding
    layout = {"out_sharding": sharding} if not sharding.mesh.empty else {}
    for dim in range(x.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, dim, **layout)
        total = total * jnp.uint32(MULTIPLIER) + index * jnp.uint32(ODD)
    return (total ^ (total >> 15)) | 1


def device_sums(tree: PyTree, mesh: Mesh) -> jax.Array:
    """uint32 [arrays, devices]: the sum of each device's own block of each array, on every device; inside jit.

    Devices that hold the same block of an array have the same number.
    """
    axes = tuple(mesh.axis_names)

    def own(x: jax.Array) -> jax.Array:
        here, one_each = jax.typeof(x).sharding.spec, PartitionSpec(axes)
        local = lambda block: weighted_sum(block)[None]  # noqa: E731
        body = jax.shard_map(local, in_specs=here, out_specs=one_each, check_vma=False)
        return jax.reshard(body(x), PartitionSpec())

    return jnp.stack([own(x) for x in named_leaves(tree).values()])


def same_blocks(x: Any, mesh: Mesh) -> list[list[int]]:
    """Groups of places in `mesh.devices.flat` whose devices hold the same block of an array of this sharding."""
    groups: dict[str, list[int]] = {}
    where = x.sharding.devices_indices_map(x.shape)
    for place, device in enumerate(np.asarray(mesh.devices).flat):
        groups.setdefault(str(where[device]), []).append(place)
    return list(groups.values())
