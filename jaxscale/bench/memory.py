"""Bandwidths of memory: within the device, and between host and device.

A copy on the device reads and writes: its bandwidth counts both, as STREAM does (McCalpin, 1995). A transfer counts its
bytes once.
"""

import functools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.bench.clock import Effort, time_calls
from jaxscale.bench.record import Figure, Row, measured


def copies(sizes: list[int], device: jax.Device, effort: Effort) -> Iterator[Row]:
    """Device copy, host to device, device to host, for each size in bytes (multiples of 4)."""
    copy = jax.jit(jnp.copy)
    one = Effort(effort.repeats, effort.seconds, effort.burn_in, 0)
    for size in sizes:
        host = [np.random.default_rng(i).standard_normal(size // 4).astype(np.float32) for i in range(2)]
        arrays = [jax.device_put(x, device, may_alias=False) for x in host]
        yield row("device copy", size, 2 * size, time_calls(functools.partial(copy_one, copy, arrays), effort))
        to_device = time_calls(functools.partial(send_one, host, device), one)
        yield row("host to device", size, size, to_device)
        yield row("device to host", size, size, [fetch_seconds(copy(arrays[i % 2])) for i in range(one.repeats)])


def copy_one(copy: Callable[[jax.Array], jax.Array], arrays: list[jax.Array], number: int) -> jax.Array:
    return copy(arrays[number % len(arrays)])


def send_one(arrays: list[np.ndarray], device: jax.Device, number: int) -> jax.Array:
    """Without may_alias=False the array would be the host's own memory where the device is a CPU."""
    return jax.device_put(arrays[number % len(arrays)], device, may_alias=False)


def fetch_seconds(fresh: jax.Array) -> float:
    """Of a device array that was never on the host: JAX keeps what it has fetched once."""
    fresh.block_until_ready()
    start = time.perf_counter()
    np.array(fresh, copy=True)
    return time.perf_counter() - start


def row(what: str, size: int, moved: int, seconds: list[float]) -> Row:
    figures = {
        "bytes_per_second": measured([moved / s for s in seconds], "bytes/s"),
        "seconds": measured(seconds, "s"),
        "bytes_moved": Figure(value=moved, unit="bytes", basis="predicted"),
    }
    return Row(labels={"what": what, "bytes": size}, figures=figures)
