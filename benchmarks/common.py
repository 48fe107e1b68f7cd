"""What the benchmarks share: workers that take turns, and a record of the machine, the versions and every sample."""

import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ANSWER = "answer: "
LIBRARIES = ("jaxscale", "jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "libtpu",
             "jax-cuda13-plugin", "nvidia-cuda-nvcc")  # fmt: skip


class Worker:
    """A subprocess that answers one JSON line for each JSON line it is sent; silent in between, so it costs nothing.

    It begins by sending one JSON line about itself (`about`).
    """

    def __init__(
        self, script: str, *arguments: str, env: dict[str, str] | None = None, python: str | Path = sys.executable
    ):
        self.process = subprocess.Popen(
            [python, script, *arguments],  # or "-m", module, ...
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | (env or {}),
            cwd=HERE.parent,
        )
        self.about = self.read()

    def ask(self, command: str, **arguments: Any) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"command": command} | arguments) + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> Any:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(ANSWER):  # libraries may print too
                return json.loads(line.removeprefix(ANSWER))
        raise SystemExit(f"a worker ended: exit code {self.process.wait()}")

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60)


def serve(about: dict, **commands: Any) -> None:
    """The worker's side: answer until the parent closes its end."""
    print(ANSWER + json.dumps(about), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(ANSWER + json.dumps(commands[request.pop("command")](**request)), flush=True)


def time_steps(one: Callable[[], float], count: int) -> dict[str, Any]:
    """Seconds and losses of `count` steps, page faults and CPU seconds of them all."""
    seconds, losses, before = [], [], resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(count):
        start = time.perf_counter()
        losses.append(one())
        seconds.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "losses": losses,
        "page_faults": after.ru_minflt - before.ru_minflt,
        "user_seconds": after.ru_utime - before.ru_utime,
        "system_seconds": after.ru_stime - before.ru_stime,
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def spread_text(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {"cpu": model, "cores": cores(), "system": platform.platform(), "load_before": os.getloadavg()[0]}


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_record(name: str, record: dict[str, Any], folder: Path) -> Path:
    """`<folder>/<date>-<name>.json`; a second one of a day gets a number, so that nothing recorded is lost."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    stem, number = f"{now.date()}-{name}", 1
    path = folder / f"{stem}.json"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    about = {"name": name, "date": now.isoformat(), "git_commit": git_commit(), "versions": versions()}
    path.write_text(json.dumps(about | record, indent=1) + "\n")
    return path


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Of the checkout, with `-dirty` where it has changes; None outside one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        out = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip() or None
