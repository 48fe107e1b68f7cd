"""The learner's files: writing a fresh one, and telling which puzzle one is. Nothing of them runs here. No jax."""

import re
from pathlib import Path

from jaxscale.puzzles.catalogue import PUZZLES, Puzzle

LARGEST = 200_000  # bytes of a file that is read
TITLE = re.compile(r"\A(?:\s|#[^\n]*\n)*[rR]?(?:\"\"\"|''')\s*Puzzle (\d+)\b")


def write_fresh(puzzle: Puzzle, out: Path | None) -> Path:
    """The exercise as a file to edit. Raises ValueError where something stands there already."""
    path = out or Path(puzzle.file.name)
    if path.is_dir():
        path = path / puzzle.file.name
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(puzzle.file.read_text(encoding="utf-8"))
    except FileExistsError:
        raise ValueError(f"{path} already exists and may be your work; write elsewhere with -o FILE") from None
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is no directory; make it first, or give another -o FILE") from None
    return path


def which(path: Path) -> Puzzle:
    """The puzzle that a file says it is, in the first words of its docstring. Raises ValueError where it says none."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `jaxscale puzzle get NAME` writes a puzzle's")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes; a puzzle's file has at most {LARGEST:,}")
    try:
        match = TITLE.search(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file in UTF-8") from None
    if match is None:
        raise ValueError(
            f"{path}: not a puzzle's file, as its docstring does not begin with `Puzzle N`; "
            "`jaxscale puzzle get NAME` writes one"
        )
    if not 1 <= int(match[1]) <= len(PUZZLES):
        raise ValueError(f"{path}: there is no puzzle {match[1]}; there are 1 to {len(PUZZLES)}")
    return PUZZLES[int(match[1]) - 1]
