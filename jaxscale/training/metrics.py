"""What a run tells about itself: step times, tokens/s, MFU with its convention and peak."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxscale import config as cfg
from jaxscale.objectives import make_objective
from jaxscale.predict.costs import train_flops_per_token
from jaxscale.training.peak import Peak, why_withheld


@dataclass(frozen=True)
class Speed:
    """Measured over some steps.

    Attributes:
        tokens_per_second: of all positions of a batch, padding included.
        mfu: None where there is no peak or no formula for the model, and where `mfu_withheld` says why.
    """

    step_seconds: float  # median
    step_seconds_p95: float
    tokens_per_second: float
    data_wait_seconds: float  # median
    mfu: float | None
    mfu_withheld: str | None = None


class Meter:
    """Collects step times and turns them into a `Speed`."""

    def __init__(self, config: cfg.Config, peak: Peak | None, flops_per_token: float | None):
        self.tokens = config.data.batch_size * config.data.seq_len
        self.sampled = config.objective.samples
        self.peak, self.flops_per_token = peak, flops_per_token
        self.seconds: list[float] = []
        self.waits: list[float] = []

    def add(self, step_seconds: float, data_wait_seconds: float) -> None:
        """Of a run that trains on samples, the wait for its batch is sampling: a part of the step."""
        self.seconds.append(step_seconds + data_wait_seconds * self.sampled)
        self.waits.append(data_wait_seconds)

    def speed(self, last: int | None = None) -> Speed | None:
        """Over the last steps (None: all). None before the first one is timed."""
        seconds = self.seconds[-last:] if last else self.seconds
        if not seconds:
            return None
        median = float(np.median(seconds))
        rate = self.tokens / median
        mfu = self.flops_per_token * rate / self.peak.flops_per_second if self.peak and self.flops_per_token else None
        waits = self.waits[-last:] if last else self.waits
        withheld = None if mfu is None or self.peak is None else why_withheld(mfu, self.peak)
        mfu = None if withheld else mfu
        return Speed(median, float(np.percentile(seconds, 95)), rate, float(np.median(waits)), mfu, withheld)


def model_flops_per_token(config: cfg.Config, model: Any) -> float | None:
    """The decoder's formula, or a model's method `flops_per_token(seq_len)`; and what the objective adds."""
    more = make_objective(config).flops_per_token
    if model is None:
        return train_flops_per_token(config.model, config.data.seq_len, convention=config.metrics.mfu) + more
    method = getattr(model, "flops_per_token", None)
    return float(method(config.data.seq_len)) + more if method else None


def device_memory(devices: list[jax.Device]) -> dict[str, int]:
    """Bytes in use and at most in use on the fullest local device; empty where the device does not tell."""
    stats = [s for d in devices if d.process_index == jax.process_index() and (s := d.memory_stats())]
    names = {"bytes_in_use": "memory_bytes", "peak_bytes_in_use": "peak_memory_bytes"}
    return {
        ours: max(s[theirs] for s in stats)
        for theirs, ours in names.items()
        if stats and all(theirs in s for s in stats)
    }


def speed_figures(speed: Speed | None, devices: list[jax.Device]) -> dict[str, float | str]:
    """What metrics.jsonl says of a step's speed and memory, beside its own seconds."""
    values: dict[str, float | str] = dict(device_memory(devices))
    if speed:
        values |= {
            "step_seconds_median": speed.step_seconds,
            "step_seconds_p95": speed.step_seconds_p95,
            "tokens_per_second": speed.tokens_per_second,
        }
        if speed.mfu is not None:
            values["mfu"] = speed.mfu
        elif speed.mfu_withheld:
            values["mfu_withheld"] = speed.mfu_withheld
    return values
