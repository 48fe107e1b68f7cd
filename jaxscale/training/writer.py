"""Where a run's figures go: metrics.jsonl, TensorBoard, wandb."""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxscale import config as cfg
from jaxscale import private
from jaxscale.files.jsonl import Lines, read_records
from jaxscale.files.whole import write_whole
from jaxscale.training.wandb_run import WandbRun, require_wandb


class MetricsWriter:
    """metrics.jsonl, TensorBoard and wandb, on process 0; every record has `kind` and `step`."""

    def __init__(self, out: Path, config: cfg.Config, *, start_step: int, say: Callable[[str], None]):
        self.active, self.say = jax.process_index() == 0, say
        if not self.active:
            return
        self.path = out / "metrics.jsonl"
        drop_records_after(self.path, start_step)
        self.file = Lines(self.path, say)
        self.board = open_tensorboard(out, say) if config.metrics.tensorboard else None
        self.wandb = WandbRun(out, config, say) if config.metrics.wandb else None

    def write(
        self, kind: str, step: int, values: Mapping[str, Any], *, plotted: Mapping[str, Any] | None = None
    ) -> None:
        """A record of these values, and the numbers among `plotted` (None: all of them) for TensorBoard and wandb."""
        if not self.active:
            return
        self.file.write({"kind": kind, "step": step, "time": time.time()} | finite(values))
        plots = values if plotted is None else plotted
        numbers = {f"{kind}/{k}": v for k, v in plots.items() if isinstance(v, (int, float))}
        if self.board:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(numbers, step)

    def go_back(self, step: int) -> None:
        """The steps after this one are done again."""
        if self.active:
            self.file.close()
            try:
                drop_records_after(self.path, step)
            except OSError as error:
                self.say(
                    f"{self.path}: the records after step {step} stay ({error.strerror}); there will be two of each"
                )
            self.file = Lines(self.path, self.say)

    def close(self) -> None:
        if not self.active:
            return
        self.file.close()
        if self.board:
            self.board.close()
        if self.wandb:
            self.wandb.finish()


def finite(values: Any) -> Any:
    """The same values as JSON can hold them: a float that is no number is text."""
    if isinstance(values, Mapping):
        return {name: finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return str(values) if isinstance(values, float) and not math.isfinite(values) else values


def require_writers(config: cfg.Config) -> None:
    """Ask whether figures can go where the config wants them, before anything is written. Raises ValueError."""
    if jax.process_index() == 0:
        if config.metrics.tensorboard:
            import_tensorboard()
        if config.metrics.wandb:
            require_wandb()


def import_tensorboard() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except Exception as error:  # it is absent, or what it stands on (protobuf, numpy) does not fit it
        cause = " ".join(str(error).split())
        raise ValueError(
            f"metrics.tensorboard=true: tensorboardX cannot be imported ({cause}); pip install "
            "'tensorboardX>=2.6.2,<2.7', or set metrics.tensorboard=false"
        ) from error
    return SummaryWriter


def open_tensorboard(out: Path, say: Callable[[str], None]) -> Any:
    """TensorBoard's writer, whose thread survives a disk on which it cannot write: without it the queue before that
    thread fills, and the run stands still."""
    board = import_tensorboard()(str(out / "tensorboard"))
    events = private.writer_of_events(board)
    said: list[str] = []

    def surviving(write: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*arguments: Any) -> Any:
            try:
                return write(*arguments)
            except OSError as error:
                if not said:
                    said.append(str(error))
                    say(f"{out / 'tensorboard'} cannot be written ({error.strerror}); the run goes on without")

        return attempt

    for name in ("write_event", "flush", "close"):
        setattr(events, name, surviving(getattr(events, name)))
    return board


def drop_records_after(path: Path, step: int) -> None:
    """A run that resumes from `step` does the later ones again: their first records go, so that a step has one."""
    records = read_records(path)
    kept = [r for r in records if r.get("step", 0) <= step]
    if len(kept) == len(records):
        return
    write_whole(path, "".join(json.dumps(r) + "\n" for r in kept))
