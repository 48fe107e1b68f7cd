"""What `explain` prints of a pipeline: which microbatch each stage works on in each tick."""

import math
from collections.abc import Iterator, Mapping

from jaxscale import config as cfg
from jaxscale.blueprint.rules import STAGE_AXES, split_by
from jaxscale.blueprint.stages import Schedule, bubble_note
from jaxscale.config.mesh_text import mesh_text
from jaxscale.console.tables import make_console, make_table, tell
from jaxscale.predict.traffic import traffic

SHOWN = 16  # ticks of a table, at most; of a longer schedule the first and the last ones
TICK, ROOM = 6, 20  # columns of a tick of three digits, and of what stands before all of them


def show_timeline(config: cfg.Config, mesh: Mapping[str, int]) -> None:
    """A table of stages by ticks, what is sent along the stages, and where the matmuls of a stage are told."""
    console = make_console()
    axes = split_by(STAGE_AXES, mesh)
    schedule = Schedule(math.prod(mesh[a] for a in axes), config.step.microbatches)
    tell(
        console,
        f"{config.name}: {config.model.num_layers} layers in {schedule.stages} stages ({mesh_text(dict(mesh))})",
    )
    ticks = shown_ticks(schedule, min(SHOWN, (console.width - ROOM) // TICK))
    columns = ("…" if t is None else str(t) for t in ticks)
    table = make_table("Microbatch of each stage by tick, lock-step 1F1B", "<stage", "<pass", *columns)
    for stage in range(schedule.stages):
        for name, at in (("forward", schedule.forward), ("backward", schedule.backward)):
            cells = ("…" if t is None else text(at(stage, t)) for t in ticks)
            table.add_row(str(stage) if name == "forward" else "", name, *cells)
    console.print(table)
    for line in lines(config, mesh, schedule):
        tell(console, line)


def text(microbatch: int | None) -> str:
    return "-" if microbatch is None else str(microbatch)


def shown_ticks(schedule: Schedule, most: int = SHOWN) -> list[int | None]:
    """None stands for those that are left out."""
    every = range(schedule.ticks + schedule.ramp)
    if len(every) <= most:
        return list(every)
    half = most // 2
    return [*every[:half], None, *every[1 - half :]]


def lines(config: cfg.Config, mesh: Mapping[str, int], schedule: Schedule) -> Iterator[str]:
    whole = schedule.ticks + schedule.ramp
    yield (
        f"{whole} ticks, of which {schedule.ticks} run forward and {schedule.ticks} backward; "
        f"bubble (S-1)/(M+S-1) = {schedule.bubble:.1%} of the time"
    )
    if note := bubble_note(schedule):
        yield note
    axes = split_by(STAGE_AXES, mesh)
    sent: dict[str, float] = {}
    for t in traffic(config, mesh):
        if set(t.axes) & set(axes):
            key = f"{t.kind} over {'+'.join(t.axes)}"
            sent[key] = sent.get(key, 0.0) + t.step_bytes
    for key, size in sent.items():
        yield f"{key}: {size / 1e9:,.3f} GB of a device and step (V), predicted"
    rest = ",".join(f"{axis}={n}" for axis, n in mesh.items() if axis not in axes) or "data=1"
    yield f"the matmuls of a stage are those of its layers on its own mesh: --mesh {rest}"
