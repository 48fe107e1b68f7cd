"""What `explain` prints of a pipeline: which microbatch each stage works on in each tick."""

from collections.abc import Iterator

from jaxscale.blueprint.stages import Schedule, bubble_note
from jaxscale.config.mesh_text import mesh_text
from jaxscale.console.tables import make_console, make_table, tell
from jaxscale.explain.stages import Stages

SHOWN = 16  # ticks of a table, at most; of a longer schedule the first and the last ones
TICK, ROOM = 6, 20  # columns of a tick of three digits, and of what stands before all of them


def show_timeline(stages: Stages) -> None:
    """A table of stages by ticks, and what is sent along the stages."""
    console, schedule = make_console(), stages.schedule
    layers = f"{stages.config.model.num_layers} layers in {schedule.stages} stages"
    tell(console, f"{stages.config.name}: {layers} ({mesh_text(stages.mesh)})")
    ticks = shown_ticks(schedule, min(SHOWN, (console.width - ROOM) // TICK))
    columns = ("…" if t is None else str(t) for t in ticks)
    table = make_table("Microbatch of each stage by tick, lock-step 1F1B", "<stage", "<pass", *columns)
    for stage in range(schedule.stages):
        for name, at in (("forward", schedule.forward), ("backward", schedule.backward)):
            cells = ("…" if t is None else text(at(stage, t)) for t in ticks)
            table.add_row(str(stage) if name == "forward" else "", name, *cells)
    console.print(table)
    for line in lines(stages):
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


def lines(stages: Stages) -> Iterator[str]:
    schedule = stages.schedule
    whole = schedule.ticks + schedule.ramp
    yield (
        f"{whole} ticks, of which {schedule.ticks} run forward and {schedule.ticks} backward; "
        f"bubble (S-1)/(M+S-1) = {schedule.bubble:.1%} of the time"
    )
    if note := bubble_note(schedule):
        yield note
    yield "in a tick with a dash a stage computes and sends as in the others, and nobody reads the result"
    for key in stages.sent | (stages.compiled or {}):
        beside = "" if stages.compiled is None else f"; {stages.compiled.get(key, 0.0) / 1e9:,.3f} compiled"
        yield f"{key}: {stages.sent.get(key, 0.0) / 1e9:,.3f} GB of a device and step (V), predicted{beside}"
