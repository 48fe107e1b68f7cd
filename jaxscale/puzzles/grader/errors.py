"""What a learner's code raised, in one line: the line of their file, the error, its first words."""

import contextlib
import linecache
import traceback

from jaxscale.files.redact import one_line
from jaxscale.puzzles.catalogue import Puzzle

NOT_YET = "not yet"
MEMORY = 2 * 2**30  # bytes that a file may take, beyond what jax has at its start
LONGEST = 600  # characters of an error's own words


class Stop(Exception):
    """What is wrong with an answer, in words for the learner."""


def tell(error: BaseException, path: str, puzzle: Puzzle) -> str:
    number = line_of(error, path)
    text = linecache.getline(path, number).strip() if number else ""
    if isinstance(error, NotImplementedError) and text.startswith("raise NotImplementedError"):
        return f"{NOT_YET}: line {number} is still to be replaced"
    where = f"line {number}: " if number else ""
    if isinstance(error, Stop):
        return one_line(f"{where}{error}")
    if isinstance(error, SystemExit):
        return f"{where}exit ends the grader, not your function: return instead"
    said, code = words(error), f", in `{text[:100]}`" if text else ""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in said:
        return one_line(f"{where}it wants more memory than a puzzle may have, {MEMORY >> 30} GiB{code}")
    return one_line(f"{where}{type(error).__name__}{': ' if said else ''}{said}{code}")


def words(error: BaseException) -> str:
    """An error's own words, cut where they are long; advice in place of none."""
    text = ""
    with contextlib.suppress(Exception):  # an error of the learner's own may not even have them
        text = " ".join((error.msg or "" if isinstance(error, SyntaxError) else str(error)).split())
        text = text.partition(" The error occurred while tracing")[0]  # jax's advice on code that is not theirs
    if not text and isinstance(error, AssertionError):
        return "no reason given (if it is jax's: does the mesh have every axis that is named here?)"
    return text.rstrip(".") if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def line_of(error: BaseException, path: str) -> int | None:
    """The innermost line of the learner's file that the error went through."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return lines[-1] if lines else None
