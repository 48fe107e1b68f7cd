"""A pipeline as `explain` shows it: its ticks, what is sent along its stages, and one stage's step by itself. No jax.

A stage computes its layers for every microbatch, and its part of the vocabulary's logits. That is the step of a smaller
model on the stage's own mesh, so its matmuls are told as those of any step.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from jaxscale import config as cfg
from jaxscale.blueprint.legal import require_legal
from jaxscale.blueprint.rules import STAGE_AXES, split_by
from jaxscale.blueprint.stages import Schedule
from jaxscale.compiled.collectives import Collective
from jaxscale.compiled.story import with_changes
from jaxscale.config.errors import divisors
from jaxscale.explain.match import SMALL, Found, found_in
from jaxscale.explain.rows import Axes
from jaxscale.hardware.topology import Topology
from jaxscale.predict.traffic import traffic

LARGEST = 64  # stages that the page offers


@dataclass(frozen=True)
class Stages:
    """A step whose layers lie on several stages.

    Attributes:
        config, mesh: of all stages.
        axes: that split the layers.
        sent: `all-reduce over pipeline` -> bytes of a device and step (the scaling book's V), predicted.
        compiled: the same in the compiled program of all stages; None: none was compiled.
    """

    config: cfg.Config
    mesh: dict[str, int]
    axes: tuple[str, ...]
    schedule: Schedule
    sent: dict[str, float]
    compiled: dict[str, float] | None = None

    @property
    def layers(self) -> int:
        """Of one stage."""
        return self.config.model.num_layers // self.schedule.stages

    @property
    def words(self) -> str:
        """Which part of the model one stage has."""
        n = self.schedule.stages
        return (
            f"one of {n} stages: {self.layers} of {self.config.model.num_layers} layers, and 1/{n} of the vocabulary, "
            f"for {self.schedule.microbatches} microbatch{'es' * (self.schedule.microbatches > 1)}"
        )


def stages(config: cfg.Config, topology: Topology | None) -> Stages | None:
    """The stages of a step; None: it has none. Raises ValueError for a step that cannot be."""
    mesh = config.mesh.sizes(topology.devices if topology else config.runtime.simulated_devices)
    axes = split_by(STAGE_AXES, mesh)
    if not axes:
        return None
    require_legal(config, mesh)
    along = [t for t in traffic(config, mesh) if set(t.axes) & set(axes)]
    sent = sums((t.kind, t.axes, t.step_bytes) for t in along)
    schedule = Schedule(math.prod(mesh[axis] for axis in axes), config.step.microbatches)
    return Stages(config, mesh, axes, schedule, sent)


def sums(sent: Iterable[tuple[str, Axes, float]]) -> dict[str, float]:
    """Bytes by kind and axes."""
    totals: dict[str, float] = {}
    for kind, axes, size in sent:
        key = f"{kind} over {'+'.join(axes)}"
        totals[key] = totals.get(key, 0.0) + size
    return totals


def beside(staged: Stages, compiled: Iterable[Collective]) -> tuple[Stages, list[Collective]]:
    """What the program of all stages sends along them, numbers and vectors apart; and its other collectives."""
    every = [c for c in compiled if c.groups > 1]
    along = [c for c in every if set(c.axes) & set(staged.axes)]
    sent = sums((c.kind, c.axes, float(c.bytes * c.times)) for c in along if c.bytes >= SMALL)
    return replace(staged, compiled=sent), [c for c in every if not set(c.axes) & set(staged.axes)]


def once(staged: Stages, inserted: Iterable[Found], compiled: Iterable[Collective]) -> list[Found]:
    """`inserted` without what the first and the last ticks send: their loops send what the others do."""
    m, ramp = staged.schedule.microbatches, staged.schedule.ramp
    known = {(f.kind, f.axes, f.bytes, f.times * ramp) for f in found_in(compiled)}
    return [f for f in inserted if (f.kind, f.axes, f.bytes, f.times * m) not in known]


def one_stage(staged: Stages) -> cfg.Config:
    """The step of one stage, on its own devices, as one slice."""
    config, n = staged.config, staged.schedule.stages
    mesh = staged.mesh | dict.fromkeys(staged.axes, 1)
    part = -(-config.model.padded_vocab_size // n)
    changes: dict[str, Any] = {
        "mesh": mesh | {"dcn": dict.fromkeys(mesh, 1)},
        "model": {"num_layers": staged.layers, "vocab_size": part, "vocab_multiple": part},
        "runtime": {"simulated_devices": None},
    }
    return with_changes(config, changes, source="explain")


def as_values(staged: Stages) -> dict[str, Any]:
    """As JSON: which microbatch each stage runs in each tick, forward and backward; null: none that is read."""
    schedule = staged.schedule
    every = range(schedule.ticks + schedule.ramp)
    passes = {"forward": schedule.forward, "backward": schedule.backward}
    return {
        "words": staged.words,
        "mesh": staged.mesh,
        "over": staged.config.mesh.over_slices,
        "axes": list(staged.axes),
        "microbatches": schedule.microbatches,
        "choices": [n for n in divisors(staged.config.model.num_layers) if n <= LARGEST],
        "ticks": [
            {name: [at(stage, t) for t in every] for name, at in passes.items()} for stage in range(schedule.stages)
        ],
        "sent": staged.sent,
        "compiled": staged.compiled,
    }
