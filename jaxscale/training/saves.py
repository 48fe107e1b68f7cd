"""What a run does about its saves: one at a time, and only the last one's failure is an error."""

from typing import Any

from jaxscale import config as cfg
from jaxscale.checkpoint.checkpointer import Checkpointer, Unsaved
from jaxscale.training.journal import Journal
from jaxscale.training.step import TrainState


class Saves:
    """`newest` is the newest checkpoint's step, which may be being written; None where there is none."""

    def __init__(self, config: cfg.Config, checkpointer: Checkpointer, journal: Journal):
        self.config, self.checkpointer, self.journal = config, checkpointer, journal
        self.newest: int | None = None

    def save(self, state: TrainState, step: int, data: dict[str, Any], *, last: bool = False) -> None:
        """Start a checkpoint; one that cannot be written is told of, and only the last one's failure is an error.

        Args:
            data: what the steps so far have read, as the checkpoint keeps it.
        """
        failed = ""
        with self.journal.during("checkpoint", step):
            if step and step != self.newest:
                if late := self.checkpointer.still_writing():
                    self.journal.say(f"{late}: step {step} waits for it before it is saved")
                if failed := self.checkpointer.settle():
                    self.tell_unsaved(failed)
                try:
                    seconds = self.checkpointer.save(step, state, self.config, data)
                    self.newest, failed = step, ""
                    self.journal.record("checkpoint", step, {"blocking_seconds": seconds})
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
        self.journal.say(f"{failed}; training goes on, {self.last_good()}")

    def last_good(self) -> str:
        good = self.checkpointer.good
        return f"the last good checkpoint is step {good}" if good else "there is no checkpoint yet"
