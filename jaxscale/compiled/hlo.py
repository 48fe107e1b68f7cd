"""Compiled HLO text as data: a program's computations, and how often each of them runs in one step.

Reads the text that XLA's TPU, GPU and CPU compilers print of a scheduled program. It knows no jax, and nothing of
transformers; what the instructions *do* (matmuls, collectives) is read by `compiled.work`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from jaxscale.compiled.instructions import Computation, Instruction, parse_instruction
from jaxscale.compiled.loops import Loops


@dataclass
class Program:
    """A module: its computations, which one is the entry, and how often each runs in one execution of the entry.

    Attributes:
        executions: computation -> times a step; loops are multiplied out.
        trips: loop -> runs of its body each time; None where that could not be read (it counts once).
    """

    computations: dict[str, Computation]
    entry: str
    executions: dict[str, int] = field(default_factory=dict)
    trips: dict[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        loops = Loops(self.computations)
        for computation in self.computations.values():
            for i in computation:
                if i.opcode == "while":
                    self.trips[i.name] = loops.trip_count(computation, i)
        self._count(self.entry, 1)

    @property
    def unknown_loops(self) -> list[str]:
        """Loops that run, and whose trip count could not be read."""
        return [
            i.name
            for computation, _ in self.running()
            for i in computation
            if i.opcode == "while" and self.trips[i.name] is None
        ]

    def runs(self, loop: Instruction) -> int:
        """Of a loop's body, each time that the loop is met; 1 where that could not be read."""
        trips = self.trips[loop.name]
        return 1 if trips is None else trips

    def _count(self, name: str, times: int) -> None:
        self.executions[name] = self.executions.get(name, 0) + times
        for instruction in self.computations[name]:
            inner = times * (self.runs(instruction) if instruction.opcode == "while" else 1)
            for called in instruction.called:
                if called in self.computations:
                    self._count(called, inner)

    def running(self) -> Iterator[tuple[Computation, int]]:
        """Computations that run, with how often."""
        for name, times in self.executions.items():
            if times:
                yield self.computations[name], times


HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*-> .*)?\{$")
LOST = re.compile(r"^\s.*(?:replica_groups|source_target_pairs)=")  # what must not be left out in silence


def parse(text: str) -> Program:
    """Read a module's text. Raises ValueError for no entry computation, and for a line that cannot be read."""
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for line in text.splitlines():
        if line.endswith("{") and (header := HEADER.match(line)):
            current = computations[header[2]] = Computation(header[2])
            entry = header[2] if header[1] else entry
        elif current is not None and (instruction := parse_instruction(line)):
            current.instructions[instruction.name] = instruction
        elif current is not None and (line.endswith("{") or LOST.search(line)):
            raise ValueError(f"this line of compiled HLO text cannot be read: {line.strip()[:200]}")
    if entry is None:
        raise ValueError("this is no compiled HLO text: no ENTRY computation in it")
    return Program(computations, entry)
