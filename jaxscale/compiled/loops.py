"""How often a `while` of compiled HLO runs: its counter's start, step and bound, read from the text. No jax.

Counters are followed as symbols through the few operations that compilers put between a loop's tuple and its
comparison (copies, fusions, calls, additions). Whatever else stands there makes the trip count unknown: None.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxscale.compiled.instructions import Computation, Instruction

INTEGERS = ("s8", "s16", "s32", "s64", "u8", "u16", "u32", "u64")
SAME = (
    "bitcast",
    "convert",
    "copy",
    "copy-done",
    "copy-start",
    "get-tuple-element",
    "optimization-barrier",
    "reshape",
)
FLIPPED = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE", "EQ": "EQ", "NE": "NE"}


@dataclass(frozen=True)
class Given:
    """A value that comes from outside a computation, plus a number: `path` leads from its parameter to the value."""

    parameter: int
    path: tuple[int, ...] = ()
    plus: int = 0


@dataclass(frozen=True)
class Comparison:
    direction: str
    left: Any
    right: Any


class Loops:
    """Reads the loops of one program.

    Args:
        computations: all of the module, by name.
    """

    def __init__(self, computations: Mapping[str, Computation]):
        self.computations = computations
        self.values: dict[tuple[str, str], Any] = {}
        self.callers: dict[str, list[tuple[Computation, Instruction]]] = {}
        for computation in computations.values():
            for i in computation:
                for name in i.called:
                    self.callers.setdefault(name, []).append((computation, i))

    def trip_count(self, computation: Computation, loop: Instruction) -> int | None:
        """Runs of the body of a `while` that stands in `computation`; None where the text does not say it."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(known[1])
        condition, body = loop_parts(loop)
        if condition not in self.computations or body not in self.computations:
            return None
        test = self.result(condition)
        if not isinstance(test, Comparison):
            return None
        first, second = (self.run(computation, loop, body, side) for side in (test.left, test.right))
        if first is None or second is None:
            return None
        (left, left_step), (right, right_step) = first, second
        if left_step and right_step:
            return None
        if right_step:
            return trips(FLIPPED[test.direction], right, right_step, left)
        return trips(test.direction, left, left_step, right)

    def run(self, computation: Computation, loop: Instruction, body: str, side: Any) -> tuple[int, int] | None:
        """Of one side of a condition: its value before the first run, and what a run adds to it."""
        if isinstance(side, int):
            return side, 0
        if not isinstance(side, Given):
            return None
        after = at(self.result(body), side.path)
        if not isinstance(after, Given) or after.path != side.path:
            return None
        start = self.constant(computation, loop.operands[0], side.path)
        return None if start is None else (start + side.plus, after.plus)

    def constant(self, computation: Computation, name: str, path: tuple[int, ...] = ()) -> int | None:
        """An integer that is the same in every run of the computation, where it can be told."""
        value = at(self.value(computation, name), path)
        seen = set()
        while isinstance(value, Given) and computation.name not in seen:
            seen.add(computation.name)
            callers = self.callers.get(computation.name, [])
            if len(callers) != 1:
                return None
            outer, caller = callers[0]
            if caller.opcode == "while":  # what every run of it hands on as it was
                after = at(self.result(computation.name), value.path)
                if after != replace(value, plus=0):
                    return None
            elif caller.opcode not in ("fusion", "call"):
                return None
            argument = at(self.value(outer, caller.operands[value.parameter]), value.path)
            value, computation = add(argument, value.plus), outer
        return value if isinstance(value, int) else None

    def result(self, name: str) -> Any:
        computation = self.computations[name]
        return self.value(computation, computation.root.name)

    def value(self, computation: Computation, name: str) -> Any:
        """A value as an integer, a `Given`, a comparison, or a tuple of these; None for anything else."""
        key = (computation.name, name)
        if key not in self.values:
            i = computation.instructions.get(name)
            self.values[key] = None if i is None else self.read(computation, i)
        return self.values[key]

    def read(self, computation: Computation, i: Instruction) -> Any:
        if i.opcode == "parameter":
            return Given(int(i.literal))
        if i.opcode == "tuple":
            return tuple(self.value(computation, o) for o in i.operands)
        if i.opcode in ("fusion", "call") and len(i.called) == 1 and i.called[0] in self.computations:
            return self.called(computation, i)
        if i.opcode in SAME:
            inner = self.value(computation, i.operands[0])
            return at(inner, (int(i.attribute("index") or 0),)) if i.opcode == "get-tuple-element" else inner
        if not i.arrays or i.arrays[0].elements != 1 or i.arrays[0].dtype not in (*INTEGERS, "pred"):
            return None
        if i.opcode == "constant":
            return integer(i.literal)
        if i.opcode not in ("add", "subtract", "compare"):
            return None
        left, right = (self.value(computation, o) for o in i.operands)
        if i.opcode == "compare":
            return Comparison(i.attribute("direction") or "", left, right)
        if i.opcode == "subtract":
            return add(left, -right) if isinstance(right, int) else None
        return add(left, right) if isinstance(right, int) else add(right, left)

    def called(self, computation: Computation, i: Instruction) -> Any:
        """The result of a fusion or a call, its parameters put in."""
        return put_in(self.result(i.called[0]), [self.value(computation, o) for o in i.operands])


def loop_parts(loop: Instruction) -> tuple[str, str]:
    """Names of a `while`'s condition and body."""
    matches = [re.search(rf"{part}=%?([\w.\-]+)", loop.attributes) for part in ("condition", "body")]
    return tuple(m[1] if m else "" for m in matches)  # type: ignore[return-value]


def put_in(value: Any, given: list[Any]) -> Any:
    if isinstance(value, Given):
        return add(at(given[value.parameter], value.path), value.plus) if value.parameter < len(given) else None
    if isinstance(value, Comparison):
        return Comparison(value.direction, put_in(value.left, given), put_in(value.right, given))
    return tuple(put_in(v, given) for v in value) if isinstance(value, tuple) else value


def at(value: Any, path: tuple[int, ...]) -> Any:
    """An element of a tuple, by the indices that lead to it."""
    for k in path:
        if isinstance(value, Given) and not value.plus:
            value = replace(value, path=(*value.path, k))
        else:
            value = value[k] if isinstance(value, tuple) and k < len(value) else None
    return value


def add(value: Any, number: Any) -> Any:
    """The sum of a value and a number. A tuple, which is in no sum, stays itself where the number is 0."""
    if not isinstance(number, int) or number == 0:
        return value if number == 0 else None
    if isinstance(value, int):
        return value + number
    return replace(value, plus=value.plus + number) if isinstance(value, Given) else None


def integer(literal: str) -> int | None:
    """The value of a scalar constant; arrays of one element are written in braces."""
    match = re.fullmatch(r"[{\s]*(-?\d+)[}\s]*", literal)
    return int(match[1]) if match else None


def trips(direction: str, start: int, step: int, bound: int) -> int | None:
    """Runs of `i = start; while i <direction> bound: i += step`; None for a loop that does not end so."""
    holds = {
        "LT": start < bound,
        "LE": start <= bound,
        "GT": start > bound,
        "GE": start >= bound,
        "NE": start != bound,
        "EQ": start == bound,
    }.get(direction)
    if not holds:
        return 0 if holds is False else None
    if direction == "EQ":
        return 1 if step else None
    distance = bound - start
    if direction == "NE":
        return distance // step if step and distance % step == 0 and distance // step >= 0 else None
    if (step > 0) != (direction in ("LT", "LE")) or step == 0:
        return None  # it moves away from its bound
    return distance // step + 1 if direction in ("LE", "GE") else -(-distance // step)
