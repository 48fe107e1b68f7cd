"""The soak's run under `jaxscale launch --max-restarts`: processes are killed, and launch alone starts them again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.processes import CHEAP, ROOT, being_saved, committed
from soak import Soak

from jaxscale.cluster.codes import PREEMPTED
from jaxscale.cluster.launch import Progress, progress

VERB = "import sys; sys.argv[0] = 'jaxscale'; from jaxscale.cli import main; main()"
KINDS = ("kill", "kill during a save", "kill while starting", "kill twice", "terminate")


class Launched:
    """One launch and its children; the part of `faults.processes.Group` that the soak asks for."""

    def __init__(self, config: Path, out: Path, overrides: list[str], processes: int):
        logs = config.parent / f"{out.name}-logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.log, self.processes = logs / f"{time.time_ns()}-launch.txt", range(processes)
        words = ["launch", "--processes", processes, "--max-restarts", 1000, "--grace", 5, "--", "train", config]
        command = [sys.executable, "-c", VERB, *map(str, words), f"out={out}", *overrides]
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | CHEAP, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def children(self) -> list[int]:
        """In the order of their start, which is that of their ranks."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in listed.read_text().split()]

    def restarts(self) -> int:
        return sum(line.startswith("launch: restart ") for line in self.log.read_text(errors="replace").splitlines())

    def text(self, rank: int) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(line.removeprefix(f"[{rank}] ") for line in lines if line.startswith(f"[{rank}] "))

    def texts(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]

    def until(self, condition: Callable[[], Any], seconds: float = 300.0, pause: float = 0.02) -> Any:
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, f"launch ended with {self.process.returncode}\n{self.texts()}"
            assert time.monotonic() < end, f"nothing after {seconds:g} s\n{self.texts()}"
            time.sleep(pause)
        return found

    def signal(self, rank: int, number: int) -> None:
        """To launch itself, which hands it on, however many are asked to hear it."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 120.0) -> list[int]:
        return [self.process.wait(seconds)]

    def kill(self) -> None:
        """Its children go with it."""
        self.process.kill()
        self.process.wait()


class LaunchSoak(Soak):
    """Faults that launch must survive by itself; it is started again only where it was told to stop."""

    furthest = Progress(0, 0)

    def kinds(self, count: int) -> list[str]:
        found = [KINDS[i % len(KINDS)] for i in range(count)]
        self.random.shuffle(found)
        return found

    def start(self, kind: str, entry: dict[str, Any]) -> Launched:
        if self.group is None:
            self.mesh, self.started = self.places["meshes"][0], time.time()
            mesh = [f"mesh.{axis}={size}" for axis, size in self.mesh.items()]
            self.group = Launched(self.file, self.out, mesh, self.processes)
        return self.group

    def do(self, kind: str, entry: dict[str, Any]) -> None:
        group = self.start(kind, entry)
        if kind != "kill while starting" or not self.entries:
            self.first_step(group)
            self.gain(group)
        if kind == "terminate":
            self.wander(group)
            self.now(entry)
            group.signal(0, signal.SIGTERM)
            entry["codes"] = group.wait()
            assert entry["codes"] == [PREEMPTED], group.texts()
            self.group = None
            return
        if kind == "kill during a save":
            group.until(lambda: being_saved(self.out), pause=0.001)
        elif kind == "kill while starting":
            time.sleep(self.random.random() * 5)
        else:
            self.wander(group)
        self.strike(group, entry)
        if kind == "kill twice":  # before the next checkpoint: the restart gains nothing
            entry["survived"] = True  # of the first of the two; the next start tells of the second
            self.first_step(group)
            del entry["survived"]
            self.strike(group, entry)

    def gain(self, group: Launched) -> None:
        """Wait until the run is further than ever: launch ends a run whose restarts gain nothing, as it should."""
        group.until(lambda: self.progress().beyond(self.furthest))

    def progress(self) -> Progress:
        """As launch reads it."""
        return progress(self.out, str(self.out / "checkpoints"))

    def strike(self, group: Launched, entry: dict[str, Any]) -> None:
        """Kill one child; launch says that it starts them again. Until then nothing is written."""
        before = group.restarts()
        pids = group.until(lambda: len(found := group.children()) == self.processes and found)
        entry["rank"] = self.random.randrange(len(pids))
        os.kill(pids[entry["rank"]], signal.SIGKILL)
        entry["half_written"] = bool(being_saved(self.out))
        self.now(entry)
        group.until(lambda: group.restarts() > before)
        self.started, self.furthest = time.time(), self.furthest.furthest(self.progress())
        there = committed(self.out)
        entry["lost"] = [s for s in entry["committed"] if s not in there and not there[-1:] > [s]]
        entry |= {"resumes": max(there, default=0), "steps_lost": max(0, entry["step"] - max(there, default=0))}
