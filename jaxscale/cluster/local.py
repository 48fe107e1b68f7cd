"""Processes of a run on this machine, as children: started, heard, told to stop, and none left behind. Linux; no jax.

Each is a session of its own, so that a terminal's Ctrl-C reaches the parent alone, and the kernel kills it when the
parent is gone, however that went. What it leaves behind in its session is killed when it ends.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

from jaxscale.cluster.codes import DONE, INTERRUPTED, MEANING, PREEMPTED, VANISHED

POLL_SECONDS = 0.05
LINE_BYTES = 2**16  # of a longer line the rest is told as a line of its own
PR_SET_PDEATHSIG = 1  # linux/prctl.h
GLOO = re.compile(rb"\[Gloo\] Rank |connected peer ranks is")  # said by XLA's CPU collectives whenever some meet
ORDERLY = (DONE, PREEMPTED, INTERRUPTED)  # what all processes agreed on: nobody has to be stopped by others


@dataclass(frozen=True)
class End:
    """How a process ended: its exit code, or 128 + the number of the signal that ended it, as shells have it."""

    process: int
    code: int
    by: signal.Signals | None = None

    def __str__(self) -> str:
        if self.by:
            return f"process {self.process} was ended by {self.by.name}"
        meaning = f" ({MEANING[self.code]})" if self.code in MEANING else ""
        return f"process {self.process} ended with exit code {self.code}{meaning}"


class Children:
    """Processes of one command, each with what its environment adds; lines are prefixed by rank, as `[1] `.

    On a terminal process 0 has stdout itself, for its bar. Use as a context: nothing outlives it.

    `collect` alone waits for children. Popen's own `poll`, `terminate` and `send_signal` would do so too: how the
    process ended were lost to `collect`, and its number could be another's by then.
    """

    def __init__(self, command: Sequence[str], additions: Sequence[Mapping[str, str]]):
        # who starts us may ignore SIGCHLD, and ignoring is inherited: the kernel would wait for the children itself
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.ends: list[End] = []
        self.pumps: list[threading.Thread] = []
        self.writing = threading.Lock()
        self.bar = sys.stdout.isatty()
        try:
            for process, added in enumerate(additions):
                self.running[process] = subprocess.Popen(
                    command,
                    env=os.environ | added,
                    stdin=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    stdout=None if self.bar and process == 0 else subprocess.PIPE,
                    start_new_session=True,
                    preexec_fn=die_with(os.getpid()),
                )
        except BaseException:
            self.__exit__(None, None, None)
            raise
        for process, child in self.running.items():  # only now: a process that has threads should not fork
            self.hear(process, child.stdout, sys.stdout)
            self.hear(process, child.stderr, sys.stderr)

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        while self.running:
            self.collect()
            time.sleep(POLL_SECONDS / 10)
        for pump in self.pumps:
            pump.join(timeout=5)
        if self.bar:  # a process that is killed leaves a bar, and a cursor that is hidden
            print("\r\x1b[K\x1b[?25h", end="", flush=True)

    def hear(self, process: int, stream: IO[bytes] | None, to: Any) -> None:
        if stream is not None:
            self.pumps.append(threading.Thread(target=self.pump, args=(process, stream, to), daemon=True))
            self.pumps[-1].start()

    def pump(self, process: int, stream: IO[bytes], to: Any) -> None:
        start = b"[%d] " % process
        if self.bar:
            start = b"\r\x1b[K" + start  # in place of the bar, which is drawn again below
        with stream:
            while line := stream.readline(LINE_BYTES):
                if GLOO.search(line):
                    continue
                with self.writing:
                    try:
                        to.buffer.write(start + line.rstrip(b"\r\n") + b"\n")
                        to.buffer.flush()
                    except OSError:  # the reader left (a closed terminal, `| head`): the run goes on, unheard
                        os.dup2(os.open(os.devnull, os.O_WRONLY), to.fileno())

    def collect(self) -> list[End]:
        """Those that ended since the last call; a process that missed another comes after that other."""
        ended = []
        for process, child in list(self.running.items()):
            if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # what it left; the number is its own until it is waited for
            code = child.wait()
            ended.append(End(process, code) if code >= 0 else End(process, 128 - code, signal.Signals(-code)))
            del self.running[process]
        ended.sort(key=lambda end: end.code == VANISHED)
        self.ends += ended
        return ended

    def terminate(self) -> None:
        """SIGTERM to each; one that has ended, and was not collected yet, ignores it."""
        for child in self.running.values():
            os.kill(child.pid, signal.SIGTERM)

    def kill(self) -> None:
        for child in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def die_with(parent: int) -> Callable[[], None]:
    """To be called in a forked child: SIGKILL for it when its parent ends, or at once if it already has."""
    prctl = ctypes.CDLL(None).prctl

    def call() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return call


def watch(children: Children, heard: Sequence[int], *, grace: float) -> End | None:
    """Wait until all have ended; the first that failed, None where all ended in order.

    Args:
        heard: signals that this process has got, growing meanwhile. The first is handed on as SIGTERM, and however
            long they save is waited for; a second Ctrl-C kills.
        grace: seconds from one process's failure to SIGKILL for the others. SIGTERM comes at once where a signal ended
            it; where it ended by itself they have a third of the time to do so too, each saying why.
    """
    failed: End | None = None
    sigterm_sent, ask, kill = False, float("inf"), float("inf")  # the times of SIGTERM and SIGKILL
    while children.running:
        now = time.monotonic()
        if not sigterm_sent and (heard or now > ask):
            sigterm_sent = True
            children.terminate()
        if list(heard).count(signal.SIGINT) > 1 or now > kill:
            children.kill()
        for end in children.collect():
            early = bool(heard) and end.by == signal.SIGTERM  # it had nothing to save yet, and the others wait for it
            if kill == float("inf") and (early or end.code not in ORDERLY):
                ask, kill = now + (0 if end.by else grace / 3), now + grace
                failed = None if early else end
        time.sleep(POLL_SECONDS)
    return failed
