"""Python's standard library as text, and abilities that ask about it.

The text is that of the Python that runs, so these examples are the same wherever that version runs. The held-out files
are those that `data prepare --stdlib --validation-fraction 0.05` holds out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from jaxscale.abilities.draw import Draw
from jaxscale.abilities.example import OF_ANSWERS, OF_CHOICES, Example, one_of
from jaxscale.data.progress import Progress
from jaxscale.data.sources import documents, stdlib_source
from jaxscale.data.split import name_hash

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
HELD_OUT_FILES = 0.05  # share of the files
BEFORE = 80  # characters of a file that a prompt shows, at most
SHOWN = 500  # characters of a document
CLOSING = ")]}"
SWAPPED = ("len", "print")
SWAP = "len, print = print, len\n"


@cache
def files(split: Split) -> tuple[str, ...]:
    """The texts of a split's files, in the order of their names."""
    source = stdlib_source()
    every = documents(source, Progress("reading", source.size_bytes))
    wanted = ("".join(one.chunks) for one in every if (name_hash(one.name) < HELD_OUT_FILES) == (split == "held_out"))
    return tuple(text for text in wanted if text)


def library_text(split: str) -> list[str]:
    """The files of Python's standard library, each a text: those to train on (`train`), or the others (`held_out`).

    Raises:
        ValueError: another split, or no library.
    """
    for known in SPLITS:
        if split == known:
            return list(files(known))
    raise ValueError(f"split {split!r} of the library: it is one of {', '.join(SPLITS)}")


def before(text: str, end: int) -> str:
    """The whole lines before `end`, and that line's beginning, as far as they fit."""
    start = max(0, end - BEFORE)
    if start and (newline := text.find("\n", start, end)) >= 0:
        start = newline + 1
    return text[start:end]


@cache
def places(pattern: str, split: Split = "held_out") -> tuple[tuple[int, int], ...]:
    """(file, start) of every match in the files of a split: where the group `at` is, or else the match."""
    compiled = re.compile(pattern, re.MULTILINE | re.ASCII)
    at = "at" if "at" in compiled.groupindex else 0
    return tuple(
        (number, match.start(at))
        for number, text in enumerate(files(split))
        for match in compiled.finditer(text)
        if match.start(at)
    )


@dataclass(frozen=True)
class OfLibrary:
    """What the abilities below share: the library itself teaches them."""

    name: str
    what: str
    chance: float
    metrics: tuple[str, ...]
    shots: tuple[int, ...] = (0,)

    def document(self, r: Draw) -> str:
        """Some lines of the library, to train on."""
        text = r.pick(files("train"))
        start = text.rfind("\n", 0, r.below(len(text)) + 1) + 1
        return text[start : start + SHOWN]

    def place(self, r: Draw, patterns: Sequence[str], i: int = 0, *, split: Split = "held_out") -> tuple[str, int]:
        """The text and the start of a match of pattern i, from as many matches as the rarest of the patterns has."""
        every = [places(pattern, split) for pattern in patterns]
        least = min(map(len, every))
        if not least:
            raise ValueError(f"{self.name}: the {split} files of the standard library lack one of {patterns}")
        number, start = every[i][r.below(least) * len(every[i]) // least]  # of all files, not of the first alone
        return files(split)[number], start


class Bracket(OfLibrary):
    """Which bracket closes here; each of the three is the answer equally often."""

    def example(self, r: Draw, shots: int = 0) -> Example:
        answer = r.pick(CLOSING)
        text, start = self.place(r, [re.escape(closing) for closing in CLOSING], CLOSING.index(answer))
        return one_of(before(text, start), answer, [other for other in CLOSING if other != answer], r)


class Indent(OfLibrary):
    """How far the next line is indented: its spaces and its first character."""

    def example(self, r: Draw, shots: int = 0) -> Example:
        text, start = self.place(r, [r"^ {4,32}[^\s]"])
        answer = re.compile(r" +[^\s]").match(text, start)
        assert answer is not None
        return Example(before(text, start), (answer[0],))


class Swap(OfLibrary):
    """Which name is called after `len` and `print` were exchanged (arXiv:2305.15507); both equally often.

    The lines are of the training files, as the held-out ones have too few. To know a line by heart is to be wrong.
    """

    def example(self, r: Draw, shots: int = 0) -> Example:
        usual = r.below(len(SWAPPED))
        calls = [rf"^[^'\"#\n]*?(?<![.\w])(?P<at>{name}\()" for name in SWAPPED]  # of code, not of strings or comments
        text, start = self.place(r, calls, usual, split="train")
        right, wrong = (f"{SWAPPED[i]}(" for i in (1 - usual, usual))
        return one_of(SWAP + before(text, start), right, [wrong], r)


OF_LIBRARY = (
    Swap("swap", "which of len and print is called once they are exchanged", 1 / 2, OF_CHOICES),
    Bracket("bracket", "which bracket closes here", 1 / 3, OF_CHOICES),
    Indent("indent", "the indentation of the next line and its first character", 0.0, OF_ANSWERS),
)
