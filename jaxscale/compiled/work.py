"""What a compiled program does in one step: its matmul FLOPs, its attention kernels, the HBM bytes it moves.

Works on `compiled.hlo.Program`, of any of XLA's backends; no jax. All figures are of one device and one step.
"""

import math
import re
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace

import numpy as np

from jaxscale.compiled.hlo import Program
from jaxscale.compiled.instructions import Array, Computation, Instruction

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)


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
    all_matmuls = []
    for computation, times in program.running():
        for instruction in computation:
            if flops := matmul_flops(computation, instruction):
                all_matmuls.append(Matmul(instruction.name, instruction.source, flops, times))
    return all_matmuls


def matmul_flops(computation: Computation, instruction: Instruction) -> float:
    """Multiply-adds count as two. 0 for what is no matmul."""
    if instruction.opcode == "dot":
        return dot_flops(instruction, operand(computation, instruction, 0))
    if instruction.opcode == "convolution":
        left, right = (operand(computation, instruction, i) for i in (0, 1))
        return convolution_flops(instruction, left, right)
    if instruction.opcode == "custom-call" and re.search(
        r"cublas\$(lt\$)?(gemm|matmul)|\$matmul|onednn\$matmul", instruction.target
    ):
        return gemm_flops(instruction, operand(computation, instruction, 0))
    return stated_flops(instruction) if of_experts(instruction) else 0.0


EXPERTS = re.compile(r"(^|/)experts/")  # scope of the program in which rows meet their experts


def of_experts(instruction: Instruction) -> bool:
    return bool(EXPERTS.search(instruction.source))


def stated_flops(instruction: Instruction) -> float:
    """What a kernel's author says that it costs; 0 where nothing is said."""
    match = re.search(r'"flops":"?(\d+)', instruction.attributes) if instruction.opcode == "custom-call" else None
    return float(match[1]) if match else 0.0


def expert_flops(program: Program) -> tuple[float, float]:
    """FLOPs of the experts' matmuls in a step, forward (recomputed ones too) and backward."""
    expert_matmuls = [m for m in matmuls(program) if EXPERTS.search(m.source)]
    again = [m for m in expert_matmuls if "transpose(" not in m.source or "rematted_computation" in m.source]
    forward = sum(m.flops * m.times for m in again)
    return forward, sum(m.flops * m.times for m in expert_matmuls) - forward


def operand(computation: Computation, instruction: Instruction, index: int) -> Array:
    return computation.instructions[instruction.operands[index]].arrays[0]


def dot_flops(instruction: Instruction, left: Array) -> float:
    contracted = numbers(instruction.attribute("lhs_contracting_dims") or "{}")
    return 2.0 * instruction.arrays[0].elements * math.prod(left.dims[i] for i in contracted)


def gemm_flops(instruction: Instruction, left: Array) -> float:
    match = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
    contracted = [int(n.strip('"')) for n in match[1].split(",")] if match and match[1] else [len(left.dims) - 1]
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
        "low": int(part("pad", "0_0").split("_")[0]),
        "stride": int(part("stride", "1")),
        "left_dilation": int(part("lhs_dilate", "1")),
        "right_dilation": int(part("rhs_dilate", "1")),
    }


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
    """`forward` or `backward` for a kernel that is opaque to the compiler: splash (Pallas), cuDNN's attention.

    Splash's unfused backward pass is two kernels, of keys' and of queries' gradients: the second one counts as none.
    """
    name = f"{i.name} {i.target}"
    if i.opcode != "custom-call" or not re.search(r"splash|fmha", name):
        return None
    if "dq" in name and "dkv" not in name:
        return None
    return "backward" if re.search(r"dkv|[Bb]ackward", name) else "forward"


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
        even: of the experts' FLOPs, the share that is done where loads are even: a program states the worst case.
    """

    def __init__(self, program: Program, seconds: Callable[[Work], float] | None = None, even: float = 1.0):
        self.program, self.seconds, self.even = program, seconds, even
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
            return self.program.runs(i) * sum(map(self.of_computation, called), NOTHING)
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
        flops = matmul_flops(computation, i) * (self.even if of_experts(i) else 1.0)
        return Work(flops, float(moved), kernel == "forward", kernel == "backward")

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


# --- how many kernels -------------------------------------------------------------------------------------------


def kernels(program: Program, name: str | None = None) -> int:
    """Kernels that one run of a computation (None: the entry) starts, loops multiplied out.

    Collectives and asynchronous copies are not counted: nothing waits for their start. A scalar is no kernel either.
    """
    total = 0
    for i in program.computations[name or program.entry]:
        called = [c for c in i.called if c in program.computations]
        if i.opcode in ("while", "call", "conditional"):
            times = program.runs(i) if i.opcode == "while" else 1
            total += times * sum(kernels(program, c) for c in called)
        elif starts_a_kernel(i):
            total += 1
    return total


def starts_a_kernel(i: Instruction) -> bool:
    if i.opcode in (*FREE, "optimization-barrier") or i.opcode.removesuffix("-start") in KINDS:
        return False
    if i.opcode.endswith(("-start", "-update", "-done")) or i.target == "AllocateBuffer":
        return False
    return i.opcode in ("fusion", "custom-call") or sum(a.elements for a in i.arrays) > 1
