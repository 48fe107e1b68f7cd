"""The directories that a run owns, for all of its processes: process 0 holds the locks, and the others hear whether."""

from collections.abc import Callable
from pathlib import Path

import jax

from jaxscale import config as cfg
from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.cluster.start import from_first
from jaxscale.files.lock import Lock
from jaxscale.files.urls import is_url

ENDING_SECONDS = 3.0  # how long the run before may take to end, when it was killed and is started again
ANSWER_SECONDS = 600.0


class Owner:
    """Owns `out` and the directory of the checkpoints, where that is elsewhere; a bucket cannot be locked.

    Raises ValueError on every process where another run owns one of them, or it cannot be written.
    """

    def __init__(self, config: cfg.Config, say: Callable[[str], None]):
        self.locks: list[Lock] = []
        problem = self.take(config, say) if jax.process_index() == 0 else ""
        if problem := from_first("owner", problem, seconds=ANSWER_SECONDS):
            self.close()
            raise ValueError(problem)

    def take(self, config: cfg.Config, say: Callable[[str], None]) -> str:
        """Why the directories cannot be had; "" where all are locked now."""
        for key, directory in owned(config).items():
            try:
                self.locks.append(Lock(directory, patience=ENDING_SECONDS, say=say))
            except ValueError as error:
                return f"{error}; wait for it, stop it, or choose another {key}="
            except OSError as error:
                return f"cannot write to {key}={directory}: {error.strerror}; choose a directory that can be written"
        return ""

    def sign(self) -> None:
        """The run is not refused: it writes from now on."""
        for lock in self.locks:
            lock.sign()

    def close(self) -> None:
        while self.locks:
            self.locks.pop().close()


def owned(config: cfg.Config) -> dict[str, Path]:
    """The setting that names it -> a directory."""
    out, place = config.out_dir, config.checkpoint_place
    if is_url(place) or Path(place).expanduser().resolve() == out.resolve():
        return {"out": out}
    return {"out": out, "checkpoint.directory": Path(place).expanduser()}


def open_checkpoints(config: cfg.Config) -> Checkpointer:
    """Those of the run so far, to be read only."""
    checkpointer = Checkpointer(config.checkpoint_place)
    if not config.checkpoint.resume and checkpointer.steps():
        checkpointer.close()
        raise ValueError(
            f"{config.out} has checkpoints and checkpoint.resume=false; choose another out= (nothing is overwritten)"
        )
    return checkpointer
