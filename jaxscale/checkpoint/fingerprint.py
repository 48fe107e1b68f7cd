"""32-bit sums of arrays' bits, on the devices: what a checkpoint holds to be compared when it is read, and what two
computations of one step are compared by.

The sum of an array is that of its elements' bits, each times an odd number that grows with its place, modulo 2^32: any
one changed element changes it, and so do, but for one case in 2^32, cut, moved or zeroed stretches. Integers wrap and
their sums have no order: it is the same on every mesh.
"""

import contextlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxscale.cluster.start import from_all
from jaxscale.parallel.local import on_each_device

PyTree = Any
UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
EVEN = 0x3C6EF362  # weights are 1 + EVEN * place; twice 2^32 / golden ratio (Fibonacci hashing: Knuth, TAOCP 3, 6.4)
WORD = 2**32 - 1
CHUNK = 2**16  # elements, which stay in a core's cache
COUNT = itertools.count()


def fingerprints(tree: PyTree) -> dict[str, str]:
    """Path -> eight hex digits for every array of a state; one number an array comes to the host.

    Every process of a run has to call it, as arrays are split over all of them.
    """
    sums = Sums(tree)
    return sums.told(from_all(f"sums/{next(COUNT)}", sums.own(), seconds=600))


class Sums:
    """The sums of a state as it is when this is made, taken later and in any thread: a step may be given its arrays.

    On CPU devices numpy reads the arrays where they are, as XLA's CPU backend sums integers at a fifth of its speed;
    JAX copies an array that is donated while somebody reads it. Elsewhere the sums are on the devices' queues already.
    """

    def __init__(self, tree: PyTree):
        leaves = named_leaves(tree)
        self.names = list(leaves)
        shards = [(i, x.shape, s) for i, x in enumerate(leaves.values()) for s in x.addressable_shards]
        on_cpu = all(s.device.platform == "cpu" for _, _, s in shards)
        self.queued_sums = {} if on_cpu else jitted_sums(leaves)
        first = [(i, shape, s) for i, shape, s in shards if on_cpu and s.replica_id == 0]  # each block once in a run
        self.blocks = [(i, shape, s.index, np.asarray(s.data)) for i, shape, s in first]

    def own(self) -> str:
        """What this process's blocks add to each sum, as text; to be called once, the blocks are let go."""
        if self.queued_sums:
            values = [int(x) for x in map(jax.device_get(self.queued_sums).get, self.names)]
            total = np.array(values if jax.process_index() == 0 else np.zeros_like(values), np.uint32)
        else:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                parts = list(pool.map(lambda _: self.take(), range(os.cpu_count() or 1)))
            total = np.array([sum(part) & WORD for part in zip(*parts, strict=True)], np.uint32)
        return total.tobytes().hex()

    def take(self) -> list[int]:
        total = [0] * len(self.names)
        with contextlib.suppress(IndexError):  # none is left: another thread has the last one
            while True:
                i, shape, index, block = self.blocks.pop()
                total[i] += block_sum(block, index, shape)
        return total

    def told(self, parts: list[str]) -> dict[str, str]:
        """`fingerprints`, from what all processes' blocks add."""
        numbers = np.array([np.frombuffer(bytes.fromhex(part), np.uint32) for part in parts])
        return {name: f"{value:08x}" for name, value in zip(self.names, numbers.sum(0, dtype=np.uint32), strict=True)}


def named_leaves(tree: PyTree) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="."): plain(x) for p, x in leaves}


def plain(x: Any) -> Any:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def weighted_sum(x: jax.Array) -> jax.Array:
    """uint32: the sum of an array, inside jit; its weights are made where they are used, and never sent."""
    total = jnp.zeros((), jnp.uint32)
    sharding = jax.typeof(x).sharding
    layout = {"out_sharding": sharding} if not sharding.mesh.empty else {}
    for dim in range(x.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, dim, **layout)
        total = total * jnp.uint32(x.shape[dim] & WORD) + index
    return (bits_of(x) * (1 + jnp.uint32(EVEN) * total)).sum(dtype=jnp.uint32)


@jax.jit
def jitted_sums(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: weighted_sum(x) for name, x in leaves.items()}


def bits_of(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize == 8:
        raise ValueError(f"an array of {x.dtype} has no fingerprint; states hold at most 4 bytes an element")
    return jax.lax.bitcast_convert_type(x, UINTS[x.dtype.itemsize]).astype(jnp.uint32)


def block_sum(block: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    """What a block of an array of this shape adds to its sum."""
    bits = block.astype(np.uint32) if block.dtype == bool else block.view(f"uint{8 * block.dtype.itemsize}")
    strides = [int(np.prod(shape[d + 1 :], dtype=np.int64)) for d in range(len(shape))]
    starts = [(s.start or 0) * stride for s, stride in zip(index, strides, strict=True)]
    dim = len(shape)  # the dims from here on are one stretch of the array
    while dim > 0 and (dim == len(shape) or block.shape[dim] == shape[dim]):
        dim -= 1
    bases = np.full(1, sum(starts), np.uint64)
    for d in range(dim):
        bases = np.add.outer(bases, np.arange(block.shape[d], dtype=np.uint64) * np.uint64(strides[d])).ravel()
    rows = np.ascontiguousarray(bits).reshape(len(bases), -1)
    ramp, total = np.arange(CHUNK, dtype=np.uint32), 0
    if rows.shape[1] >= CHUNK // 16:
        for base, row in zip(bases.tolist(), rows, strict=True):
            for start in range(0, len(row), CHUNK):
                part = row[start : start + CHUNK].astype(np.uint32, copy=False)
                inside = int(np.dot(part, ramp[: len(part)]))
                total += int(part.sum(dtype=np.uint32)) * (1 + EVEN * (base + start)) + EVEN * inside
        return total & WORD
    step = max(1, CHUNK // max(1, rows.shape[1]))
    low = (bases & np.uint64(WORD)).astype(np.uint32)
    for start in range(0, len(rows), step):
        place = low[start : start + step, None] + ramp[: rows.shape[1]]
        total += int((rows[start : start + step] * (place * np.uint32(EVEN) + np.uint32(1))).sum(dtype=np.uint32))
    return total & WORD


def device_sums(tree: PyTree, mesh: Mesh) -> jax.Array:
    """uint32 [arrays, devices]: the sum of each device's own block of each array, on every device; inside jit.

    Devices that hold the same block of an array have the same number.
    """
    axes = tuple(mesh.axis_names)

    def sums_by_device(x: jax.Array) -> jax.Array:
        here, one_each = jax.typeof(x).sharding.spec, PartitionSpec(axes)
        local = lambda block: weighted_sum(block)[None]  # noqa: E731
        body = on_each_device(local, (here,), one_each, check_vma=False)
        return jax.reshard(body(x), PartitionSpec())

    return jnp.stack([sums_by_device(x) for x in named_leaves(tree).values()])


def same_blocks(x: Any, mesh: Mesh) -> list[list[int]]:
    """Groups of places in `mesh.devices.flat` whose devices hold the same block of an array of this sharding."""
    groups: dict[str, list[int]] = {}
    where = x.sharding.devices_indices_map(x.shape)
    for place, device in enumerate(np.asarray(mesh.devices).flat):
        groups.setdefault(str(where[device]), []).append(place)
    return list(groups.values())
