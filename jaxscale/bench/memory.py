"""Bandwidths of memory: within the device, and between host and device.

A copy on the device reads and writes: its bandwidth counts both, as STREAM does (McCalpin, 1995). A transfer counts its
bytes once.
"""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.bench.clock import Effort, attempt, time_calls
from jaxscale.bench.matmul import COLD_BYTES
from jaxscale.bench.record import Figure, Row, measured


def copies(sizes: list[int], device: jax.Device, effort: Effort) -> Iterator[Row]:
    """Device copy, host to device, device to host, for each size in bytes (multiples of 4)."""
    for size in sizes:
        for what, measure in {
            "device copy": device_copy,
            "host to device": to_device,
            "device to host": to_host,
        }.items():
            yield attempt({"what": what, "bytes": size}, functools.partial(measure, size, device, effort))


def device_copy(size: int, device: jax.Device, effort: Effort) -> Row:
    """Over arrays that together exceed the caches: a small one would be read from there."""
    copy, number = jax.jit(jnp.copy), max(2, COLD_BYTES // size)
    arrays = [jax.device_put(x, device, may_alias=False) for x in random_arrays(size, number)]
    return row("device copy", size, 2 * size, time_calls(functools.partial(copy_one, copy, arrays), effort))


def to_device(size: int, device: jax.Device, effort: Effort) -> Row:
    one = replace(effort, shortest=0)
    samples = time_calls(functools.partial(send_one, random_arrays(size, max(2, COLD_BYTES // size)), device), one)
    return row("host to device", size, size, samples)


def to_host(size: int, device: jax.Device, effort: Effort) -> Row:
    copy = jax.jit(jnp.copy)
    array = jax.device_put(random_arrays(size, 1)[0], device, may_alias=False)
    samples: list[float] = []
    while len(samples) < effort.repeats and (len(samples) < 3 or sum(samples) < effort.seconds):
        samples.append(fetch_seconds(copy(array)))
    return row("device to host", size, size, samples)


def random_arrays(size: int, number: int) -> list[np.ndarray]:
    numbers = np.random.default_rng(0).standard_normal(size // 4 * number, np.float32)
    return list(numbers.reshape(number, size // 4))


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
