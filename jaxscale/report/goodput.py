"""Where a run's wall time went, over its restarts, from the lines of events.jsonl. Pure functions; no jax.

Every moment from the first event to the last goes to exactly one of `PARTS`. What has a start and an end takes the time
between them, the innermost where they are nested; a step takes the seconds that it says, as far as they are not taken.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Event = dict[str, Any]
PARTS = (
    "steps that counted",
    "sampling",
    "rewards",
    "reference",
    "lost steps",
    "outer steps",
    "compile",
    "init",
    "data wait",
    "evaluation",
    "checkpoint blocking",
    "restart",
    "other",
)
PART_OF = {
    "devices": "init",
    "data": "init",
    "init": "init",
    "compile": "compile",
    "data wait": "data wait",
    "rollout": "sampling",
    "reward": "rewards",
    "reference": "reference",
    "evaluation": "evaluation",
    "outer step": "outer steps",
    "checkpoint": "checkpoint blocking",
    "rollback": "restart",
}
OF_SAMPLES = ("sampling", "rewards", "reference")  # the work that makes the batches of a run that trains on samples
USEFUL = ("steps that counted", *OF_SAMPLES)
WAITED = ("data wait", *OF_SAMPLES)  # a step's wait for its batch holds these


@dataclass(frozen=True)
class Goodput:
    """Seconds of wall time by what they went to; they sum to `wall_seconds`.

    Attributes:
        seconds: of each of `PARTS`. A lost step was done again, by a later attempt or after a rollback; what made its
            samples is lost with it. Waiting for data is what the host saw: some of it may have been hidden behind the
            devices' work, so the share of steps is not too high.
    """

    wall_seconds: float
    seconds: dict[str, float]
    steps_counted: int
    steps_lost: int
    attempts: int

    @property
    def share(self) -> float:
        """Of wall time, on steps that counted and on their samples."""
        return sum(self.seconds[part] for part in USEFUL) / self.wall_seconds if self.wall_seconds else 0.0

    @property
    def samples(self) -> bool:
        """Did the run train on samples of its own model?"""
        return any(self.seconds[part] for part in OF_SAMPLES)


def goodput(events: Sequence[Event]) -> Goodput | None:
    """None where no event has a time."""
    clean = in_order(events)
    if not clean:
        return None
    seconds = dict.fromkeys(PARTS, 0.0)
    attempts: dict[tuple[int, int], list[Event]] = {}  # and within one, what comes after each rollback
    rollbacks = 0
    for event in clean:
        rollbacks += event.get("event") == "rollback" and event.get("phase") == "start"
        attempts.setdefault((event["attempt"], rollbacks), []).append(event)
    numbers = sorted(attempts)
    resumed = {n: first_step(attempts[n]) for n in numbers}
    counted = lost = 0
    for number in numbers:
        later = [s for n in numbers if n > number and (s := resumed[n]) is not None]
        redone_after = min(later, default=None)
        more_counted, more_lost = spend(attempts[number], redone_after, seconds)
        counted, lost = counted + more_counted, lost + more_lost
    for before, after in pairwise(numbers):
        seconds["restart"] += max(0.0, attempts[after][0]["time"] - attempts[before][-1]["time"])
    wall = clean[-1]["time"] - clean[0]["time"]
    return Goodput(wall, seconds, counted, lost, len({attempt for attempt, _ in numbers}))


def in_order(events: Sequence[Event]) -> list[Event]:
    """Events that have a time, with an attempt each; a clock that was set back stands still instead."""
    ordered: list[Event] = []
    attempt = 1
    for event in events:
        time, said = number(event.get("time")), event.get("attempt")
        if time is None:
            continue
        attempt = max(attempt, said) if isinstance(said, int) else attempt
        ordered.append(event | {"time": max(time, ordered[-1]["time"] if ordered else time), "attempt": attempt})
    return ordered


def first_step(events: list[Event]) -> int | None:
    """The step that an attempt went on from: said when it began or was made ready, else the one before its first."""
    for event in events:
        begins = event.get("event") == "run" and event.get("phase") == "start"
        ready = event.get("event") in ("init", "rollback") and event.get("phase") == "end"
        if (begins or ready) and isinstance(event.get("step"), int):
            return event["step"]
    steps = [e["step"] for e in events if e.get("event") == "step" and isinstance(e.get("step"), int)]
    return min(steps) - 1 if steps else None


def spend(events: list[Event], redone_after: int | None, seconds: dict[str, float]) -> tuple[int, int]:
    """Add one attempt's time to `seconds`, and tell how many of its steps counted, and how many were lost."""
    parts = stretches(events, redone_after)
    times = [e["time"] for e in events]
    free = sum(times[i + 1] - times[i] for i, part in enumerate(parts) if part is None)
    for i, part in enumerate(parts):
        if part is not None:
            seconds[part] += times[i + 1] - times[i]
    counted = lost = last = 0
    for i, event in enumerate(events):
        if event.get("event") != "step":
            continue
        said = number(event.get("seconds"))
        begin = times[last] if said is None else max(times[last], times[i] - said)
        taken = sum(
            times[j + 1] - max(times[j], begin) for j in range(last, i) if not parts[j] and times[j + 1] > begin
        )
        apart = sum(times[j + 1] - times[j] for j in range(last, i) if parts[j] in WAITED)
        last, free = i, free - taken
        step = event.get("step")
        if redone_after is not None and isinstance(step, int) and step > redone_after:
            lost, seconds["lost steps"] = lost + 1, seconds["lost steps"] + taken
            continue
        waited = number(event.get("data_wait_seconds")) or 0.0
        waited = min(taken, max(0.0, waited - apart))  # samples, and an attempt's first batch, have their own stretches
        seconds["data wait"] += waited
        seconds["steps that counted"] += taken - waited
        counted += 1
    seconds["other"] += max(0.0, free)
    return counted, lost


def stretches(events: list[Event], redone_after: int | None = None) -> list[str | None]:
    """For each time between two events the part that it is spent in: the innermost that has started and not ended.

    What has no end (the process was killed, the line is damaged) lasts until the next event. Samples of a step beyond
    `redone_after` are lost with it; their events have the number of the step before.
    """

    def part_of(i: int) -> str:
        part, step = PART_OF[str(events[i].get("event"))], events[i].get("step")
        lost = part in OF_SAMPLES and redone_after is not None and isinstance(step, int) and step >= redone_after
        return "lost steps" if lost else part

    waiting: list[tuple[str, int]] = []
    spans: list[tuple[int, int, str]] = []
    for i, event in enumerate(events):
        name, phase = str(event.get("event")), event.get("phase")
        if name not in PART_OF:
            continue
        if phase == "start":
            waiting.append((name, i))
        elif phase == "end" and (begun := [w for w in waiting if w[0] == name]):
            waiting.remove(begun[-1])
            spans.append((begun[-1][1], i, part_of(begun[-1][1])))
    spans += [(i, i + 1, part_of(i)) for _, i in waiting if i + 1 < len(events)]
    parts: list[str | None] = [None] * (len(events) - 1)
    for begin, end, part in sorted(spans, key=lambda span: (span[0], -span[1])):  # the outer ones first
        parts[begin:end] = [part] * (end - begin)
    return parts


def number(value: Any) -> float | None:
    """A number that is finite and not negative."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max
    return float(value) if fits else None
