"""Grading in a child process: what a learner's file does to it ends there, in one line. No jax here.

The child (`grader.child`) takes one file at a time from its stdin and answers by JSON lines on a pipe of its own; what
the learner's code prints comes by stdout. One that dies, hangs or floods is replaced for the next file.
"""

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxscale.compiled.child import how_it_ended, last_words
from jaxscale.files.redact import one_line
from jaxscale.puzzles.catalogue import Puzzle
from jaxscale.puzzles.verdict import Verdict, from_values

ROOT = Path(__file__).parent.parent.parent
SECONDS = 30.0  # of a file, at most
GRACE = 10.0  # for a child that is to end by itself, as it can say where it was
START = 120.0  # of a child, on a busy machine
FLOOD = 1_000_000  # bytes printed, at most
SHOWN = 2000  # characters of them that are kept


def grade(files: Sequence[tuple[Path, Puzzle]], seconds: float = SECONDS) -> Iterator[Verdict]:
    """The verdict of each file as it is there."""
    child: Child | None = None
    try:
        for path, puzzle in files:
            child = child or Child(seconds)
            yield child.grade(path, puzzle)
            if child.ended:
                child.end()
                child = None
    finally:
        if child:
            child.end()


class Child:
    """A grading process: alive from its start until `end`."""

    def __init__(self, seconds: float):
        self.seconds, self.ended = seconds, False
        events, write = os.pipe()
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
        environment |= {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-u", "-m", "jaxscale.puzzles.grader.child", str(write), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(write,),
            env=environment,
            start_new_session=True,
        )
        os.close(write)
        streams = (self.process.stdout, self.process.stderr)
        self.pipes = {"events": events} | {k: s.fileno() for k, s in zip(("out", "err"), streams, strict=True) if s}
        self.texts = dict.fromkeys(self.pipes, b"")
        self.selector = selectors.DefaultSelector()
        for name, pipe in self.pipes.items():
            os.set_blocking(pipe, False)
            self.selector.register(pipe, selectors.EVENT_READ, name)
        self.read, self.doing = 0, "starting"

    def grade(self, path: Path, puzzle: Puzzle) -> Verdict:
        """Hand over one file and wait for its verdict, or for the child's end."""
        assert self.process.stdin
        self.texts["out"], self.read, self.doing = b"", 0, "starting"
        request = {"file": str(path.absolute()), "shown": str(path), "puzzle": puzzle.name}
        with contextlib.suppress(BrokenPipeError):  # it died while it started: its events end, and that is told
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        began, until = False, time.monotonic() + START
        while time.monotonic() < until:
            for line in self.listen(min(until - time.monotonic(), 1.0)):
                event = json.loads(line)
                if "verdict" in event:
                    self.listen(0)
                    self.ended = event["spoilt"]
                    return from_values(event["verdict"], self.printed())
                self.doing = event["doing"]
                if not began:
                    began, until = True, time.monotonic() + self.seconds + GRACE
            if self.ended or self.read > FLOOD:
                break
        return self.died(path, puzzle, began)

    def listen(self, seconds: float) -> list[bytes]:
        """Whole lines of events, once something has come; what is printed is kept up to a measure."""
        for key, _ in self.selector.select(max(seconds, 0)):
            chunk = b""
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    self.selector.unregister(key.fd)
                    self.ended |= key.data == "events"
            self.read += len(chunk) if key.data == "out" else 0
            text = self.texts[key.data] + chunk
            self.texts[key.data] = text[:SHOWN] if key.data == "out" else text[-20 * SHOWN :]
        *lines, self.texts["events"] = self.texts["events"].split(b"\n")
        return lines

    def printed(self) -> str:
        text = self.texts["out"].decode(errors="replace")
        return text + (f"\n... ({self.read:,} bytes in all)" if self.read > len(self.texts["out"]) else "")

    def died(self, path: Path, puzzle: Puzzle, began: bool) -> Verdict:
        """What to say of a file whose verdict never came."""
        hung = not self.ended
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self.ended:
                self.process.wait(timeout=GRACE)
        self.kill()
        for _ in range(20):
            self.listen(0)
        self.ended = True
        stderr = self.texts["err"].decode(errors="replace")
        stack = re.findall(rf'File "{re.escape(str(path.absolute()))}", line (\d+)', stderr.rpartition("Timeout (")[2])
        if self.read > FLOOD:
            problem = f"it printed more than {FLOOD:,} bytes and was stopped; print less, or nothing inside a loop"
        elif not began:
            problem = f"the grader did not start: {how_it_ended(self.process.returncode)}: {last_words(stderr)}"
        elif "Timeout (" in stderr or hung:
            problem = f"not done after {self.seconds:g} s, {self.doing}"
            problem += "; does every device join every collective?" if self.doing.endswith("on the devices") else ""
            if stack:
                problem = f"line {stack[0]}: {problem}; there it was then: {source(path, int(stack[0]))}"
        else:
            problem = f"the process ended by {how_it_ended(self.process.returncode)} {self.doing}"
            problem += f": {said}" if (said := last_words(stderr)) else "; a puzzle's code only returns"
        return Verdict(str(path), puzzle.name, problem=one_line(problem), printed=self.printed())

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with whatever it started
        self.process.wait()

    def end(self) -> None:
        self.kill()
        self.selector.close()
        os.close(self.pipes["events"])
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def source(path: Path, line: int) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"`{lines[line - 1].strip()[:100]}`" if 0 < line <= len(lines) else ""
