"""The denominator of MFU: what the devices could do at most, and who says so."""

import functools
import time
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.hardware.chips import find_chip
from jaxscale.process.quiet import quiet_plugins


@dataclass(frozen=True)
class Peak:
    """FLOP/s that all devices of the mesh could do together, and where the figure is from.

    Attributes:
        measured: in this process, so that it may be too low: the machine may have been busy.
    """

    flops_per_second: float
    source: str
    measured: bool = False


def find_peak(devices: list[jax.Device], dtype: str) -> Peak | None:
    """The denominator of MFU: published for a known chip, measured on a CPU, None for anything else.

    Published peaks are dense bfloat16, or float16 where the chip has no bfloat16; float32 compute on an accelerator has
    none here, rather than a wrong one.
    """
    kind, platform = devices[0].device_kind, devices[0].platform
    if platform == "cpu":
        return first_measured(devices[0], dtype)
    chip = find_chip(kind)
    if chip is None or dtype != "bfloat16":
        return None
    source = f"{len(devices)} x {kind}, dense {chip.dtype}, {chip.source}"
    return Peak(chip.bf16_flops / chip.devices * len(devices), source)


def devices_here() -> tuple[list[jax.Device], Peak | None]:
    """All devices that JAX finds, and their peak in the dtype that they train in by default."""
    with quiet_plugins():
        devices = jax.devices()
    return devices, find_peak(devices, "float32" if devices[0].platform == "cpu" else "bfloat16")


@functools.cache
def first_measured(device: jax.Device, dtype: str) -> Peak:
    """The peak as it is measured first: several runs of one process share it."""
    return measure_peak(device, dtype)


def measure_peak(device: jax.Device, dtype: str, *, sizes: tuple[int, ...] = (1024, 1536), repeats: int = 4) -> Peak:
    """Best FLOP/s of square matmuls on one CPU device, which uses every core: also the peak of simulated ones."""
    best, best_size = 0.0, 0
    with jax.default_device(device):
        for n in sizes:
            numbers = np.random.default_rng(0).standard_normal((2, n, n), np.float32)  # JAX's would be compiled first
            a, b = (jnp.asarray(one, jnp.dtype(dtype)) for one in numbers)
            multiply = jax.jit(jnp.matmul).lower(a, b).compile()
            multiply(a, b).block_until_ready()
            for _ in range(repeats):
                start = time.perf_counter()
                multiply(a, b).block_until_ready()
                rate = 2 * n**3 / (time.perf_counter() - start)
                best, best_size = max((best, best_size), (rate, n))
    return Peak(best, f"best {dtype} matmul measured in this process, {best_size} square, all cores", measured=True)


def measure_again(peak: Peak, device: jax.Device, dtype: str) -> Peak:
    """The higher of a measured peak and a new measurement: what slows a matmul down is the rest of the machine."""
    assert peak.measured
    again = measure_peak(device, dtype)
    if again.flops_per_second <= peak.flops_per_second:
        return peak
    first = f"the first measurement gave {peak.flops_per_second / 1e12:,.3g} TFLOP/s"
    return replace(again, source=f"{again.source}; {first}")


def why_withheld(share: float, peak: Peak) -> str | None:
    """Why a share of a peak is not given; None where it can be."""
    if share <= 1:
        return None
    cause = "was measured on a busy machine" if peak.measured else "is not this chip's, or the clock is wrong"
    return f"withheld: {share:.3g} times the peak cannot be; the peak ({peak.source}) {cause}"
