"""The collectives of a compiled program: kind, mesh axes, bytes, how often, and what runs meanwhile. No jax."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from jaxscale.analysis.compiled import KINDS, NOTHING, Work, Worker, matmul_flops, numbers
from jaxscale.analysis.hlo import Computation, Instruction, Program


@dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
        axes: mesh axes that its groups run over, in the mesh's order; () where no set of axes gives these groups.
        bytes: what the scaling book calls V, a device and run: the gathered result of an all-gather, the operand of
            the others.
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
    """
    over, worker = over or {}, worker or Worker(program)
    axes = GroupAxes({a: n // over.get(a, 1) for a, n in mesh.items() if n > over.get(a, 1)})
    spans = {computation.name: async_spans(worker, computation) for computation, _ in program.running()}
    found, chains, beside = [], set(), started_computations(program, spans)
    fused = {c for computation in program.computations.values() for i in computation if i.opcode == "fusion"
             for c in i.called}  # fmt: skip
    for computation, times in program.running():
        own = spans[computation.name]
        for i in computation:
            kind = i.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            meanwhile = own.get(i.name, beside.get(computation.name))
            if chain := re.search(r'chain_id="(\d+)"', i.attributes):
                key = (chain[1], i.attribute("channel_id"))
                if key in chains:
                    continue
                chains.add(key)
                meanwhile = chain_work(worker, *key)
            one = read_collective(computation, i, kind, times, axes, meanwhile)
            sliced = one.kind != kind and computation.name not in fused
            found.append(replace(one, sliced=True) if sliced else one)
        found += sent_between_slices(worker, computation, times, over)
    return found


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
    if kind == "all-reduce" and only_sliced(computation, i):
        kind = "reduce-scatter"
    groups = axes.of(i)
    return Collective(
        kind, groups.axes, groups.count, sum(a.bytes for a in sent), max(sent, key=lambda a: a.bytes).dtype, len(sent),
        times, meanwhile is not None, meanwhile or NOTHING, i.source, i.name, sizes=tuple(a.bytes for a in sent),
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
    """For each `-start`, the work between it and its `-done` in the schedule."""
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
            began[i.name] = began[head]
        elif i.opcode.endswith("-done") and head in began:
            start, then = began[head]
            spans[start] = total - then
        total += worker.of(computation, i)
    return spans


def started_computations(program: Program, spans: Mapping[str, Mapping[str, Work]]) -> dict[str, Work]:
    """Computations that run beside the program (called by a `-start`) -> the program's work meanwhile."""
    found: dict[str, Work] = {}
    for computation, own in spans.items():
        for name, work in own.items():
            found |= dict.fromkeys(program.computations[computation].instructions[name].called, work)
    return found


def chain_work(worker: Worker, chain: str, channel: str | None) -> Work:
    """The work of TPU's fusions that carry this collective along."""
    mark, total = f'chain_id="{chain}"', NOTHING
    for other, _ in worker.program.running():
        if any(mark in o.attributes and o.attribute("channel_id") == channel for o in other):
            flops = sum(matmul_flops(other, o) for o in other)
            total += Work(flops, seconds=worker.seconds(Work(flops)) if worker.seconds else 0.0)
    return total


# --- which mesh axes a collective runs over ---------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    axes: tuple[str, ...]
    count: int  # devices in a group


class GroupAxes:
    """From replica groups to mesh axes; partitions are numbered along the mesh, last axis fastest."""

    def __init__(self, mesh: Mapping[str, int]):
        self.names, self.sizes = tuple(mesh), tuple(mesh.values())
        self.count = math.prod(self.sizes)
        self.known = {self.groups_over(k): k for k in self.subsets()}

    def subsets(self) -> Iterator[tuple[int, ...]]:
        n = len(self.sizes)
        for bits in range(1, 2**n):
            yield tuple(i for i in range(n) if bits >> i & 1)

    def groups_over(self, chosen: tuple[int, ...]) -> frozenset[frozenset[int]]:
        return rows(np.arange(self.count).reshape(self.sizes), list(chosen))

    def of(self, i: Instruction) -> Groups:
        if "source_target_pairs" in i.attributes:
            return self.of_pairs(i)
        groups = replica_groups(i.attributes, self.count)
        axes = self.known.get(groups, ())
        return Groups(tuple(self.names[k] for k in axes), len(next(iter(groups))))

    def of_pairs(self, i: Instruction) -> Groups:
        """The axes along which some pair's ends differ."""
        text = re.search(r"source_target_pairs=\{(.*?)\}\}", i.attributes)
        pairs = re.findall(r"(\d+),(\d+)", text[1]) if text else []
        changed = set()
        for a, b in pairs:
            ends = np.unravel_index([int(a), int(b)], self.sizes)
            changed |= {k for k, (x, y) in enumerate(ends) if x != y}
        return Groups(
            tuple(self.names[k] for k in sorted(changed)), math.prod(self.sizes[k] for k in sorted(changed)) or 1
        )


def replica_groups(text: str, count: int) -> frozenset[frozenset[int]]:
    """Replica groups in each of the ways in which HLO writes them. Raises ValueError for another."""
    if re.search(r"replica_groups=\{\}", text):
        return frozenset([frozenset(range(count))])
    if m := re.search(r"replica_groups=\{(\{[\d,{}\s]*\})\}", text):
        return frozenset(frozenset(numbers(g)) for g in re.findall(r"\{([\d,\s]+)\}", m[1]))
    if m := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}", text
    ):
        sizes = {k.strip("' "): int(v) for k, v in (pair.split("=") for pair in m[1].split(","))}
        names, ids = list(sizes), np.arange(count)
        chosen = [names.index(n.strip("' ")) for n in m[4].split(",")]
        if m[2]:
            ids = ids.reshape(numbers(m[2]))
            ids = ids.transpose(numbers(m[3])) if m[3] else ids
        return rows(ids.reshape(tuple(sizes.values())), chosen)
    m = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not m:
        raise ValueError(f"replica groups in a form that is not known: {text[:200]}")
    ids = np.arange(math.prod(numbers(m[3]))).reshape(numbers(m[3]))
    ids = ids.transpose(numbers(m[4])) if m[4] else ids
    return frozenset(map(frozenset, ids.reshape(int(m[1]), int(m[2])).tolist()))


def rows(ids: np.ndarray, chosen: list[int]) -> frozenset[frozenset[int]]:
    rest = [k for k in range(ids.ndim) if k not in chosen]
    size = math.prod(ids.shape[k] for k in chosen)
    return frozenset(map(frozenset, ids.transpose([*rest, *chosen]).reshape(-1, size).tolist()))
