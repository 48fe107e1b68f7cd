"""Parameters of a checkpoint, block by block, read without devices: what nobody looks at is not read."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale import private
from jaxscale.checkpoint.inventory import find_place, inventory, steps_of
from jaxscale.checkpoint.object_store import reach
from jaxscale.checkpoint.verify import SECONDS, in_short, open_array, read_meta
from jaxscale.training.older import FORMAT

Index = tuple[slice, ...]


class Stored:
    """The parameters that a run is used by: averaged where it keeps an average; of replicas their outer ones.

    Raises ValueError where there is no such checkpoint, or it cannot be read.

    Attributes:
        step: of the checkpoint; `config`: of the run that saved it, as values.
        identity: a hash of all that the checkpoint says of itself, sums of its arrays among it.
    """

    def __init__(self, run: str | Path, step: int | None = None):
        self.place = find_place(str(run))
        steps = steps_of(inventory(self.place))
        if not steps or (step is not None and step not in steps):
            what = "no checkpoint" if step is None or not steps else f"no checkpoint of step {step}"
            raise ValueError(f"{run} has {what}; it has {steps or 'none'}")
        self.step = steps[-1] if step is None else step
        directory = self.place / str(self.step)
        meta, cause = read_meta(directory)
        if meta is None:
            raise ValueError(f"checkpoint {self.step} of {run} cannot be read ({cause})")
        if meta.get("format") != FORMAT:
            raise ValueError(
                f"checkpoint {self.step} of {run} was made by an earlier version; train it a step further first"
            )
        self.config: dict[str, Any] = meta["config"]
        self.identity = hashlib.sha256(json.dumps(meta, sort_keys=True, default=str).encode()).hexdigest()
        self.names, self.state = set(meta["state"]), reach(directory / "state")
        self.context, self.open = private.find("tensorstore_context")(), dict[str, Any]()
        self.decay: float | None = self.config["optimizer"].get("ema")
        self.trained = "outer.params" if any(n.startswith("outer.params.") for n in self.names) else "params"

    def block(self, path: tuple[str, ...], index: Index) -> np.ndarray:
        """A block of a parameter, as it was saved; float32 where it is an average."""
        name = ".".join(path)
        for part in ("frozen", "router_bias"):
            if f"{part}.{name}" in self.names:
                return self.read(f"{part}.{name}", index)
        block = self.read(f"{self.trained}.{name}", index)
        if not self.decay or f"ema.{name}" not in self.names:
            return block
        # what the average lacks after so many steps: `training.average`
        return self.read(f"ema.{name}", index) + np.float32(self.decay**self.step) * block.astype(np.float32)

    def read(self, name: str, index: Index) -> np.ndarray:
        try:
            if name not in self.open:
                self.open[name] = open_array(self.state, name, self.context)
            block: np.ndarray = self.open[name][index].read().result(SECONDS)
        except Exception as error:  # tensorstore says "damaged" in many ways
            raise ValueError(
                f"checkpoint {self.step} of {self.place}: {name} cannot be read ({in_short(error)})"
            ) from None
        return block
