"""Finding the files of a corpus. Knows nothing of what is in them."""

import glob
import os
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path


@dataclass(frozen=True)
class SourceFile:
    """``name`` is the path relative to what the user named, so it does not change when a corpus moves."""

    name: str
    path: Path
    size_bytes: int


def find(paths: Sequence[str | Path], suffixes: tuple[str, ...] = ()) -> tuple[SourceFile, ...]:
    """The files that ``paths`` (files, directories, glob patterns) name, each once, sorted by name.

    ``suffixes`` choose among a directory's files; a file named outright is taken whatever it is called.
    """
    found: list[tuple[str, Path]] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            matches = [(n, p) for n, p in walk(path) if not suffixes or n.lower().endswith(suffixes)]
        elif path.is_file():
            matches = [(path.name, path)]
        else:
            matches = _glob(str(given))
        if not matches:
            wanted = f" ending in {' or '.join(suffixes)}" if suffixes and path.is_dir() else ""
            raise ValueError(f"{str(given)!r} names no file{wanted}; give files, directories or glob patterns")
        found += matches
    return sorted_files(found)


def walk(root: Path, *, leave_out: Set[str] = frozenset()) -> Iterator[tuple[str, Path]]:
    """(name, path) of the regular files under ``root``, without hidden ones and directories in ``leave_out``."""

    def refuse(error: OSError) -> None:
        raise _unreadable(error, Path(error.filename)) from error

    for directory, subdirectories, names in os.walk(root, onerror=refuse):
        subdirectories[:] = [n for n in subdirectories if not n.startswith(".") and n not in leave_out]
        for name in names:
            path = Path(directory, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(root).as_posix(), path


def _glob(pattern: str) -> list[tuple[str, Path]]:
    fixed = Path(*_before_magic(Path(pattern)))
    matches = [Path(match) for match in glob.glob(pattern, recursive=True)]
    return [(match.relative_to(fixed).as_posix(), match) for match in matches if match.is_file()]


def _before_magic(pattern: Path) -> Iterator[str]:
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


def sorted_files(found: list[tuple[str, Path]]) -> tuple[SourceFile, ...]:
    """(name, path) pairs as files, each once whatever it is reached by."""
    once = {path.resolve(): name for name, path in found}
    files = [SourceFile(name, path, path.stat().st_size) for path, name in once.items()]
    return tuple(sorted(files, key=lambda file: (file.name, str(file.path))))


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """``path`` open for reading bytes; ValueError where that fails."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise _unreadable(error, path) from error


def _unreadable(error: OSError, path: Path) -> ValueError:
    return ValueError(f"cannot read {path}: {error.strerror}; make it readable or leave it out")
