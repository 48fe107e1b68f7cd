"""events.jsonl: what a run's wall time goes to, start and end of each, over all its restarts. Read by `report`.

One JSON object a line: `event`, `phase` (start, end), `time` (unix seconds), `attempt` (1, 2, ... of this directory),
`step`. A step has one line, written once its metrics are read: `time` is when the step was done, `seconds` begin at the
end of whatever came before, `data_wait_seconds` is how long the host waited for its batch. A process that is killed
leaves starts without ends.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxscale.files.jsonl import Lines, read_records


class Events:
    """Written by process 0; lines made before `open` are kept until then, as the directory is not there yet.

    Attributes:
        last: when the newest event was, by `time.perf_counter`.
    """

    def __init__(self) -> None:
        self.active = True
        self.waiting: list[dict[str, Any]] = []
        self.file: Lines | None = None
        self.attempt = 1
        self.last = time.perf_counter()

    def open(self, out: Path, say: Callable[[str], None]) -> None:
        self.active = jax.process_index() == 0
        if self.active:
            path = out / "events.jsonl"
            self.attempt = 1 + last_attempt(path)
            self.file = Lines(path, say)
            for line in self.waiting:
                self.file.write(line | {"attempt": self.attempt})
        self.waiting.clear()

    def write(self, event: str, phase: str, step: int | None = None, *, at: float | None = None, **more: float) -> None:
        """`at`: when it happened, by `time.perf_counter`; None: now."""
        now = time.perf_counter()
        self.last = now if at is None else at
        when = time.time() - (now - self.last)
        line = {"event": event, "phase": phase, "time": when, "attempt": self.attempt, "step": step} | more
        if self.file:
            self.file.write(line)
        elif self.active:
            self.waiting.append(line)

    def close(self) -> None:
        if self.file:
            self.file.close()
            self.file, self.active = None, False


def last_attempt(path: Path) -> int:
    """The number of the newest attempt in the file; 0 where there is none."""
    numbers = (r.get("attempt") for r in read_records(path))
    return max((n for n in numbers if isinstance(n, int)), default=0)
