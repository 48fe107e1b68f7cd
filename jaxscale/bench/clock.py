"""How time is taken: dispatch is asynchronous, so the clock stops when the result is there; burn-in stands apart."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

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
