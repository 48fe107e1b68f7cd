"""One line of compiled HLO text as data: an instruction, its arrays, and the computation that it stands in.

Reads the text that XLA's TPU, GPU and CPU compilers print. Whole programs are read by `compiled.hlo`. No jax.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

DTYPE_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0,
    "f8e4m3": 8, "f8e4m3fn": 8, "f8e4m3b11fnuz": 8, "f8e4m3fnuz": 8, "f8e5m2": 8, "f8e5m2fnuz": 8, "f8e8m0fnu": 8,
    "f8e3m4": 8, "f4e2m1fn": 4, "s2": 2, "u2": 2, "s1": 1, "u1": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Array:
    """One array of an instruction's result. `memory_space` is 0 for HBM, 1 for TPU's on-chip memory, 5 for the host."""

    dtype: str
    dims: tuple[int, ...]
    memory_space: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        return -(-self.elements * DTYPE_BITS[self.dtype] // 8)


@dataclass(frozen=True)
class Instruction:
    """`name = arrays opcode(operands), attributes`; `source` is the jax operation that it comes from."""

    name: str
    arrays: tuple[Array, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    literal: str  # what stands between the opcode's parentheses: the value of a constant
    root: bool = False

    @property
    def bytes(self) -> int:
        return sum(a.bytes for a in self.arrays)

    @cached_property
    def source(self) -> str:
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @cached_property
    def target(self) -> str:
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match[1] if match else ""

    def attribute(self, name: str) -> str | None:
        """The value of `name=value` up to the next comma outside braces."""
        match = re.search(rf"(?:^|[ ,]){name}=(\{{[^}}]*\}}|\[[^\]]*\]|[^, ]+)", self.attributes)
        return match[1] if match else None

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Computations that run when this instruction runs, except the scalar ones inside a reduction."""
        names = re.findall(r"(?:calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)", self.attributes)
        if self.opcode in ("call", "call-start", "async-start"):
            names += re.findall(r"to_apply=%?([\w.\-]+)", self.attributes)
        for group in re.findall(r"(?:branch_computations|called_computations)=\{([^}]*)\}", self.attributes):
            names += [n.strip().lstrip("%") for n in group.split(",") if n.strip()]
        return tuple(names)


@dataclass
class Computation:
    """Instructions in the order of the schedule."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @cached_property
    def root(self) -> Instruction:
        return next((i for i in self if i.root), next(reversed(self.instructions.values())))

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self:
            for operand in instruction.operands:
                if operand in users:
                    users[operand].append(instruction)
        return users

    @cached_property
    def parameters(self) -> list[Instruction]:
        parameters = [i for i in self if i.opcode == "parameter"]
        return sorted(parameters, key=lambda i: int(i.literal))


ASSIGNMENT = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,<=\s]*)\](\{[^}]*\})?")


def parse_instruction(line: str) -> Instruction | None:
    match = ASSIGNMENT.match(line)
    if not match:
        return None
    rest = re.sub(r"/\*.*?\*/", "", match[3])
    end = closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    if end < 0:
        raise ValueError(f"this line of compiled HLO text cannot be read: {line.strip()[:200]}")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    stop = closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : stop]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(match[2], arrays(kind), opcode, operands, rest[stop + 1 :].lstrip(", "), inside, bool(match[1]))


def closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] == "(":
            depth += 1
        elif text[i] == ")":
            depth -= 1
            if depth == 0:
                return i
    raise ValueError(f"unbalanced parentheses in HLO: {text[:80]}")


def arrays(kind: str) -> tuple[Array, ...]:
    """The arrays of a type's text, tuples flattened."""
    leaves = []
    for dtype, dims, layout in ARRAY.findall(kind):
        if dtype not in DTYPE_BITS:
            raise ValueError(f"compiled HLO text with numbers of a type that is not known: {dtype}[{dims}]")
        space = re.search(r"S\((\d+)\)", layout or "")
        sizes = tuple(int(d.strip("<= ")) for d in dims.split(",") if d.strip())
        leaves.append(Array(dtype, sizes, int(space[1]) if space else 0))
    return tuple(leaves)
