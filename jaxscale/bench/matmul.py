"""Achieved FLOP/s of matmuls: over shapes and dtypes, the best one that can be found, and those of a model.

Operands are random (zeros draw less power, and clocks rise), and rotate over sets that together exceed the caches.
"""

import functools
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale import config as cfg
from jaxscale.bench.clock import Effort, attempt, device_seconds, time_calls
from jaxscale.bench.record import Figure, Label, Row, measured
from jaxscale.predict import costs

COLD_BYTES = 2**28  # more than the last cache of any device here
Dims = tuple[tuple[int, ...], tuple[int, ...]]
# x[M, K] · w[K, N] and the two matmuls of its backward pass: operands' shapes, and the dims they contract
PASSES = {
    "forward": (lambda m, k, n: ((m, k), (k, n)), ((1,), (0,))),
    "backward wrt x": (lambda m, k, n: ((m, n), (k, n)), ((1,), (1,))),
    "backward wrt w": (lambda m, k, n: ((m, k), (m, n)), ((0,), (0,))),
}


@dataclass(frozen=True)
class Shape:
    """x[m, k] · w[k, n] in one dtype, or one of the matmuls of its backward pass."""

    m: int
    k: int
    n: int
    dtype: str = "bfloat16"
    which: str = "forward"

    @property
    def labels(self) -> dict[str, Label]:
        return {"m": self.m, "k": self.k, "n": self.n, "dtype": self.dtype}

    @property
    def flops(self) -> float:
        return 2.0 * self.m * self.k * self.n

    @property
    def bytes(self) -> int:
        """Both operands read and the result written, once each."""
        return (self.m * self.k + self.k * self.n + self.m * self.n) * jnp.dtype(self.dtype).itemsize


class Pool:
    """Random numbers made once on the host, from which operands are cut: nothing is compiled for a new shape."""

    def __init__(self, device: jax.Device):
        self.device = device
        self.made: dict[str, np.ndarray] = {}

    def numbers(self, dtype: str) -> np.ndarray:
        if dtype not in self.made:
            size = COLD_BYTES // jnp.dtype(dtype).itemsize // 2
            self.made[dtype] = np.random.default_rng(0).standard_normal(size, np.float32).astype(jnp.dtype(dtype))
        return self.made[dtype]

    def cut(self, shape: tuple[int, ...], dtype: str, number: int) -> jax.Array:
        """The `number`th array of this shape; numbers repeat where the pool is smaller than what is asked for."""
        numbers, size = self.numbers(dtype), math.prod(shape)
        start = (number * size) % numbers.size
        cut = (
            np.resize(np.roll(numbers, -start), size) if start + size > numbers.size else numbers[start : start + size]
        )
        return jax.device_put(cut.reshape(shape), self.device, may_alias=False)


@functools.cache
def multiply(contract: Dims, dtype: str):
    return jax.jit(lambda a, b: jax.lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=dtype))


def prepared(shape: Shape, pool: Pool) -> Callable[[int], jax.Array]:
    """The matmul of a shape, its i-th call on another set of operands than the one before."""
    operands, contract = PASSES[shape.which]
    sets = max(1, min(8, -(-COLD_BYTES // shape.bytes)))
    a_shape, b_shape = operands(shape.m, shape.k, shape.n)
    pairs = [(pool.cut(a_shape, shape.dtype, 2 * i), pool.cut(b_shape, shape.dtype, 2 * i + 1)) for i in range(sets)]
    run = multiply(contract, shape.dtype)
    return lambda i: run(*pairs[i % sets])


def time_matmul(shape: Shape, pool: Pool, effort: Effort) -> list[float]:
    """Seconds of one matmul: samples."""
    return time_calls(prepared(shape, pool), effort)


def full_row(shape: Shape, pool: Pool, peak: float | None, effort: Effort, **labels: Label) -> Row:
    """A row with the device's own clock beside the host's, where it has one."""
    call = prepared(shape, pool)
    row = matmul_row(shape, time_calls(call, effort), peak, **labels)
    if device_time := device_seconds(call):
        figures = row.figures | {"device_clock_seconds": Figure(value=device_time, unit="s")}
        return row.model_copy(update={"figures": figures})
    return row


def matmul_row(shape: Shape, seconds: list[float], peak: float | None, **labels: Label) -> Row:
    """A row of figures; utilization only where there is a peak (FLOP/s of one device)."""
    rates = [shape.flops / s for s in seconds]
    figures = {
        "flops_per_second": measured(rates, "FLOP/s"),
        "mean_flops_per_second": Figure(value=statistics.fmean(rates), unit="FLOP/s"),
        "best_flops_per_second": Figure(value=max(rates), unit="FLOP/s"),
        "seconds": measured(seconds, "s"),
        "flops": Figure(value=shape.flops, unit="FLOPs", basis="predicted"),
        "bytes": Figure(value=shape.bytes, unit="bytes", basis="predicted"),
        "intensity": Figure(value=shape.flops / shape.bytes, unit="FLOPs/byte", basis="predicted"),
    }
    if peak:
        figures["share_of_peak"] = measured([r / peak for r in rates], "share")
    return Row(labels=labels | shape.labels, figures=figures)


def sweep_shapes(shapes: list[Shape], device: jax.Device, peak: float | None, effort: Effort) -> Iterator[Row]:
    pool = Pool(device)
    for shape in shapes:
        yield attempt(shape.labels, functools.partial(full_row, shape, pool, peak, effort))


# --- the best that can be found -------------------------------------------------------------------------------

GRIDS = {"cpu": (256, 384, 512, 768, 1024, 1536, 2048), "other": tuple(range(1024, 17 * 1024, 1024))}


def search(
    device: jax.Device, dtype: str, peak: float | None, *, seconds: float, effort: Effort, seed: int = 0
) -> Iterator[Row]:
    """Look for the shape with the highest FLOP/s, after the idea of Bekman's mamf-finder (ml-engineering).

    Half of `seconds` goes to shapes drawn at random, the rest to neighbours of the best; the five best are then
    measured again in full (stage `best`), as the highest of many short measurements is luck in part.
    """
    pool, chance = Pool(device), random.Random(seed)
    grid = GRIDS.get(device.platform, GRIDS["other"])
    quick = Effort(repeats=5, seconds=seconds / 40, burn_in=2, shortest=effort.shortest)
    every = list(itertools.product(grid, repeat=3))
    chance.shuffle(every)
    tried: dict[tuple[int, ...], float] = {}  # shape -> seconds a FLOP
    pool.numbers(dtype)  # made before the clock runs
    began = time.perf_counter()

    def measure(mkn: tuple[int, ...]) -> Row:
        samples = time_matmul(shape_of(mkn, dtype), pool, quick)
        tried[mkn] = statistics.median(samples) / shape_of(mkn, dtype).flops
        return matmul_row(shape_of(mkn, dtype), samples, peak, stage="tried")

    def look(mkn: tuple[int, ...]) -> Row:
        tried[mkn] = math.inf  # until it is measured; if it does not fit, for ever
        labels: dict[str, Label] = {"stage": "tried", **shape_of(mkn, dtype).labels}
        return attempt(labels, lambda: measure(mkn))

    for mkn in every:
        if time.perf_counter() - began > seconds / 2:
            break
        yield look(mkn)
    while time.perf_counter() - began < seconds:
        open_ones = [n for best in sorted(tried, key=tried.__getitem__)[:3] for n in neighbours(best, grid)]
        fresh = [n for n in open_ones if n not in tried]
        if not fresh:
            break
        yield look(fresh[0])
    fitting = [mkn for mkn in tried if tried[mkn] < math.inf]
    for mkn in sorted(fitting, key=tried.__getitem__)[:5]:
        yield full_row(shape_of(mkn, dtype), pool, peak, effort, stage="best")


def shape_of(mkn: tuple[int, ...], dtype: str) -> Shape:
    m, k, n = mkn
    return Shape(m, k, n, dtype)


def neighbours(mkn: tuple[int, ...], grid: tuple[int, ...]) -> list[tuple[int, ...]]:
    """One dim a step up or down in the grid."""
    shapes = []
    for dim, by in itertools.product(range(3), (1, -1)):
        place = grid.index(mkn[dim]) + by
        if 0 <= place < len(grid):
            shapes.append((*mkn[:dim], grid[place], *mkn[dim + 1 :]))
    return shapes


def best_row(rows: list[Row]) -> Row:
    """Of a search: the highest median FLOP/s among those measured in full. Raises ValueError where none was."""
    full = [r for r in rows if r.labels.get("stage") == "best"]
    if not full:
        raise ValueError("no shape of the search could be measured")
    return max(full, key=lambda r: r.figures["flops_per_second"].value)


# --- the matmuls of a model -----------------------------------------------------------------------------------


def model_matmuls(
    config: cfg.Config, sizes: dict[str, int], device: jax.Device, peak: float | None, effort: Effort
) -> Iterator[Row]:
    """Every matmul of one device in a step of `config` on a mesh, forward and backward, as often as a step does it.

    The last row is the ceiling that they leave: all their FLOPs over all their seconds, each as often as in a step.
    Attention's matmuls are its kernel's (`bench attention`).

    Args:
        sizes: mesh axis -> size; the device's part of each matmul follows from it.
    """
    pool, dtype = Pool(device), config.step.compute_dtype
    flops, seconds = 0.0, [0.0] * effort.repeats
    measured_before: dict[Shape, list[float]] = {}
    for m in costs.matmuls(config, sizes):
        runs = {
            "forward": m.forward + m.recomputed,
            "backward wrt x": m.backward // 2,
            "backward wrt w": m.backward // 2,
        }
        for which, count in runs.items():
            shape = Shape(m.m, m.k, m.n, dtype, which)
            samples = measured_before.get(shape) or time_matmul(shape, pool, effort)
            measured_before[shape] = samples
            row = matmul_row(shape, samples, peak, matmul=m.name, **{"pass": which})
            yield row.model_copy(
                update={"figures": row.figures | {"runs": Figure(value=count, unit="count", basis="predicted")}}
            )
            flops += count * shape.flops
            seconds = [total + count * s for total, s in zip(seconds, samples, strict=False)]
    ceiling = {
        "flops_per_second": measured([flops / s for s in seconds], "FLOP/s"),
        "seconds": measured(seconds, "s"),
        "flops": Figure(value=flops, unit="FLOPs", basis="predicted"),
    }
    if peak:
        ceiling["share_of_peak"] = measured([flops / s / peak for s in seconds], "share")
    yield Row(labels={"what": "model-shaped peak"}, figures=ceiling)
