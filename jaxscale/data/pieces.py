"""A long document as pieces whose tokens, one after another, are those of the whole text. Knows nothing of files."""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

PIECE_CHARACTERS = 2**16  # small enough that one long document keeps many cores busy
CONTEXT = 256  # characters on each side of a cut that decide its tokens
_TAIL = 4096  # how far before its end a piece is searched for a place to cut
_TRIES = 16  # places of each kind

Unchanged = Callable[[str, str], bool]


class Piece(NamedTuple):
    """``text`` goes on a document after ``context``, its last characters; "" at the document's start."""

    context: str
    text: str


def anywhere(before: str, after: str) -> bool:
    """The rule of a tokenizer that a cut never changes."""
    return True


def cut_pieces(chunks: Iterator[str], unchanged: Unchanged) -> Iterator[Piece]:
    """The text of ``chunks`` in pieces of about ``PIECE_CHARACTERS``.

    ``unchanged(before, after)`` says whether a cut between two texts leaves their tokens as they are. Where it says
    so of no place, the piece grows.
    """
    context, held, wanted = "", "", PIECE_CHARACTERS
    for chunk in chunks:
        held += chunk
        while len(held) >= wanted + CONTEXT:
            cut = _find_cut(context, held, wanted, unchanged)
            if cut is None:
                wanted *= 2
                continue
            yield Piece(context, held[:cut])
            context, held, wanted = (context + held[:cut])[-CONTEXT:], held[cut:], PIECE_CHARACTERS
    if held:
        yield Piece(context, held)


def _find_cut(context: str, text: str, limit: int, unchanged: Unchanged) -> int | None:
    for cut in _places(text, limit):
        if unchanged((context + text[max(0, cut - CONTEXT) : cut])[-CONTEXT:], text[cut : cut + CONTEXT]):
            return cut
    return None


def _places(text: str, limit: int) -> Iterator[int]:
    """Where a text may be cut, the likeliest first: the usual pre-tokenizers break at the first two kinds.

    After a lone newline between two words, before a lone space, between any two characters that are not spaces.
    """
    for pattern in (r"(?<=\S)\n(?=\S)", r"(?<=\S)(?= \S)", r"(?<=\S)(?=\S)"):
        region = text[max(0, limit - _TAIL) : limit + 2]
        places = [limit + 2 - len(region) + match.end() for match in re.finditer(pattern, region)]
        yield from [place for place in reversed(places) if 0 < place <= limit][:_TRIES]
