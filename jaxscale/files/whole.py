"""Files that are written whole or not at all, and whether one can be written, asked before anything long. No jax."""

import contextlib
import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file beside `path` and rename it: a kill, a full disk or a second writer leaves no half.

    Text is UTF-8. What stands at `path` is replaced, a link itself and not what it leads to. Raises OSError, and then
    leaves what was there.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # a read-only file system refuses even this
            temporary.unlink()
        raise
    return path


def require_file(*paths: Path | None, give: str = "give") -> None:
    """Raise ValueError for a file that could not be written.

    Args:
        give: how the message begins to say what would do, with the option where that is not plain.
    """
    for path in paths:
        if path is not None and (path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK)):
            raise ValueError(f"cannot write {path}; {give} a file in a directory that exists and can be written")


def require_directory(folder: Path, *, said: str, fix: str) -> None:
    """Raise ValueError for a directory that could not be made or written in. Nothing is left of the trial.

    Args:
        said: what the message calls it.
        fix: what the message advises.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {said}: {error.strerror}; {fix}") from error
    writable = os.access(folder, os.W_OK)
    for place in missing:  # made again when there is something to write
        place.rmdir()
    if not writable:
        raise ValueError(f"cannot write to {said}; {fix}")
