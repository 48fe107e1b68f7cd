"""What a run tells about itself: step times, tokens/s, MFU with its convention and peak, and where they are written."""

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxscale import config as cfg
from jaxscale.analysis.costs import train_flops_per_token
from jaxscale.training.jsonl import read_records
from jaxscale.training.peak import Peak


@dataclass(frozen=True)
class Speed:
    """Measured over some steps; `mfu` is None where there is no peak or no formula for the model."""

    step_seconds: float  # median
    step_seconds_p95: float
    tokens_per_second: float
    data_wait_seconds: float  # median
    mfu: float | None


class Meter:
    """Collects step times and turns them into a `Speed`."""

    def __init__(self, config: cfg.Config, peak: Peak | None, flops_per_token: float | None):
        self.tokens = config.data.batch_size * config.data.seq_len
        self.peak, self.flops_per_token = peak, flops_per_token
        self.seconds: list[float] = []
        self.waits: list[float] = []

    def add(self, step_seconds: float, data_wait_seconds: float) -> None:
        self.seconds.append(step_seconds)
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
        return Speed(median, float(np.percentile(seconds, 95)), rate, float(np.median(waits)), mfu)


def model_flops_per_token(config: cfg.Config, model: Any) -> float | None:
    """The decoder's formula, or what a model of one's own says in `flops_per_token(seq_len)`."""
    if model is None:
        return train_flops_per_token(config.model, config.data.seq_len, convention=config.metrics.mfu)
    own = getattr(model, "flops_per_token", None)
    return float(own(config.data.seq_len)) if own else None


def device_memory(devices: list[jax.Device]) -> dict[str, int]:
    """Bytes in use and at most in use on the fullest local device; empty where the device does not tell."""
    stats = [s for d in devices if d.process_index == jax.process_index() and (s := d.memory_stats())]
    names = {"bytes_in_use": "memory_bytes", "peak_bytes_in_use": "peak_memory_bytes"}
    return {
        ours: max(s[theirs] for s in stats)
        for theirs, ours in names.items()
        if stats and all(theirs in s for s in stats)
    }


class MetricsWriter:
    """metrics.jsonl, TensorBoard and wandb, on process 0; every record has `kind` and `step`."""

    def __init__(self, out: Path, config: cfg.Config, *, start_step: int):
        self.active = jax.process_index() == 0
        if not self.active:
            return
        self.path = out / "metrics.jsonl"
        drop_records_after(self.path, start_step)
        self.file = self.path.open("a", buffering=1)
        self.board = open_tensorboard(out) if config.metrics.tensorboard else None
        self.wandb = open_wandb(out, config) if config.metrics.wandb else None

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        if not self.active:
            return
        finite = {k: (v if not isinstance(v, float) or math.isfinite(v) else str(v)) for k, v in values.items()}
        self.file.write(json.dumps({"kind": kind, "step": step, "time": time.time()} | finite) + "\n")
        numbers = {f"{kind}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
        if self.board:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(numbers, step=step)

    def close(self) -> None:
        if not self.active:
            return
        self.file.close()
        if self.board:
            self.board.close()
        if self.wandb:
            self.wandb.finish()


def open_tensorboard(out: Path) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"))


def open_wandb(out: Path, config: cfg.Config) -> Any:
    try:
        import wandb
    except ImportError:
        raise ValueError(
            "metrics.wandb=true needs wandb: pip install 'jaxscale[wandb]', or set metrics.wandb=false"
        ) from None
    return wandb.init(project="jaxscale", name=config.name, dir=str(out), config=config.model_dump(mode="json"))


def drop_records_after(path: Path, step: int) -> None:
    """A run that resumes from `step` does the later ones again: their first records go, so that a step has one."""
    records = read_records(path)
    kept = [r for r in records if r.get("step", 0) <= step]
    if len(kept) == len(records):
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(r) + "\n" for r in kept))
    os.replace(temporary, path)
