"""What a compiled program does in one step: its matmul FLOPs, its collectives by mesh axis, the HBM bytes it moves.

Works on `analysis.hlo.Program`, of any of XLA's backends; no jax. All figures are of one device and one step.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace

import numpy as np

from jaxscale.analysis.hlo import Array, Computation, Instruction, Program, trip_count

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")


# --- matmuls --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matmul:
    """A dot, a convolution that is one, or a library's gemm. `flops` of one run; `times` a step."""

    name: str
    source: str
    flops: float
    times: int


def matmuls(program: Program) -> list[Matmul]:
    """Every matmul that runs, kernels that are opaque to the compiler apart: see `attention_kernel`."""
    found = []
    for computation, times in program.running():
        for instruction in computation:
            if flops := matmul_flops(computation, instruction):
                found.append(Matmul(instruction.name, instruction.source, flops, times))
    return found


def matmul_flops(computation: Computation, instruction: Instruction) -> float:
    """Multiply-adds count as two. 0 for what is no matmul."""
    if instruction.opcode == "dot":
        return dot_flops(instruction, operand(computation, instruction, 0))
    if instruction.opcode == "convolution":
        left, right = (operand(computation, instruction, i) for i in (0, 1))
        return convolution_flops(instruction, left, right)
    if instruction.opcode == "custom-call" and re.search(r"cublas\$(lt\$)?(gemm|matmul)|\$matmul|onednn\$matmul",
                                                         instruction.target):  # fmt: skip
        return gemm_flops(instruction, operand(computation, instruction, 0))
    return 0.0


def operand(computation: Computation, instruction: Instruction, index: int) -> Array:
    return computation.instructions[instruction.operands[index]].arrays[0]


def dot_flops(instruction: Instruction, left: Array) -> float:
    contracted = numbers(instruction.attribute("lhs_contracting_dims") or "{}")
    return 2.0 * instruction.arrays[0].elements * math.prod(left.dims[i] for i in contracted)


def gemm_flops(instruction: Instruction, left: Array) -> float:
    found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
    contracted = [int(n.strip('"')) for n in found[1].split(",")] if found and found[1] else [len(left.dims) - 1]
    return 2.0 * instruction.arrays[0].elements * math.prod(left.dims[i] for i in contracted)


def convolution_flops(instruction: Instruction, left: Array, right: Array) -> float:
    """2 * batch * output features * input features * the pairs (output, kernel) position that meet an input element.

    XLA writes batched matmuls as convolutions whose windows mostly hang over the padding: pairs that meet padding
    cost nothing (XLA's own HloCostAnalysis::GetConvolutionFlops counts alike).
    """
    labels = instruction.attribute("dim_labels") or ""
    left_labels, right_labels, out_labels = re.split("_|->", labels)
    out = instruction.arrays[0]
    groups = int(instruction.attribute("feature_group_count") or 1)
    batch_groups = int(instruction.attribute("batch_group_count") or 1)
    total = 2.0 * left.dims[left_labels.index("b")] / batch_groups
    total *= out.dims[out_labels.index("f")] * left.dims[left_labels.index("f")] / groups
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(pair.split("=") for pair in window[1].split()) if window else {}
    for i, axis in enumerate(c for c in sorted(right_labels) if c.isdigit()):
        sides = (left.dims[left_labels.index(axis)], right.dims[right_labels.index(axis)])
        total *= valid_positions(*sides, out.dims[out_labels.index(axis)], window_of(fields, i))
    return total


def window_of(fields: dict[str, str], i: int) -> dict[str, int]:
    def part(name: str, default: str) -> str:
        return fields[name].split("x")[i] if name in fields else default

    return {
        "low": int(part("pad", "0_0").split("_")[0]), "stride": int(part("stride", "1")),
        "left_dilation": int(part("lhs_dilate", "1")), "right_dilation": int(part("rhs_dilate", "1")),
    }  # fmt: skip


def valid_positions(left: int, right: int, out: int, window: dict[str, int]) -> int:
    """Pairs of output and kernel positions, along one spatial dim, that meet an element and no padding."""
    if out * right > 10_000_000:  # no matmul is written so; a real convolution's edge effects are nothing there
        return min(out, left) * right
    outputs, kernels = np.arange(out)[:, None], np.arange(right)[None, :]
    at = outputs * window["stride"] - window["low"] + kernels * window["right_dilation"]
    inside = (at >= 0) & (at < (left - 1) * window["left_dilation"] + 1) & (at % window["left_dilation"] == 0)
    return int(inside.sum())


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def attention_kernel(i: Instruction) -> str | None:
    """`forward` or `backward` for a kernel that is opaque to the compiler: splash (Pallas), cuDNN's attention."""
    if i.opcode != "custom-call" or not re.search(r"splash|fmha", f"{i.name} {i.target}"):
        return None
    return "backward" if re.search(r"dkv|dq|[Bb]ackward", f"{i.name} {i.target}") else "forward"


# --- what one instruction does ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Matmul FLOPs, bytes of HBM read and written, attention kernels (forward, backward) of some instructions, and the
    seconds that they take one after another (0 where no rates were given)."""

    flops: float = 0.0
    bytes: float = 0.0
    forward_kernels: int = 0
    backward_kernels: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Work") -> "Work":
        return self + -1 * other

    def __rmul__(self, times: int) -> "Work":
        return Work(*(times * a for a in astuple(self)))


NOTHING = Work()
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id")


class Worker:
    """The work of instructions and computations, each computed once.

    Args:
        seconds: the time of one instruction's work.
    """

    def __init__(self, program: Program, seconds: Callable[[Work], float] | None = None):
        self.program, self.seconds = program, seconds
        self.known: dict[str, Work] = {}

    def of_computation(self, name: str) -> Work:
        if name not in self.known:
            computation = self.program.computations[name]
            self.known[name] = sum((self.of(computation, i) for i in computation), NOTHING)
        return self.known[name]

    def of(self, computation: Computation, i: Instruction) -> Work:
        """Of one run, loops inside multiplied out; collectives and what they carry along count nothing."""
        work = self.untimed(computation, i)
        if self.seconds is None or work.seconds or work == NOTHING:
            return work
        return replace(work, seconds=self.seconds(work))

    def untimed(self, computation: Computation, i: Instruction) -> Work:
        if i.opcode in FREE or i.opcode.removesuffix("-start").removesuffix("-done") in KINDS:
            return NOTHING
        called = [c for c in i.called if c in self.program.computations]
        if i.opcode == "while":
            return (trip_count(self.program, i) or 1) * sum(map(self.of_computation, called), NOTHING)
        if i.opcode in ("call", "conditional"):
            return sum(map(self.of_computation, called), NOTHING)
        if i.opcode.endswith(("-start", "-done", "-update")):
            return Work(bytes=float(i.bytes)) if i.opcode == "copy-start" else NOTHING
        if i.opcode == "fusion":
            flops = sum(self.of_computation(c).flops for c in called)
            return Work(flops, self.fusion_bytes(computation, i, self.program.computations[called[0]]))
        kernel = attention_kernel(i)
        given = [self.array_bytes(computation.instructions[o]) for o in i.operands if o in computation.instructions]
        moved = sum(given) + self.array_bytes(i)
        if i.opcode in ("dynamic-slice", "slice", "gather"):
            moved = 2 * self.array_bytes(i)
        elif i.opcode in ("dynamic-update-slice", "scatter"):
            moved = 2 * given[-1 if i.opcode == "scatter" else 1]
        return Work(matmul_flops(computation, i), float(moved), kernel == "forward", kernel == "backward")

    def fusion_bytes(self, outer: Computation, i: Instruction, inner: Computation) -> float:
        """Operands and results in HBM; of an operand that is only sliced the slice, of a result updated in place the
        update."""
        total = 0.0
        for name, parameter in zip(i.operands, inner.parameters, strict=False):
            whole = self.array_bytes(outer.instructions[name]) if name in outer.instructions else 0
            total += min(whole, self.read_of(inner, parameter)) if whole else 0
        roots = [inner.root]
        if inner.root.opcode == "tuple":
            roots = [inner.instructions[o] for o in inner.root.operands]
        for root, array in zip(roots, i.arrays, strict=False):
            if array.memory_space:
                continue
            update = root.opcode == "dynamic-update-slice"
            total += inner.instructions[root.operands[1]].bytes if update else array.bytes
        return total

    def read_of(self, computation: Computation, value: Instruction) -> float:
        """Bytes of a fusion's parameter that are read."""
        total = 0.0
        for user in computation.users[value.name]:
            if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == value.name:
                total += user.bytes
            elif user.opcode == "bitcast":
                total += self.read_of(computation, user)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
                continue
            elif user.opcode == "fusion" and user.called[0] in self.program.computations:
                inner = self.program.computations[user.called[0]]
                total += self.read_of(inner, inner.parameters[user.operands.index(value.name)])
            else:
                return float(value.bytes)
        return total

    @staticmethod
    def array_bytes(i: Instruction) -> int:
        return sum(a.bytes for a in i.arrays if a.memory_space == 0)


# --- collectives ----------------------------------------------------------------------------------------------


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
    found, chains, beside = [], set(), started_computations(worker)
    for computation, times in program.running():
        own = async_spans(worker, computation)
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
            found.append(read_collective(computation, i, kind, times, axes, meanwhile))
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
        times, meanwhile is not None, meanwhile or NOTHING, i.source, i.name,
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
    return bool(readers) and all(r.opcode == "dynamic-slice" or ("slice" in r.name.split(".")[0] and
                                 r.bytes < i.bytes) for r in readers)  # fmt: skip


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


def started_computations(worker: Worker) -> dict[str, Work]:
    """Computations that run beside the program (called by a `-start`) -> the program's work meanwhile."""
    found: dict[str, Work] = {}
    for computation, _ in worker.program.running():
        for name, work in async_spans(worker, computation).items():
            found |= dict.fromkeys(computation.instructions[name].called, work)
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
        rest = [i for i in range(len(self.sizes)) if i not in chosen]
        ids = np.arange(self.count).reshape(self.sizes).transpose([*rest, *chosen])
        return frozenset(map(frozenset, ids.reshape(-1, math.prod(self.sizes[i] for i in chosen)).tolist()))

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
    """Replica groups in each of the three ways in which HLO writes them. Raises ValueError for another."""
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
