"""What a run does about its saves: one at a time, and only the last one's failure is an error."""

from typing import Any

from jaxscale import config as cfg
from jaxscale.checkpoint.checkpointer import Checkpointer, Unsaved
from jaxscale.training.events import Events
from jaxscale.training.step import TrainState
from jaxscale.training.watcher import Watcher
from jaxscale.training.writer import MetricsWriter


class Saves:
    """`newest` is the newest checkpoint's step, which may be being written; None where there is none."""

    def __init__(self, config: cfg.Config, checkpointer: Checkpointer, watcher: Watcher, events: Events):
        self.config, self.checkpointer, self.watcher, self.events = config, checkpointer, watcher, events
        self.newest: int | None = None

    def save(
        self, state: TrainState, step: int, data: dict[str, Any], writer: MetricsWriter, *, last: bool = False
    ) -> None:
        """Start a checkpoint; one that cannot be written is told of, and only the last one's failure is an error.

        Args:
            data: what the steps so far have read, as the checkpoint keeps it.
        """
        failed = ""
        with self.events.during("checkpoint", step):
            if step and step != self.newest:
                if late := self.checkpointer.still_writing():
                    self.watcher.say(f"{late}: step {step} waits for it before it is saved")
                if failed := self.checkpointer.settle():
                    self.tell_unsaved(failed)
                try:
                    seconds = self.checkpointer.save(step, state, self.config, data)
                    self.newest, failed = step, ""
                    writer.write("checkpoint", step, {"blocking_seconds": seconds})
                except Unsaved as error:
                    failed = str(error)
            if last:
                failed = failed or self.checkpointer.settle()
            elif failed:
                self.tell_unsaved(failed)
        if failed and last:
            raise ValueError(f"{failed}; {self.last_good()}; make room, and the same command goes on from there")

    def tell_unsaved(self, failed: str) -> None:
        self.newest = self.checkpointer.good
        self.watcher.say(f"{failed}; training goes on, {self.last_good()}")

    def last_good(self) -> str:
        good = self.checkpointer.good
        return f"the last good checkpoint is step {good}" if good else "there is no checkpoint yet"
