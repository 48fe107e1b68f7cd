"""Puzzles in a terminal: the list, hints, and what the grader says. No jax."""

from typing import Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from jaxscale.console.tables import make_console, make_table, tell
from jaxscale.puzzles.catalogue import CHAPTERS, PUZZLES, Puzzle, find
from jaxscale.puzzles.hints import HINTS
from jaxscale.puzzles.verdict import Check, Verdict

PRINTED = 20  # lines of what the learner's code printed


def catalogue_values() -> list[dict[str, Any]]:
    return [
        {
            "number": p.number,
            "name": p.name,
            "line": p.line,
            "idea": p.idea,
            "chapter": p.chapter,
            "chapter_title": CHAPTERS[p.chapter],
            "hints": len(HINTS[p.name]),
        }
        for p in PUZZLES
    ]


def show_list() -> None:
    columns = (">", "<name", "<what it is about", "<what it turns on", "<chapter")
    table = make_table("puzzles, in order of difficulty", *columns)
    for p in PUZZLES:
        table.add_row(str(p.number), p.name, escape(p.line), escape(p.idea), f"{p.chapter} {CHAPTERS[p.chapter]}")
    console = make_console()
    console.print(table)
    tell(console, f"begin with: jaxscale puzzle get {PUZZLES[0].name}")


def show_hints(puzzle: Puzzle, number: int | None) -> None:
    """One hint, or all. Raises ValueError where there is no such one."""
    hints, console = HINTS[puzzle.name], make_console()
    if number is not None and number > len(hints):
        raise ValueError(f"{puzzle.name} has {len(hints)} hints, and no number {number}")
    for i, text in enumerate(hints, 1):
        if number in (None, i):
            tell(console, f"hint {i} of {len(hints)}: {text}")
    if number is not None and number < len(hints):
        tell(console, f"the next: jaxscale puzzle hint {puzzle.name} {number + 1}")


def show_verdict(verdict: Verdict) -> None:
    """A row for each check; after a fail what suffices, and what to think about."""
    console, puzzle = make_console(), find(verdict.puzzle)
    console.print(f"[bold]{puzzle.number} {puzzle.name}[/bold]  {escape(verdict.file)}", soft_wrap=True)
    if verdict.problem:
        word = "" if verdict.not_yet else "[bold red]FAIL[/bold red]  "
        console.print(Padding(f"{word}{escape(verdict.problem)}", (0, 0, 0, 2)))
    else:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for wraps in (False, False, True):
            table.add_column(no_wrap=not wraps)
        for one in verdict.checks:
            word = "[green]pass[/green]" if one.passed else "[bold red]FAIL[/bold red]"
            table.add_row(one.name, word, escape(told(one)))
        console.print(Padding(table, (0, 0, 0, 2)))
    if verdict.printed:
        console.print("  your code printed:")
        console.print(Padding(escape(begin(verdict.printed)), (0, 0, 0, 4)))
    if verdict.solved:
        console.print("  [green]solved[/green]" + next_one(puzzle), soft_wrap=True)
    else:
        console.print(f"  stuck? jaxscale puzzle hint {puzzle.name}", soft_wrap=True)


def told(one: Check) -> str:
    if one.passed:
        return one.seen
    lines = [one.seen]
    lines += [f"{'wanted' if one.name == 'layout' else 'suffices'}: {one.suffices}"] if one.suffices else []
    lines += [f"think: {one.think}"] if one.think else []
    return "\n".join(lines)


def begin(text: str) -> str:
    """As much as fits beside a verdict."""
    lines = text.rstrip().splitlines()
    return "\n".join(lines[:PRINTED] + ([f"... ({len(lines) - PRINTED} more lines)"] if len(lines) > PRINTED else []))


def next_one(puzzle: Puzzle) -> str:
    return f"; the next: jaxscale puzzle get {PUZZLES[puzzle.number].name}" if puzzle.number < len(PUZZLES) else ""
