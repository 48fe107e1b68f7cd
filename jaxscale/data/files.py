"""Finding and opening the files of a corpus, here or in a store. Knows nothing of what is in them."""

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from jaxscale.data import remote
from jaxscale.data.compressed import ARCHIVES, decompressed, failures, without_compression
from jaxscale.data.progress import BadRecord, Progress
from jaxscale.data.remote import Listed, Unread
from jaxscale.files.urls import is_url, scrub

READ_BYTES = 2**17


@dataclass(frozen=True)
class SourceFile:
    """``name`` is the path relative to what the user named, so it does not change when a corpus moves.

    ``path`` is a URL (a str) where the file is in a store.
    """

    name: str
    path: Path | str
    size_bytes: int

    @property
    def shown(self) -> str:
        """The path for messages: a URL may be signed."""
        return scrub(self.path) if isinstance(self.path, str) else str(self.path)


class Found(NamedTuple):
    files: tuple[SourceFile, ...]
    unread: tuple[Unread, ...]


def find(paths: Sequence[str | Path], suffixes: tuple[str, ...] = ()) -> Found:
    """The files that ``paths`` (files, directories, glob patterns, URLs) name, each once, sorted by name.

    ``suffixes`` choose among a directory's files, compressed or not; a file named outright is taken whatever it is
    called. What a directory holds besides them is told in ``unread``.
    """
    chosen: list[SourceFile] = []
    unread: list[Unread] = []
    for given in paths:
        files, left = remote.find(str(given)) if is_url(given) else _find_here(str(given))
        if not files and not left:
            raise ValueError(f"{str(given)!r} names no file; give files, directories or glob patterns")
        for one in files:
            if not (reason := _refusal(one, suffixes)):
                chosen.append(SourceFile(one.name, one.path, one.size_bytes))
            elif one.given == "file":
                raise ValueError(f"{one.path} is {reason}")
            else:
                left.append(Unread(one.name, reason))
        unread += left
    if not chosen:
        wanted = f" ending in {' or '.join(suffixes)}" if suffixes else ""
        raise ValueError(
            f"{', '.join(map(repr, map(str, paths)))} names no file{wanted} that is read ({unread[0].name} is "
            f"{unread[0].reason}); give files, directories or glob patterns"
        )
    return _sorted(chosen, unread)


def _refusal(one: Listed, suffixes: tuple[str, ...]) -> str | None:
    if one.name.lower().endswith(ARCHIVES):
        return "an archive; unpack it"
    if one.given == "folder" and suffixes and not without_compression(one.name).endswith(suffixes):
        return f"not named {' or '.join(suffixes)}"
    return None


def _find_here(given: str) -> tuple[list[Listed], list[Unread]]:
    path = Path(given)
    if path.is_dir():
        left: list[Unread] = []
        return [Listed(name, file, file.stat().st_size, "folder") for name, file in walk(path, unread=left)], left
    if path.is_file():
        return [Listed(path.name, path, path.stat().st_size, "file")], []
    fixed = Path(*_before_magic(path))
    matches = [(match.relative_to(fixed).as_posix(), match) for match in map(Path, glob.glob(given, recursive=True))]
    # `**` matches the directories on its way, whose files it matches too
    directories = [] if "**" in path.parts else [name for name, match in matches if match.is_dir()]
    files = [Listed(name, match, match.stat().st_size, "pattern") for name, match in matches if match.is_file()]
    return files, [Unread(name, "a directory; name it itself") for name in directories]


def walk(
    root: Path, *, leave_out: Set[str] = frozenset(), unread: list[Unread] | None = None
) -> Iterator[tuple[str, Path]]:
    """(name, path) of the regular files under ``root``, without hidden ones and directories in ``leave_out``.

    ``unread`` takes those left out that are not in ``leave_out``, with the reason.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable(error, Path(error.filename)) from error

    left = [] if unread is None else unread
    for directory, subdirectories, names in os.walk(root, onerror=refuse):
        here = Path(directory)
        for name in [n for n in subdirectories if n not in leave_out]:
            if name.startswith(".") or (here / name).is_symlink():
                reason = "a hidden directory" if name.startswith(".") else "a link to a directory; name it itself"
                left.append(Unread((here / name).relative_to(root).as_posix(), reason))
        subdirectories[:] = [n for n in subdirectories if not n.startswith(".") and n not in leave_out]
        for name in names:
            path = here / name
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(root).as_posix(), path
                continue
            broken = "a link to nothing" if path.is_symlink() else "not a regular file"
            left.append(Unread(path.relative_to(root).as_posix(), "hidden" if name.startswith(".") else broken))


def _before_magic(pattern: Path) -> Iterator[str]:
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            return
        yield part


def _sorted(files: list[SourceFile], unread: list[Unread]) -> Found:
    """Each file once, whatever it is reached by."""
    once: dict[Path | str, SourceFile] = {}
    for file in files:
        first = once.setdefault(file.path if isinstance(file.path, str) else file.path.resolve(), file)
        if first.path != file.path and str(Path(first.path).absolute()) != str(Path(file.path).absolute()):
            unread.append(Unread(file.name, f"the same file as {first.name}"))
    by_name = sorted(once.values(), key=lambda file: (file.name, str(file.path)))
    return Found(tuple(by_name), tuple(unread))


def sorted_files(pairs: list[tuple[str, Path]]) -> tuple[SourceFile, ...]:
    """(name, path) pairs as files, each once whatever it is reached by."""
    return _sorted([SourceFile(name, path, path.stat().st_size) for name, path in pairs], []).files


class _Counted(RawIOBase):
    """A binary file whose bytes are counted and hashed as they are read."""

    def __init__(self, file: IO[bytes], progress: Progress | None, digest: Any):
        self._file, self._progress, self._digest = file, progress, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        if self._progress is not None:
            self._progress.bytes_read += len(content)
        self._digest.update(content)
        return len(content)


@contextmanager
def opened(path: Path | str) -> Iterator[IO[bytes]]:
    """``path`` open for reading bytes, as they stand; ValueError where that fails."""
    if isinstance(path, str):
        with remote.opened(path) as stored:
            yield stored
        return
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise _unreadable(error, path) from error


@contextmanager
def contents(file: SourceFile, progress: Progress | None = None, digests: dict | None = None) -> Iterator[IO[bytes]]:
    """What a file holds, decompressed where it is compressed.

    Args:
        progress: counts the bytes of the file itself as they are read.
        digests: takes the file's sha256 (hex) once it is read to its end.

    Raises:
        ValueError: a file that cannot be read or decompressed.
    """
    digest = hashlib.sha256()
    with opened(file.path) as raw:
        stream = cast(BufferedReader, BufferedReader(_Counted(raw, progress, digest), READ_BYTES))
        try:
            yield decompressed(stream, file.name)
        except failures() as error:
            raise BadRecord(f"{file.shown} cannot be decompressed: {error}; get it again or leave it out") from error
        if digests is not None and not stream.read(1):
            digests[file] = digest.hexdigest()


def file_sha256(file: SourceFile) -> str:
    """The sha256 (hex) of a file as it stands."""
    digest = hashlib.sha256()
    with opened(file.path) as raw:
        while chunk := raw.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _unreadable(error: OSError, path: Path) -> ValueError:
    return ValueError(f"cannot read {path}: {error.strerror or error}; make it readable or leave it out")
