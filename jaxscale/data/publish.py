"""A directory that appears whole or not at all: written beside its place, then renamed into it."""

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Everything a preparation or a later verification writes into a dataset: what --overwrite may remove.
_OURS = re.compile(
    r"(index|tokenizer|chat)\.json|(train|validation)-\d+\.(bin|roles|lengths|records)|\.verified\.json.*"
)


@contextmanager
def published(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A fresh directory to write into, which becomes ``out`` when the block ends without an exception.

    Until then it is ``.<out>.partial-<host>-<pid>`` beside ``out``. An exception (Ctrl-C too) removes it; a
    killed process leaves it, and the next preparation of ``out`` on that host clears it away.

    Raises:
        ValueError: the parent cannot be written, or ``out`` turned up meanwhile.
    """
    remove_stale(out, "partial")
    partial = _sibling(out, "partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    except OSError as error:
        raise ValueError(
            f"cannot write {out}: {error.strerror} ({error.filename}); choose another --out or make it writable"
        ) from error
    try:
        yield partial
        _sync_directory(partial)
        _move_into_place(partial, out, overwrite)
        _sync_directory(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    remove_stale(out, "old")


def occupied(out: Path) -> bool:
    """Whether something other than an empty directory stands at ``out``."""
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))


def check_replaceable(out: Path) -> None:
    """ValueError unless ``out`` holds nothing but what a preparation writes: --overwrite must not eat a home."""
    if not out.is_dir():
        raise ValueError(f"{out} is a file, not a dataset directory; choose another --out or remove it yourself")
    strangers = sorted(entry.name for entry in out.iterdir() if not _OURS.fullmatch(entry.name))
    if strangers:
        raise ValueError(
            f"{out} holds {strangers[0]!r}, which `jaxscale data prepare` did not write, so --overwrite leaves it "
            "alone; choose another --out or remove the directory yourself"
        )


def remove_stale(out: Path, what: str) -> None:
    """Remove the leftovers beside ``out`` of processes of this host that no longer run."""
    prefix = f".{out.name}.{what}-{socket.gethostname()}-"
    if not out.parent.is_dir():
        return
    for entry in out.parent.iterdir():
        pid = entry.name.removeprefix(prefix)
        if entry.name.startswith(prefix) and pid.isdecimal() and not _alive(int(pid)):
            shutil.rmtree(entry, ignore_errors=True)


def _move_into_place(partial: Path, out: Path, overwrite: bool) -> None:
    old = _sibling(out, "old")
    if overwrite and occupied(out):
        check_replaceable(out)
        os.rename(out, old)
    try:
        os.rename(partial, out)
    except OSError as error:
        if old.exists():
            os.rename(old, out)
        raise ValueError(
            f"cannot move the finished dataset to {out}: {error.strerror}; another process may have made it "
            "meanwhile: look at it, or pass --overwrite"
        ) from error
    shutil.rmtree(old, ignore_errors=True)


def _sibling(out: Path, what: str) -> Path:
    # The host is in the name because on a shared file system another host's pid says nothing here.
    return out.parent / f".{out.name}.{what}-{socket.gethostname()}-{os.getpid()}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
