"""How far a preparation has come: the counts, and a bar or lines that show them. Knows nothing of what is counted."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

LINE_SECONDS = 10.0  # between two lines where there is no terminal


class BadRecord(ValueError):
    """A record, or a whole file, whose contents are not what they should be: what ``--skip-bad`` leaves out."""


@dataclass
class BadRecords:
    """Records that cannot be read, of which ``allowed`` are left out; ``reasons`` name each."""

    allowed: int = 0
    reasons: list[str] = field(default_factory=list)

    def skip(self, reason: ValueError) -> None:
        """Count one; ValueError where it is one too many."""
        if len(self.reasons) < self.allowed:
            self.reasons.append(str(reason))
        elif self.allowed:
            raise ValueError(f"{reason}; {self.allowed} bad records were skipped before it (--skip-bad {self.allowed})")
        else:
            raise ValueError(f"{reason}; or skip such records with --skip-bad N")


@dataclass
class Progress:
    """Counts that live while a corpus is read. Bytes are bytes of the source files, compressed where they are."""

    phase: str
    bytes_total: int
    bytes_read: int = 0
    documents: int = 0
    tokens: int = 0
    empty_documents: int = 0
    undecodable_files: int = 0
    bad: BadRecords = field(default_factory=BadRecords)


Report = Callable[[Progress], None]


@contextmanager
def reporting(report: Report | None) -> Iterator[Report]:
    """``report`` itself, or where there is none a bar on stderr if that is a terminal, else lines."""
    if report is not None:
        yield report
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lines()
        return
    with _bar(console) as bar_report:
        yield bar_report


def lines() -> Report:
    """A report that prints a line on stderr every ``LINE_SECONDS``: bytes, counts and the time left."""
    begun: dict[str, float] = {}
    last = time.monotonic()

    def report(state: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        start = begun.setdefault(state.phase, now)
        if now - last < LINE_SECONDS:
            return
        last = now
        print(_line(state, now - start), file=sys.stderr, flush=True)

    return report


def _line(state: Progress, seconds: float) -> str:
    parts = [f"{state.phase}: {_size(state.bytes_read)}"]
    if state.bytes_total:
        parts[0] += f" of {_size(state.bytes_total)} ({min(1.0, state.bytes_read / state.bytes_total):.0%})"
    if state.documents:
        parts.append(f"{state.documents:,} documents, {state.tokens:,} tokens")
    if 0 < state.bytes_read <= state.bytes_total:
        left = round(seconds * (state.bytes_total - state.bytes_read) / state.bytes_read)
        parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
    return ", ".join(parts)


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} GB"


@contextmanager
def _bar(console) -> Iterator[Report]:
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(bar_width=None),
        rich_progress.DownloadColumn(),
        rich_progress.TextColumn("{task.fields[counts]}"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=console) as bar:
        tasks: dict[str, rich_progress.TaskID] = {}

        def report(state: Progress) -> None:
            if state.phase not in tasks:
                tasks[state.phase] = bar.add_task(state.phase, total=state.bytes_total or None, counts="")
            counts = f"{state.documents:,} documents, {state.tokens:,} tokens" if state.documents else ""
            bar.update(tasks[state.phase], completed=state.bytes_read, counts=counts)

        yield report
