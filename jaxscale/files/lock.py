"""One run owns its directory: a lock on a file in it that the kernel frees when the process ends, however that was.

Knows no jax. The lock is flock's, so it is the open file's: a file that a killed run left behind locks nothing.
"""

import errno
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # file systems that know no locks
POLL_SECONDS = 0.1
OPEN_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)  # Windows has neither


class Lock:
    """Holds a directory, which is made where there is none, until `close`.

    A lock that was never signed leaves nothing behind that was not there before.

    Args:
        patience: seconds to wait for another holder, which may be ending just now.
        say: told where the file system cannot lock.

    Raises:
        ValueError: another process holds it; OSError: the directory cannot be written.
    """

    def __init__(self, directory: Path, *, patience: float = 0.0, say: Callable[[str], None] = lambda line: None):
        self.path = directory / NAME
        self.made = [d for d in (directory, *directory.parents) if not d.exists()]  # the innermost first
        directory.mkdir(parents=True, exist_ok=True)
        self.ours = not self.path.exists()  # whether the file goes when the lock is closed
        self.file = self.take(time.monotonic() + patience, say)

    def take(self, until: float, say: Callable[[str], None]) -> int:
        """The file's descriptor, locked. Waits until then where another holds it."""
        mode = os.O_RDONLY  # a disk with a file that is open to be written cannot turn read-only
        while True:
            file = os.open(self.path, mode | os.O_CREAT | OPEN_FLAGS, 0o644)
            try:
                if fcntl is None:
                    raise OSError(errno.ENOSYS, "this system has no flock")
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in UNSUPPORTED:
                    say(f"{self.path.parent} cannot be locked ({error.strerror}): start no second run in it")
                    return file
                holder = os.pread(file, 200, 0).decode(errors="replace").strip()
                os.close(file)
                if error.errno == errno.EBADF and mode == os.O_RDONLY:
                    mode = os.O_RDWR  # NFS locks only what may be written
                    continue
                if time.monotonic() >= until:
                    who = f" ({holder})" if holder else ""
                    raise ValueError(f"{self.path.parent} is in use by another process{who}") from None
                time.sleep(POLL_SECONDS)
                continue
            if is_at(file, self.path):
                return file
            os.close(file)  # its holder removed it in between: others may have made and locked a new one

    def sign(self) -> None:
        """Say in the file who holds it. From now on the directory stays, and the file goes with the lock."""
        self.ours, self.made = True, []
        who = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n"
        with suppress(OSError):  # a full disk: the lock holds all the same
            self.path.write_text(who)

    def close(self) -> None:
        with suppress(OSError):  # the directory may be gone, or moved
            if self.ours and is_at(self.file, self.path):
                self.path.unlink()
        os.close(self.file)
        with suppress(OSError):  # not empty: somebody else's by now
            for directory in self.made:
                directory.rmdir()


def is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
