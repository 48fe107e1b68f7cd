"""What is done about steps that cannot be right: stop, leave the update out, go back; and computing steps twice."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxscale import config as cfg
from jaxscale.checkpoint.fingerprint import device_sums, named_leaves, same_blocks
from jaxscale.cluster.codes import CORRUPT
from jaxscale.objectives.token_sums import model_arguments
from jaxscale.training import pipeline
from jaxscale.training.journal import Journal
from jaxscale.training.stages import has_stages
from jaxscale.training.step import Program, all_parameters

MOST_IN_A_ROW = 100  # updates left out, one after the other: nothing is being learnt
FIXES = {
    "nonfinite": "lower optimizer.learning_rate, or set on_nonfinite=skip to leave out such updates",
    "spike": "lower optimizer.learning_rate, or set guard.on_spike to skip or rollback",
}


class Rollback(Exception):
    """A bad step whose policy is to go back to the last checkpoint, and not to read its batches again."""

    def __init__(self, step: int, cause: str):
        super().__init__(cause)
        self.step = step


class Corrupt(ValueError):
    """Two computations of one step differ, or two copies of one array."""

    code = CORRUPT


class Guard:
    """Judges each step's metrics on the host, alike on every process; counts what it did."""

    def __init__(self, config: cfg.Config, program: Program, mesh: Mesh, journal: Journal):
        self.config, self.program, self.mesh, self.journal = config, program, mesh, journal
        self.skipped = self.in_a_row = 0
        self.rollbacks = 0
        self.sums = self.make_sums() if config.guard.recompute_every else None

    def judge(self, step: int, values: dict[str, float], saved: int | None) -> None:
        """Raises ValueError to stop, Rollback to go back; says which updates the step has left out."""
        finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        if finite and not values.get("spike"):
            self.in_a_row = 0
            return
        kind = "spike" if finite else "nonfinite"
        policy = self.config.guard.on_spike if finite else self.config.on_nonfinite
        what = f"loss {values['loss']}, gradient norm {values['grad_norm']}"
        what += f", {self.config.guard.spike:g} deviations above the recent mean or more" if finite else ""
        self.in_a_row += 1
        if policy == "skip" and self.in_a_row < MOST_IN_A_ROW:
            self.skipped += 1
            line = f"step {step}: {what}; update skipped ({self.skipped} so far)"
            self.journal.record(kind, step, values, line=line)
            return
        self.journal.record(kind, step, values)
        if policy == "rollback" and saved and self.rollbacks < self.config.guard.max_rollbacks:
            self.rollbacks += 1
            raise Rollback(step, what)
        last = f"the last good checkpoint is step {saved}" if saved else "there is no checkpoint yet"
        tried = f" after {self.rollbacks} rollbacks" if self.rollbacks else ""
        tried += f" after {self.in_a_row - 1} updates left out in a row" if policy == "skip" else ""
        raise ValueError(f"{what} at step {step}: stopped{tried}; {last}; {FIXES[kind]}")

    # --- silent data corruption

    def make_sums(self) -> Any:
        """(state, batch) -> sums of every device's blocks: of the state before, of the activations before the last
        matmul (nothing has been averaged over the batch yet), and of the state after the step."""
        assert hasattr(self.program.step, "lower"), "one from a file is refused where it is loaded"

        def sums(state: Any, batch: Any) -> dict[str, jax.Array]:
            activations = self.activations(all_parameters(state, state.params), batch)
            after, metrics = self.program.step(state, batch)
            return {
                "state before": device_sums(state, self.mesh),
                "activations": device_sums(activations, self.mesh),
                "state after": device_sums((after, metrics), self.mesh),
            }

        return jax.jit(sums)

    def activations(self, params: Any, batch: Any) -> jax.Array:
        """What the last matmul reads, of the first microbatch; of a pipeline what each stage gives."""
        if has_stages():
            return pipeline.outputs(self.config, self.program.merge, params, batch)
        model = self.program.merge(params)
        model.eval()
        part = jax.tree.map(lambda x: x[0], batch)
        hidden: jax.Array = getattr(model, "hidden", model)(part["tokens"], **model_arguments(model, part, None))
        return hidden

    def recompute(self, step: int, state: Any, batch: Any) -> None:
        """Compute the next step twice, and compare bit by bit, on each device.

        Raises Corrupt with the processes whose devices differ; costs two more steps, and no update is applied.
        """
        assert self.sums is not None
        first, second = (jax.device_get(self.sums(state, batch)) for _ in range(2))
        names = list(named_leaves(state))
        for i, (name, leaf) in enumerate(named_leaves(state).items()):
            for group in same_blocks(leaf, self.mesh):
                odd = minority(first["state before"][i], group)
                if odd:
                    raise Corrupt(f"step {step}: copies of {name} differ: {self.owners(odd)}")
        for what in ("activations", "state after"):
            differ = np.argwhere(first[what] != second[what])
            if len(differ):
                arrays, places = sorted({int(i) for i, _ in differ}), sorted({int(p) for _, p in differ})
                where = names[arrays[0]] if what == "state after" and arrays[0] < len(names) else what
                raise Corrupt(f"step {step} computed twice differs in {where}: {self.owners(places)}")
        self.journal.record("recomputed", step, {"arrays": len(names)})

    def owners(self, places: list[int]) -> str:
        """`process 1 (cpu:2, cpu:3)` of places in the mesh; all of them: no process can be told from the others."""
        devices = list(self.mesh.devices.flat)
        if len(places) == len(devices) > 1:
            return "on all devices, so the cause was spread by a collective before it was seen"
        by_process: dict[int, list[str]] = {}
        for place in places:
            device = devices[place]
            by_process.setdefault(device.process_index, []).append(f"{device.platform}:{device.id}")
        return ", ".join(f"process {rank} ({', '.join(names)})" for rank, names in sorted(by_process.items()))


def minority(sums: np.ndarray, group: list[int]) -> list[int]:
    """Places of the group whose sum is not the one that most have; all, where there is no such one."""
    values, counts = np.unique(sums[group], return_counts=True)
    if len(values) == 1:
        return []
    usual = values[counts.argmax()] if (counts == counts.max()).sum() == 1 else None
    return [place for place in group if usual is None or sums[place] != usual]
