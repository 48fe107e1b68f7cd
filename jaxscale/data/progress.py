"""How far a preparation has come: the counts, and a live bar on a terminal. Knows nothing of what is counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Progress:
    """Counts that live while a corpus is read. Bytes are bytes of the source files."""

    phase: str
    bytes_total: int
    bytes_read: int = 0
    documents: int = 0
    tokens: int = 0
    empty_documents: int = 0
    undecodable_files: int = 0


Report = Callable[[Progress], None]


@contextmanager
def reporting(report: Report | None) -> Iterator[Report]:
    """``report`` itself, or where there is none a bar on stderr if that is a terminal, else silence."""
    if report is not None:
        yield report
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda progress: None
        return
    with _bar(console) as bar_report:
        yield bar_report


@contextmanager
def _bar(console) -> Iterator[Report]:
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.DownloadColumn(),
        rich_progress.TextColumn("{task.fields[counts]}"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=console) as bar:
        tasks: dict[str, rich_progress.TaskID] = {}

        def report(state: Progress) -> None:
            if state.phase not in tasks:
                tasks[state.phase] = bar.add_task(state.phase, total=state.bytes_total, counts="")
            counts = f"{state.documents:,} documents, {state.tokens:,} tokens" if state.documents else ""
            bar.update(tasks[state.phase], completed=state.bytes_read, counts=counts)

        yield report
