"""The one rule for what a terminal is too narrow for: tables fold, leave columns out by name, or stack. No jax.

A terminal's width is kept: lines end between words, and no word or number is cut. A pipe has no width: a row is one
line there, however long, so that grep finds it.
"""

import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

WIDE = 120  # of a recorder, which is a page's
NO_LIMIT = 1_000_000  # columns of a pipe
HELD = "\N{NO-BREAK SPACE}"
COLUMN = 12  # a folded column keeps so many, if its text has them
RECORDER: ContextVar[Console | None] = ContextVar("recorder", default=None)  # in place of the terminal


def make_console() -> Console:
    """As wide as the terminal or `COLUMNS` says; without either nothing is folded."""
    if (recorder := RECORDER.get()) is not None:
        return recorder
    console = Console(highlight=False)
    known = console.is_terminal or "COLUMNS" in os.environ
    return console if known else Console(highlight=False, width=NO_LIMIT)


def tell(console: Console, line: str, style: str = "") -> None:
    """A line of text: on a terminal it ends between words, and goes on further in."""
    for part in wrapped(line, console.width) if console.is_terminal else [line]:
        console.print(part, style=style, markup=False, soft_wrap=True)


def wrapped(text: str, width: int) -> list[str]:
    """Its lines, whole between brackets where there is room; a word that is longer than the width stays whole."""
    lines = []
    for line in text.split("\n"):
        begin = " " * (len(line) - len(line.lstrip()) + 2)
        held = re.sub(r"\[[^][]{1,40}\]", lambda match: match[0].replace(" ", HELD), line)
        parts = textwrap.wrap(held, width, subsequent_indent=begin, break_long_words=False, break_on_hyphens=False)
        lines += [part.replace(HELD, " ") for part in parts] or [""]
    return lines


def filled(items: Sequence[str], width: int) -> list[str]:
    """Lines of as many items as they hold; one ends between two items."""
    held = "  ".join(item.replace(" ", HELD) for item in items)
    return [line.replace(HELD, " ") for line in textwrap.wrap(held, width, break_long_words=False)]


def beside(console: Console, text: str, figures: str, *, room: int, needs: int) -> str:
    """Text in the first `room` columns, or fewer where the figures need `needs`. They stand beside its first line."""
    if not console.is_terminal:
        return f"{text:<{room}}{figures}"
    room = max(min(room, console.width - needs), console.width // 3)
    first, *rest = wrapped(text, room - 1)
    return "\n".join([f"{first:<{room}}{figures}", *rest])


def make_table(title: str, *columns: str, spare: Sequence[str] = (), ruled: bool = True) -> "FittedTable":
    """Columns whose names begin with `<` are left-aligned, and may be folded; others stand to the right.

    The first one stands to the left unless its name begins with `>`.

    Args:
        spare: names of columns that may be left out, the first to go first.
        ruled: with lines around the cells, where there is room for them.
    """
    named = []
    for i, name in enumerate(columns):
        left = name.startswith("<") or (i == 0 and not name.startswith(">"))
        named.append(Column(name.lstrip("<>"), left=left, folds=name.startswith("<")))
    unknown = set(spare) - {column.name for column in named}
    assert not unknown, unknown
    return FittedTable(title, named, spare, ruled)


@dataclass(frozen=True)
class Column:
    name: str
    left: bool
    folds: bool


class FittedTable:
    """Rows that are drawn as well as the width allows: whole, without rules, folded, with columns left out, stacked."""

    def __init__(self, title: str, columns: list[Column], spare: Sequence[str], ruled: bool):
        self.title, self.columns, self.spare, self.ruled = title, columns, spare, ruled
        self.rows: list[tuple[list[Text], str | None]] = []

    def add_row(self, *cells: str, style: str | None = None) -> None:
        """A cell may have rich's markup and several lines."""
        assert len(cells) == len(self.columns), cells
        self.rows.append(([Text.from_markup(cell) for cell in cells], style))

    @property
    def row_count(self) -> int:
        return len(self.rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        if self.title:
            yield Text("\n".join(wrapped(self.title, width)), style="table.title")
        for count in range(len(self.spare) + 1):
            gone = self.spare[:count]
            shown = [i for i, column in enumerate(self.columns) if column.name not in gone]
            for ruled in (True, False) if self.ruled else (False,):
                if widths := self.widths(shown, width, ruled=ruled, folds=not ruled):
                    yield self.drawn(shown, widths, ruled=ruled)
                    if gone:
                        left_out = ", ".join(one_line(self.columns[i].name) for i in range(len(self.columns))
                                             if i not in shown)  # fmt: skip
                        note = f"left out at a width of {width}: {left_out}; a wider terminal shows more"
                        yield Text("\n".join(wrapped(note, width)))
                    return
        yield Text("\n").join(self.stacked(width))

    def widths(self, shown: list[int], width: int, *, ruled: bool, folds: bool) -> list[int] | None:
        """Of the columns' text, or None where they do not fit."""
        around = 3 * len(shown) + 1 if ruled else 2 * len(shown)
        whole = {i: max(map(cell_len, self.lines(i))) for i in shown}
        least = {i: self.least(i, whole[i]) if folds and self.columns[i].folds else whole[i] for i in shown}
        if sum(least.values()) + around > width:
            return None
        while sum(whole.values()) + around > width:
            widest = max((i for i in shown if whole[i] > least[i]), key=lambda i: whole[i])
            whole[widest] -= 1
        return list(whole.values())

    def lines(self, column: int) -> Iterator[str]:
        yield from self.columns[column].name.split("\n")
        for cells, _ in self.rows:
            yield from cells[column].plain.split("\n")

    def least(self, column: int, whole: int) -> int:
        """Columns for its longest word, and some more to be read."""
        word_widths = (cell_len(word) for line in self.lines(column) for word in line.split())
        return max([min(COLUMN, whole), *word_widths])

    def drawn(self, shown: list[int], widths: list[int], *, ruled: bool) -> Table:
        table = Table(
            box=box.HEAVY_HEAD if ruled else box.SIMPLE,
            pad_edge=ruled,
            padding=(0, 1) if ruled else (0, 1, 0, 0),
            show_header=any(self.columns[i].name for i in shown),
        )
        for i, wide in zip(shown, widths, strict=True):
            justify = "left" if self.columns[i].left else "right"
            table.add_column(Text(self.columns[i].name), justify=justify, width=wide, overflow="fold")  # type: ignore[arg-type]
        for cells, style in self.rows:
            table.add_row(*(cells[i] for i in shown), style=style)
        return table

    def stacked(self, width: int) -> Iterator[Text]:
        """Each row as a block: its first cell, then a line for each of the others that is not empty."""
        for cells, style in self.rows:
            yield Text("\n".join(wrapped(one_line(cells[0].plain) or "-", width)), style="bold")
            for column, cell in zip(self.columns[1:], cells[1:], strict=True):
                if cell.plain:
                    name = f"{one_line(column.name)}: " if column.name else ""
                    yield Text("\n".join(wrapped(f"  {name}{one_line(cell.plain)}", width)), style=style or "")


def one_line(text: str) -> str:
    """`micro-\\nbatches` as one word, and other lines with a space between."""
    return text.replace("-\n", "").replace("\n", " ")
