"""What a reader may do with any input: succeed, or refuse as a person is told in one line, and touch nothing else."""

import contextlib
import faulthandler
import io
import logging
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxscale.files.redact import LONGEST, one_line
from jaxscale.process.quiet import quiet_logs

SECONDS = 20  # of one case, to find hangs; none is expected to take one
SECRET = "KEY:SECRET@"  # as the generated inputs spell it
CANARY = '{"canary": "beside the directory under test"}'
STARTS_SOMETHING = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "pickle.find_class", "socket.connect")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


class Hang(BaseException):
    """A case took longer than SECONDS."""


@dataclass
class Outcome:
    """`accepted`, `refused` (with what a person is told) or `defect` (with what happened)."""

    kind: str
    told: str = ""
    where: str = ""


@dataclass
class Watch:
    """Follows what Python does to files and processes while a case runs."""

    case: Path | None = None
    outside_may_be_read: bool = False
    processes_may_start: bool = False  # one of jaxscale, by the case itself
    seen: list[str] = field(default_factory=list)

    def emit(self, entry: logging.LogRecord) -> None:
        """A log's line that a person would see as a traceback."""
        if self.case is not None and (entry.exc_info or "Traceback" in entry.getMessage()):
            self.seen.append(f"log a traceback: {entry.name}: {entry.getMessage()[:200]}")

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.case is None:
            return
        if event in STARTS_SOMETHING:
            if self.processes_may_start and event in ("subprocess.Popen", "os.posix_spawn"):
                return
            self.seen.append(f"{event} {str(arguments)[:200]}")
        elif event in CHANGES:
            for argument in arguments:
                if isinstance(argument, str | bytes | os.PathLike) and not self.inside(argument, follow=False):
                    self.seen.append(f"{event} {argument!r}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path, _, flags = arguments
            if flags & os.O_WRONLY | flags & os.O_RDWR and os.path.isdir(path):
                return  # a temporary file without a name
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            if (writes and os.fspath(path) != os.devnull and not self.inside(path)) or (
                not self.outside_may_be_read and "/outside/" in os.path.realpath(os.fsdecode(path))
            ):
                self.seen.append(f"open {path!r} {'for writing' if writes else ''}")

    def inside(self, path: Any, *, follow: bool = True) -> bool:
        """Whether it is a place of the case; without `follow` that of a link itself, as for removing it."""
        above, name = os.path.split(os.path.join(str(self.case), os.fsdecode(path)))
        place = os.path.realpath(os.path.join(above, name) if follow else above) + ("" if follow else f"/{name}")
        home = f"{self.case.parent}/home" if self.case else ""
        return place.startswith((f"{self.case}/", home, "/dev/shm/")) or "__pycache__" in place


WATCH = Watch()
HANDLER = logging.Handler()
HANDLER.emit = WATCH.emit  # type: ignore[method-assign]
sys.addaudithook(WATCH.hear)  # for good: an audit hook cannot be taken off; it is deaf between cases


def snapshot(directory: Path) -> dict[str, tuple]:
    """Every file, directory and link: kind, content, time of change."""
    found = {}
    for path in sorted(directory.rglob("*")):
        state = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found[str(path.relative_to(directory))] = (state.st_mode, content, 0 if path.is_dir() else state.st_mtime_ns)
    return found


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Hang where Python itself is slow; the stacks and an end of the process where compiled code does not come back."""

    def ring(*_: object) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(6 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


class Place:
    """`case/` under test, emptied before each; `outside/` beside it, which nothing may touch."""

    def __init__(self, root: Path):
        self.case, self.outside = root.resolve() / "case", root.resolve() / "outside"
        self.outside.mkdir(parents=True)
        for name in ("canary.json", "train-00000.bin", "index.json", "tokenizer.json"):
            (self.outside / name).write_text(CANARY)
        self.untouched = snapshot(self.outside)
        quiet_logs()  # as `cli.main` does
        if HANDLER not in logging.root.handlers:
            logging.root.addHandler(HANDLER)

    def lay(self, files: dict[str, bytes | Path]) -> None:
        """Write the files of a case; a Path is a link to it."""
        shutil.rmtree(self.case, ignore_errors=True)
        for name, content in files.items():
            path = self.case / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(content) if isinstance(content, Path) else path.write_bytes(content)

    def judge(
        self,
        files: dict[str, bytes | Path],
        read: Callable[[Path], Any],
        *,
        may_write: tuple[str, ...] = (),
        outside_may_be_read: bool = False,
        seconds: int = SECONDS,
    ) -> Outcome:
        """One case: lay the files, read them, look at what was told and at what was touched."""
        self.lay(files)
        before = snapshot(self.case)
        WATCH.seen.clear()
        WATCH.case, WATCH.outside_may_be_read, WATCH.processes_may_start = (
            self.case,
            outside_may_be_read,
            seconds > SECONDS,
        )
        out = io.StringIO()
        try:
            with (
                warnings.catch_warnings(),
                contextlib.chdir(self.case),
                limited(seconds),
                contextlib.redirect_stdout(out),
            ):
                warnings.simplefilter("error")
                warnings.simplefilter("ignore", ResourceWarning)
                read(self.case)
            outcome = Outcome("accepted", out.getvalue())
        except (ValueError, OSError) as error:
            outcome = Outcome("refused", told(error))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
                raise
            last = traceback.extract_tb(error.__traceback__)
            ours = next((f for f in reversed(last) if "/jaxscale/" in f.filename), last[-1])
            outcome = Outcome("defect", f"{type(error).__name__}: {str(error)[:300]}", f"{ours.filename}:{ours.lineno}")
        finally:
            WATCH.case = None
        return self.look(outcome, before, may_write)

    def look(self, outcome: Outcome, before: dict[str, tuple], may_write: tuple[str, ...]) -> Outcome:
        """The outcome, or the defect that what it told or touched is."""
        if WATCH.seen:
            return Outcome("defect", f"did {WATCH.seen[0]}")
        if (now := snapshot(self.outside)) != self.untouched:
            return Outcome("defect", f"changed outside: {sorted(k for k in now if now[k] != self.untouched.get(k))}")
        after = snapshot(self.case)
        changed = {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)}
        if wrong := sorted(k for k in changed if not k.startswith(may_write)):
            return Outcome("defect", f"changed {wrong[:3]}")
        if outcome.kind == "refused" and (fault := unfit(outcome.told)):
            return Outcome("defect", fault)
        return outcome


def told(error: ValueError | OSError) -> str:
    """What `cli.main` prints of it."""
    if isinstance(error, OSError):
        return one_line(f"{error.filename or 'the operating system'}: {error.strerror or error}")
    return one_line(str(error))


def unfit(line: str) -> str:
    """What is wrong with a message; empty where nothing is."""
    if not line.strip():
        return "refused without a word"
    if len(line) > LONGEST or not line.isprintable():
        return f"no plain line: {line[:200]!r}, {len(line)} characters"
    return f"a secret is told: {line}" if SECRET in line else ""
