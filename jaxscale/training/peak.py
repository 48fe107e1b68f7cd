"""The denominator of MFU: what the devices could do at most, and who says so."""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxscale.hardware import find_chip


@dataclass(frozen=True)
class Peak:
    """FLOP/s that all devices of the mesh could do together, and where the figure is from."""

    flops_per_second: float
    source: str


def find_peak(devices: list[jax.Device], dtype: str) -> Peak | None:
    """The denominator of MFU: published for a known chip, measured on a CPU, None for anything else.

    Published peaks are dense bfloat16, or float16 where the chip has no bfloat16; float32 compute on an accelerator has
    none here, rather than a wrong one.
    """
    kind, platform = devices[0].device_kind, devices[0].platform
    if platform == "cpu":
        return measure_peak(devices[0], dtype)
    chip = find_chip(kind)
    if chip is None or dtype != "bfloat16":
        return None
    source = f"{len(devices)} x {kind}, dense {chip.dtype}, {chip.source}"
    return Peak(chip.bf16_flops / chip.devices * len(devices), source)


def measure_peak(device: jax.Device, dtype: str, *, sizes: tuple[int, ...] = (1024, 1536), repeats: int = 4) -> Peak:
    """Best FLOP/s of square matmuls on one CPU device, which uses every core: also the peak of simulated ones."""
    best, best_size = 0.0, 0
    with jax.default_device(device):
        for n in sizes:
            a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.dtype(dtype)) for i in range(2))
            multiply = jax.jit(jnp.matmul).lower(a, b).compile()
            multiply(a, b).block_until_ready()
            for _ in range(repeats):
                start = time.perf_counter()
                multiply(a, b).block_until_ready()
                rate = 2 * n**3 / (time.perf_counter() - start)
                best, best_size = max((best, best_size), (rate, n))
    return Peak(best, f"best {dtype} matmul measured in this process, {best_size} square, all cores")
