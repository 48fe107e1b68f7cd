"""How time is taken: dispatch is asynchronous, so the clock stops when the result is there; burn-in stands apart."""

import math
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from jaxscale.bench.record import Label, Row

SOURCE = "host clock, blocking on the result"


@dataclass(frozen=True)
class Effort:
    """How much is measured of one case.

    Attributes:
        repeats: samples at most; `seconds`: no further sample once so much time went by (three there are always).
        burn_in: calls before the first sample (the first one compiles).
        shortest: a sample is as many calls as take this long; they are dispatched together, so that the cost of
            dispatch is hidden by the device's work. 0: one call a sample.
    """

    repeats: int = 20
    seconds: float = 2.0
    burn_in: int = 3
    shortest: float = 5e-3


def attempt(labels: dict[str, Label], case: Callable[[], Row]) -> Row:
    """The row of a case; where it runs out of memory, one that says so, as the other cases are still wanted."""
    try:
        return case()
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        return Row(labels=labels, error=" ".join((str(error) or type(error).__name__).split())[:300])


def time_calls(call: Callable[[int], Any], effort: Effort) -> list[float]:
    """Seconds of one `call(i)`, i = 0, 1, ...: samples, each of one or more calls that are waited for together."""
    for i in range(effort.burn_in):
        jax.block_until_ready(call(i))
    done = effort.burn_in
    once = seconds_of(call, done, 1)
    calls = max(1, math.ceil(effort.shortest / max(once, 1e-9)))
    samples: list[float] = []
    began = time.perf_counter()
    while len(samples) < effort.repeats:
        done += calls
        samples.append(seconds_of(call, done, calls) / calls)
        if len(samples) >= 3 and time.perf_counter() - began > effort.seconds:
            break
    return samples


def seconds_of(call: Callable[[int], Any], first: int, calls: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready([call(first + i) for i in range(calls)])
    return time.perf_counter() - start


# --- the device's own clock -----------------------------------------------------------------------------------


def device_seconds(call: Callable[[int], Any], calls: int = 10) -> float | None:
    """Seconds of one call by the device's own clock: how long anything ran on it, from a trace of several calls.

    None on a CPU, and where the trace has no device in it: there is only the host's clock then.
    """
    if jax.default_backend() == "cpu":
        return None
    jax.block_until_ready(call(0))
    with tempfile.TemporaryDirectory(prefix="jaxscale-bench-") as folder:
        with trace(Path(folder)):
            jax.block_until_ready([call(i) for i in range(calls)])
        busy = [busy_seconds(device_spans(plane)) for plane in device_planes(read_planes(Path(folder)))]
    return max(busy, default=0.0) / calls or None


def trace(folder: Path) -> Any:
    """A profiler trace of what is done inside, without Python's own calls."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return jax.profiler.trace(str(folder), profiler_options=options)


def read_planes(folder: Path) -> list[Any]:
    """Of the newest trace under `folder`. Raises ValueError where there is none."""
    files = sorted(folder.rglob("*.xplane.pb"), key=lambda p: p.stat().st_mtime)
    if not files:
        raise ValueError(f"no profiler trace (*.xplane.pb) under {folder}")
    return list(ProfileData.from_file(str(files[-1])).planes)


def device_planes(planes: list[Any]) -> list[Any]:
    return [p for p in planes if re.match(r"/device:(GPU|TPU)", p.name)]


def device_lines(plane: Any) -> list[Any]:
    """Streams of a GPU, or the lines `XLA Ops` and `Async XLA Ops` of a TPU."""
    return [line for line in plane.lines if re.match(r"Stream|XLA Ops|Async XLA Ops", line.name)]


def device_spans(plane: Any) -> list[tuple[float, float]]:
    return [(e.start_ns, e.start_ns + e.duration_ns) for line in device_lines(plane) for e in line.events]


def busy_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans in nanoseconds, in seconds."""
    total, until = 0.0, -math.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 1e9
