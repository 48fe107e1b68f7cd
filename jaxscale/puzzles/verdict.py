"""What the grader says of a file. No jax."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: numbers, layout, communication or memory.
        seen: what was found; `suffices`: what would do, where something else was found; `think`: the idea behind.
    """

    name: str
    passed: bool
    seen: str
    suffices: str = ""
    think: str = ""


@dataclass(frozen=True)
class Verdict:
    """Of one file.

    Attributes:
        problem: why it could not be checked, in a line; "" where it was.
        not_yet: the problem is that the line to be replaced still stands there.
        printed: what the learner's code printed, its begin.
    """

    file: str
    puzzle: str
    checks: tuple[Check, ...] = ()
    problem: str = ""
    not_yet: bool = False
    printed: str = field(default="", compare=False)

    @property
    def solved(self) -> bool:
        return not self.problem and bool(self.checks) and all(c.passed for c in self.checks)


def from_values(values: Mapping[str, Any], printed: str = "") -> Verdict:
    checks = tuple(Check(**c) for c in values["checks"])
    return Verdict(**{**values, "checks": checks, "printed": printed})
