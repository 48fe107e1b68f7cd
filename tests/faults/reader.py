"""Reading what a run has saved, on one device, every array compared with the sum of its bits."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxscale import config as cfg
from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.checkpoint.fingerprint import named_leaves
from jaxscale.checkpoint.metadata import require_unchanged
from jaxscale.training.build import build


class Reader:
    """Reads checkpoints of any run of this config's model and optimizer."""

    def __init__(self, config: cfg.Config):
        self.config = config
        one = config.model_copy(update={"mesh": cfg.Mesh(data=1)})
        self.setup = build(one, jax.devices()[:1])
        self.program = self.setup.program
        self.state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.program.abstract))

    def read(self, out: Path, step: int) -> Any:
        """The state; raises whatever reading a damaged checkpoint raises."""
        with self.setup.context():
            checkpointer = Checkpointer(out / "checkpoints")
            try:
                state = checkpointer.restore(step, self.program.abstract)
                require_unchanged(state, checkpointer.meta(step))
                return state
            finally:
                checkpointer.close()

    def whole(self, out: Path, steps: list[int]) -> list[int]:
        """Those of the checkpoints that can be read."""
        found = []
        for step in steps:
            try:
                self.read(out, step)
            except Exception:  # each library has its own ways to say "damaged"
                continue
            found.append(step)
        return found

    def arrays(self, out: Path, step: int) -> dict[str, np.ndarray]:
        return {name: np.asarray(x) for name, x in named_leaves(self.read(out, step)).items()}


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest, beside the array's largest element."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30))
