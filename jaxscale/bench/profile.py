"""Where a step's time goes, from a profiler trace: matmuls, attention, other compute, exposed communication, waits.

The trace tells which instruction of the compiled program ran when, on which device; the program's text tells what that
instruction is. At each moment of a device's time: what computes shares it; else communication that nothing hides has
it; else the device waits for the host or for data.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxscale.bench.clock import device_lines, device_planes, read_planes
from jaxscale.bench.record import Figure, Row
from jaxscale.compiled.hlo import Program
from jaxscale.compiled.instructions import Computation, Instruction
from jaxscale.compiled.work import KINDS, attention_kernel, matmul_flops

COMPUTE = ("matmul", "attention", "other compute")
PARTS = (*COMPUTE, "exposed communication", "host and data wait")
COMMUNICATION = "communication"
SPANS = ("while", "call", "conditional", "async-start", "async-done")  # they last as long as what they run
# what kernels are called by the libraries that bring them, where the trace does not name the instruction
KERNEL_NAMES = (
    (COMMUNICATION, re.compile(r"nccl|all[-_]?(reduce|gather|to[-_]?all)|reduce[-_]?scatter", re.I)),
    ("attention", re.compile(r"fmha|flash|sdpa|splash|cudnn_generated_fort_native_sdpa", re.I)),
    ("matmul", re.compile(r"gemm|cutlass|xmma|nvjet|matmul", re.I)),
)


@dataclass(frozen=True)
class Event:
    """One instruction's run on a device, in nanoseconds of the trace's clock."""

    device: str
    part: str
    start: float
    end: float


def classify(program: Program) -> dict[str, str]:
    """Instruction -> which part of the step it is; those that only span others are left out."""
    parts = {}
    for computation, _ in program.running():
        for i in computation:
            if i.opcode not in SPANS:
                parts[i.name] = part_of(program, computation, i)
    return parts


def part_of(program: Program, computation: Computation, i: Instruction) -> str:
    inside = [*within(program, computation, i)]
    if any(re.sub(r"-(start|done)$", "", x.opcode) in KINDS for _, x in inside):
        return COMMUNICATION
    if any(attention_kernel(x) or "/attention/" in x.source for _, x in inside):
        return "attention"
    if any(matmul_flops(where, x) for where, x in inside):
        return "matmul"
    return "other compute"


def within(program: Program, computation: Computation, i: Instruction) -> Iterable[tuple[Computation, Instruction]]:
    """The instruction, and those of the computations that it calls (a fusion's), each with where it stands."""
    yield computation, i
    for name in i.called:
        if called := program.computations.get(name):
            for inner in called:
                yield from within(program, called, inner)


# --- the trace ------------------------------------------------------------------------------------------------


def read_events(folder: Path, parts: dict[str, str], module: str = "jit_train_step") -> list[Event]:
    """Of all devices in the newest trace under `folder`. Raises ValueError where there is none."""
    planes = read_planes(folder)
    devices = device_planes(planes)
    if devices:
        return [e for plane in devices for e in accelerator_events(plane, parts)]
    return [e for plane in planes if plane.name == "/host:CPU" for e in cpu_events(plane, parts, module)]


def cpu_events(plane, parts: dict[str, str], module: str) -> list[Event]:
    """An operation that ends on another thread has a second event, `end: <name>`, joined by a flow's number."""
    started, ends = [], {}
    for line in plane.lines:
        for event in line.events:
            if event.name.startswith("end: "):
                ends[dict(event.stats).get("_c")] = event.start_ns
                continue
            stats = dict(event.stats)
            if str(stats.get("hlo_module", "")).startswith(module) and stats.get("hlo_op") in parts:
                started.append((stats, event.start_ns, event.start_ns + event.duration_ns))
    return [
        Event(
            str(stats.get("device_ordinal", 0)), parts[stats["hlo_op"]], start, max(end, ends.get(stats.get("_p"), 0))
        )
        for stats, start, end in started
    ]


def accelerator_events(plane, parts: dict[str, str]) -> list[Event]:
    events = []
    for line in device_lines(plane):
        for event in line.events:
            name = str(dict(event.stats).get("hlo_op") or event.name)
            name = (re.match(r"%?([\w.\-]+)", name) or [name, name])[1]
            if name.partition(".")[0] in SPANS:
                continue
            part = parts.get(name) or next(
                (p for p, pattern in KERNEL_NAMES if pattern.search(event.name)), "other compute"
            )
            events.append(Event(plane.name, part, event.start_ns, event.start_ns + event.duration_ns))
    return events


# --- shares ---------------------------------------------------------------------------------------------------


def split_time(events: list[Event]) -> dict[str, float]:
    """Seconds of one device (the mean over devices) by part, from its first event to its last; they add up to that.

    `hidden communication` stands beside: it is the time of communication while something computes.
    """
    total = dict.fromkeys((*PARTS, "hidden communication"), 0.0)
    devices = sorted({e.device for e in events})
    for device in devices:
        for part, seconds in split_device([e for e in events if e.device == device]).items():
            total[part] += seconds / len(devices)
    return total


def split_device(events: list[Event]) -> dict[str, float]:
    total = dict.fromkeys((*PARTS, "hidden communication"), 0.0)
    marks = sorted([(e.start, 1, e.part) for e in events] + [(e.end, -1, e.part) for e in events])
    active: dict[str, int] = {}
    before = marks[0][0]
    for at, change, part in marks:
        seconds = (at - before) / 1e9
        computing = {p: n for p, n in active.items() if n and p in COMPUTE}
        sending = active.get(COMMUNICATION, 0) > 0
        for p, n in computing.items():
            total[p] += seconds * n / sum(computing.values())
        if sending:
            total["hidden communication" if computing else "exposed communication"] += seconds
        elif not computing:
            total["host and data wait"] += seconds
        active[part] = active.get(part, 0) + change
        before = at
    return total


def profile_rows(events: list[Event], step_seconds: float) -> list[Row]:
    """A row for each part: its share of the traced time, and so much of a step's seconds as it took without a trace."""
    if not events:
        raise ValueError("the trace holds no instruction of the training step")
    seconds = split_time(events)
    whole = sum(seconds[p] for p in PARTS)
    return [
        Row(
            labels={"part": part},
            figures={
                "seconds": Figure(value=value / whole * step_seconds, unit="s"),
                "share": Figure(value=value / whole, unit="share"),
            },
        )
        for part, value in seconds.items()
    ]
