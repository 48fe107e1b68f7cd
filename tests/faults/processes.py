"""Real processes of one run on this machine, for tests and for benchmarks/soak.py: start, signal, wait, leave none."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DIE_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []  # of util-linux
# compiling is most of a tiny run's start: everything is kept, and LLVM is asked for little
CHEAP = {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "PJRT_NPROC": "16",
    "PYTHONUNBUFFERED": "1",
    "TERM": "dumb",
}


class Group:
    """The processes of one run; a context manager that kills what is left of them.

    Args:
        arguments: of the interpreter, e.g. `-m jaxscale.cli train tiny.yaml`.
        each: rank -> arguments of that process alone, after the others.
        host: the coordinator's address; wrap: rank -> a command that starts the interpreter, e.g. in a namespace.
    """

    def __init__(self, arguments: Sequence[str], logs: Path, *, processes: int = 2,
                 each: Mapping[int, Sequence[str]] | None = None, host: str = "127.0.0.1",
                 wrap: Callable[[int], list[str]] = lambda rank: []):  # fmt: skip
        logs.mkdir(parents=True, exist_ok=True)
        self.logs = [logs / f"{time.time_ns()}-{rank}.txt" for rank in range(processes)]
        place = {"JAXSCALE_COORDINATOR": f"{host}:{free_port()}", "JAXSCALE_PROCESSES": str(processes)}
        self.processes = []
        for rank, log in enumerate(self.logs):
            command = [*DIE_WITH_PARENT, *wrap(rank), sys.executable, *arguments, *(each or {}).get(rank, ())]
            environment = os.environ | CHEAP | place | {"JAXSCALE_PROCESS_ID": str(rank)}
            with log.open("wb") as file:
                started = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
                )
            self.processes.append(started)

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()

    def signal(self, rank: int, number: int) -> None:
        self.processes[rank].send_signal(number)

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def alive(self) -> list[int]:
        return [rank for rank, process in enumerate(self.processes) if process.poll() is None]

    def text(self, rank: int) -> str:
        return self.logs[rank].read_text(errors="replace")

    def texts(self) -> str:
        return "\n".join(f"--- process {rank}\n{self.text(rank)[-3000:]}" for rank in range(len(self.logs)))

    def error(self, rank: int) -> str:
        """The last line that begins with `error:`; "" where there is none."""
        lines = [line for line in self.text(rank).splitlines() if line.startswith("error:")]
        return lines[-1] if lines else ""

    def wait(self, seconds: float = 120.0, ranks: Sequence[int] | None = None) -> list[int]:
        """Exit codes, -9 for a killed one; AssertionError where a process has not ended after `seconds`."""
        until = time.monotonic() + seconds
        for rank in range(len(self.processes)) if ranks is None else ranks:
            try:
                self.processes[rank].wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"process {rank} has not ended after {seconds:g} s\n{self.texts()}") from None
        return [process.poll() for process in self.processes]

    def until(self, condition: Callable[[], Any], seconds: float = 120.0, pause: float = 0.02) -> Any:
        """What `condition` returns once that is true; AssertionError where a process ends before, or never."""
        until = time.monotonic() + seconds
        while not (found := condition()):
            if len(self.alive()) < len(self.processes):
                raise AssertionError(f"a process ended too early: {self.wait(5)}\n{self.texts()}")
            if time.monotonic() > until:
                raise AssertionError(f"nothing after {seconds:g} s\n{self.texts()}")
            time.sleep(pause)
        return found


def free_port() -> int:
    with contextlib.closing(socket.socket()) as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def train(config: Path, out: Path, overrides: Sequence[str] = (), **more: Any) -> Group:
    """The logs stand beside the config, as the disk of `out` may be full."""
    arguments = ["-m", "jaxscale.cli", "train", str(config), f"out={out}", *overrides]
    return Group(arguments, config.parent / f"{out.name}-logs", **more)


def records(out: Path, *, last: int | None = None) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl, which may be written just now; those in the last `last` bytes of it."""
    try:
        data = (out / "metrics.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for line in (data[-last:] if last else data).splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return [record for record in found if isinstance(record, dict)]


def losses(out: Path) -> dict[int, tuple[float, float]]:
    """step -> loss and gradient norm, as they were written."""
    return {r["step"]: (r["loss"], r["grad_norm"]) for r in records(out) if r.get("kind") == "train"}


def last_step(out: Path) -> int:
    return max((r["step"] for r in records(out, last=4096) if r.get("kind") == "train"), default=0)


def committed(out: Path) -> list[int]:
    """Steps of the checkpoints that have their final name."""
    folder = out / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []


def being_saved(out: Path) -> list[str]:
    folder = out / "checkpoints"
    try:
        return [name for name in os.listdir(folder) if ".orbax-checkpoint-tmp" in name]
    except OSError:
        return []
