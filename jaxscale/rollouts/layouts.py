"""What of a device's memory is there for sampling, and how much of it arrays take. Layouts: `blueprint.decoding`."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.hardware.chips import find_chip

PyTree = Any


def device_memory(device: jax.Device) -> float | None:
    """Bytes that a program may use, from the table of chips: the same on each process. A CPU's are not counted."""
    if device.platform == "cpu":
        return math.inf
    chip = find_chip(device.device_kind)
    return chip.usable_hbm_bytes if chip else None


def bytes_of(tree: PyTree) -> int:
    """Bytes of one device's parts of these arrays, by their layouts."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize for x in leaves)
