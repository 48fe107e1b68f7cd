"""Many cases of one target, drawn from a seed; what went wrong is kept, with its input, and the rest goes on."""

import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from fuzz import checkpoints, examples, ladders, processes, reports, targets, tasks, tokens
from fuzz.oracle import Outcome, Place
from fuzz.targets import Case, Target

ALL = [
    *targets.TARGETS, *tokens.TARGETS, *examples.TARGETS, *tasks.TARGETS, *ladders.TARGETS, *reports.TARGETS,
    *checkpoints.TARGETS, *processes.TARGETS,
]  # fmt: skip


@dataclass
class Found:
    """What came out of the cases of a target."""

    name: str
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    messages: Counter = field(default_factory=Counter)
    defects: list[tuple[str, str, Case]] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return self.accepted + self.refused + len(self.defects)

    def add(self, outcome: Outcome, case: Case) -> None:
        if outcome.kind == "defect":
            self.defects.append((outcome.told, outcome.where, case))
        elif outcome.kind == "accepted":
            self.accepted += 1
        else:
            self.refused += 1
            self.messages[outcome.told] += 1


def run_target(target: Target, folder: Path, *, cases: int, seed: int) -> Found:
    """`cases` inputs (always the same for a seed) through the target's reader, in a folder of its own."""
    place, found = Place(folder / target.name), Found(target.name)
    strategy = target.cases(folder / target.name / "valid")

    def one(case: Case) -> None:
        if found.cases >= cases:
            return
        start = time.perf_counter()
        outcome = target.run(place, case)
        found.slowest = max(found.slowest, time.perf_counter() - start)
        found.add(outcome, case)

    drawn = seeded(seed)(given(strategy)(one))
    start = time.perf_counter()
    settings(max_examples=cases, database=None, deadline=None, phases=[Phase.generate],
             suppress_health_check=list(HealthCheck))(drawn)()  # fmt: skip
    found.seconds = time.perf_counter() - start
    shutil.rmtree(place.case, ignore_errors=True)
    return found
