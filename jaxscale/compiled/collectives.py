"""The collectives of a compiled program: kind, mesh axes, bytes, how often, and what runs meanwhile. No jax."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from jaxscale.compiled.groups import GroupAxes, SubAxis
from jaxscale.compiled.hlo import Program
from jaxscale.compiled.instructions import Computation, Instruction
from jaxscale.compiled.work import KINDS, NOTHING, Work, Worker, matmul_flops


@dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
        axes: mesh axes that its groups run over, in the mesh's order; () where no set of axes gives these groups.
        groups: devices in a group.
        parts: of axes that the groups run over in part, which part: see `compiled.groups`.
        bytes: what the scaling book calls V, a device and run: the gathered result of an all-gather, the operand of
            the others; of a ragged all-to-all the smaller of the rows and of the place for them: the other one has
            room for the worst case.
        wire: dtype of what is sent.
        asynchronous: other work can run between its start and its end.
        meanwhile: the work scheduled there, of one run.
        times: runs a step.
        between_slices: on the slow network: libtpu compiles each slice's program by itself and hands these to its
            runtime.
        sizes: bytes of each of the arrays.
        sliced: of a reduce-scatter: the program has an all-reduce and a slice of it, not fused into one operation.
    """

    kind: str
    axes: tuple[str, ...]
    groups: int
    bytes: int
    wire: str
    arrays: int
    times: int
    asynchronous: bool
    meanwhile: Work
    source: str
    name: str
    between_slices: bool = False
    sizes: tuple[int, ...] = ()
    sliced: bool = False
    parts: tuple[SubAxis, ...] = ()


def wire_share(kind: str, n: int) -> float:
    """What one of n devices sends of V by a ring: nccl-tests' busbw / algbw (doc/PERFORMANCE.md)."""
    return {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0, "ppermute": 1.0}.get(kind, (n - 1) / n)


def collectives(
    program: Program, mesh: Mapping[str, int], worker: Worker | None = None, over: Mapping[str, int] | None = None
) -> list[Collective]:
    """Every collective that runs, once each however many instructions the compiler spreads it over.

    Four forms are met: plain ones; `-start`/`-done` pairs; computations that a `-start` calls (TPU's SparseCore, GPU's
    streams); and TPU's fusions, where a collective stands in the fused computation of its start, of every matmul that
    runs meanwhile, and of its end, with one `chain_id`. A reduce-scatter may be an all-reduce whose result only a slice
    reads.

    Args:
        mesh: axis -> size in the mesh's order; the program's partitions are numbered along it.
        over: of TPU slices, axis -> size over them: the program is one slice's, and what goes between slices is sent
            to the runtime.

    Raises ValueError for a collective that cannot be read, or that stands where nothing is seen to call it: none is
    left out in silence.
    """
    require_all_run(program)
    over, worker = over or {}, worker or Worker(program)
    axes = GroupAxes({a: n // over.get(a, 1) for a, n in mesh.items() if n > over.get(a, 1)})
    spans = {computation.name: async_spans(worker, computation) for computation, _ in program.running()}
    all_collectives, chains, beside = [], set(), started_computations(program, spans)
    fused = {
        c
        for computation in program.computations.values()
        for i in computation
        if i.opcode == "fusion"
        for c in i.called
    }
    for computation, times in program.running():
        work_by_start = spans[computation.name]
        for i in computation:
            kind = i.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            meanwhile = work_by_start.get(i.name, beside.get(computation.name))
            if chain := re.search(r'chain_id="(\d+)"', i.attributes):
                key = (chain[1], i.attribute("channel_id"))
                if key in chains:
                    continue
                chains.add(key)
                meanwhile = chain_work(worker, *key)
            one = read_collective(computation, i, kind, times, axes, meanwhile)
            sliced = one.kind != kind and computation.name not in fused
            all_collectives.append(replace(one, sliced=True) if sliced else one)
        all_collectives += sent_between_slices(worker, computation, times, over)
    return all_collectives


def require_all_run(program: Program) -> None:
    """Refuse a program with collectives in a computation that nothing calls in a way that is known."""
    for computation in program.computations.values():
        if computation.name not in program.executions:
            lost = [i.name for i in computation if i.opcode.removesuffix("-start") in KINDS]
            if lost:
                raise ValueError(
                    f"the compiled program's {', '.join(lost[:3])} cannot be counted: nothing that is known calls "
                    f"{computation.name}, where it stands"
                )


def sent_between_slices(
    worker: Worker, computation: Computation, times: int, over: Mapping[str, int]
) -> Iterator[Collective]:
    """What a program sends to libtpu's multi-slice runtime: a `send`, and the end of the `recv` that meets it."""
    total = NOTHING
    began: dict[str, tuple[Instruction, str, Work]] = {}
    for i in computation:
        about = computation.instructions[i.operands[0]] if i.opcode == "recv-done" else i
        kind = re.search(r'megascale_transfer_type="(\w+)"', about.attributes)
        key = re.search(r'host_transfer_rendezvous="([^"]*)"', about.attributes)
        if kind and key and i.opcode == "send":
            began[key[1]] = (i, kind[1].lower().replace("_", "-"), total)
        elif kind and key and i.opcode == "recv-done" and key[1] in began:
            send, name, then = began.pop(key[1])
            array = computation.instructions[send.operands[0]].arrays[0]
            yield Collective(
                name, tuple(over), math.prod(over.values()), array.bytes, array.dtype, 1, times, True, total - then,
                send.source, send.name, True,
            )  # fmt: skip
        total += worker.of(computation, i)


def read_collective(
    computation: Computation, i: Instruction, kind: str, times: int, axes: "GroupAxes", meanwhile: Work | None
) -> Collective:
    given = [computation.instructions[o].arrays[0] for o in i.operands if computation.instructions[o].arrays]
    result = list(i.arrays)
    if i.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        result = result[len(given) :][: len(given)]  # (operands, results, context)
    sent = result if kind == "all-gather" else given
    if kind == "ragged-all-to-all":  # rows, the place for them, four offsets
        sent = [min(given[:2], key=lambda a: a.bytes)]
    if kind == "all-reduce" and only_sliced(computation, i):
        kind = "reduce-scatter"
    span = axes.of(i)
    return Collective(
        kind, span.axes, span.count, sum(a.bytes for a in sent), max(sent, key=lambda a: a.bytes).dtype, len(sent),
        times, meanwhile is not None, meanwhile or NOTHING, i.source, i.name, sizes=tuple(a.bytes for a in sent),
        parts=span.parts,
    )  # fmt: skip


def only_sliced(computation: Computation, i: Instruction) -> bool:
    """Is this all-reduce a reduce-scatter in two instructions: does nothing but a slice read its result?"""
    readers, frontier = [], [i.name]
    while frontier:
        for user in computation.users[frontier.pop()]:
            if user.opcode in ("get-tuple-element", "bitcast", "copy", "reshape", "transpose"):
                frontier.append(user.name)
            else:
                readers.append(user)
    return bool(readers) and all(r.opcode == "dynamic-slice" or slices(r, i.bytes) for r in readers)


def slices(reader: Instruction, whole: int) -> bool:
    """Is it, by its name, a fusion that takes a slice? One that writes a slice (a loop stacks its results) is not."""
    name = reader.name.split(".")[0]
    return "slice" in name and "update" not in name and reader.bytes < whole


def async_spans(worker: Worker, computation: Computation) -> dict[str, Work]:
    """For each `-start`, the work between it (or the `-update` that begins it) and its `-done` in the schedule."""
    began: dict[str, tuple[str, Work]] = {}  # instruction of the chain -> its start, and the total then
    spans: dict[str, Work] = {}
    if not any(i.opcode.endswith("-start") for i in computation):
        return spans
    total = NOTHING
    for i in computation:
        head = i.operands[0] if i.operands else ""
        if i.opcode.endswith("-start") and '"is_sync":true' not in i.attributes:
            began[i.name] = (i.name, total)
        elif i.opcode.endswith("-update") and head in began:
            start, then = began[head]  # a start without operands only makes room; the first update gives it its array
            began[i.name] = (start, then if computation.instructions[start].operands or head != start else total)
        elif i.opcode.endswith("-done") and head in began:
            start, then = began[head]
            spans[start] = total - then
        total += worker.of(computation, i)
    return spans


def started_computations(program: Program, spans: Mapping[str, Mapping[str, Work]]) -> dict[str, Work]:
    """Computations that run beside the program (called by a `-start`) -> the program's work meanwhile."""
    beside: dict[str, Work] = {}
    for computation, work_by_start in spans.items():
        for name, work in work_by_start.items():
            beside |= dict.fromkeys(program.computations[computation].instructions[name].called, work)
    return beside


def chain_work(worker: Worker, chain: str, channel: str | None) -> Work:
    """The work of TPU's fusions that carry this collective along."""
    mark, total = f'chain_id="{chain}"', NOTHING
    for other, _ in worker.program.running():
        if any(mark in o.attributes and o.attribute("channel_id") == channel for o in other):
            flops = sum(matmul_flops(other, o) for o in other)
            total += Work(flops, seconds=worker.seconds(Work(flops)) if worker.seconds else 0.0)
    return total
