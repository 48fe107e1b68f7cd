"""From the command to the first step, by part, cold and with JAX's persistent compilation cache. No jax here.

Each run is a real `jaxscale train` in a fresh process; the parts are read from the events that it writes.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxscale.bench.record import Row, measured
from jaxscale.bench.sweep import reason
from jaxscale.files.jsonl import read_records

PARTS = ("import", "devices", "data", "init", "compile", "first step", "other", "all")


def measure(name: str, overrides: list[str], *, repeats: int, say: Callable[[str], None]) -> Iterator[Row]:
    """Rows of every part, with an empty cache and with the one that the run before left."""
    by_cache: dict[str, list[dict[str, float]]] = {"cold": [], "cached": []}
    try:
        for number in range(repeats):
            with tempfile.TemporaryDirectory(prefix="jaxscale-bench-") as folder:
                for cache in by_cache:
                    say(f"{number + 1}/{repeats} {cache}")
                    by_cache[cache].append(one_start(name, overrides, Path(folder), cache))
    except KeyboardInterrupt:  # of what is done, every sample is in its row
        if not all(by_cache.values()):
            raise
        say("stopped early")
    for cache, starts in by_cache.items():
        for part in PARTS:
            yield Row(
                labels={"part": part, "cache": cache}, figures={"seconds": measured([s[part] for s in starts], "s")}
            )


def one_start(name: str, overrides: list[str], folder: Path, run: str) -> dict[str, float]:
    """Seconds of each part of one start; the process is ended once its first step is done.

    Raises ValueError with what `train` said when it failed.
    """
    out, errors = folder / run, folder / f"{run}.stderr"
    bench_overrides = [
        f"out={out}",
        f"runtime.compilation_cache={folder / 'cache'}",
        "checkpoint.every=0",
        "evaluation.every=0",
    ]
    command = [sys.executable, "-m", "jaxscale.cli", "train", name, *overrides, *bench_overrides]
    start = time.time()
    with errors.open("w") as sink:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sink)
        try:
            while process.poll() is None and not any(e["event"] == "step" for e in read_records(out / "events.jsonl")):
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
    events = read_records(out / "events.jsonl")
    if not any(e["event"] == "step" for e in events):
        raise ValueError(reason(errors.read_text(), process.returncode))
    return parts(events, start)


def parts(events: list[dict], start: float) -> dict[str, float]:
    """From the start of the process to the end of the first step."""

    def at(event: str, phase: str) -> float:
        return next(e["time"] for e in events if e["event"] == event and e["phase"] == phase)

    seconds = {"import": at("run", "start") - start}
    seconds |= {name: at(name, "end") - at(name, "start") for name in ("devices", "data", "init", "compile")}
    first = next(e for e in events if e["event"] == "step")
    seconds["first step"] = first["seconds"]
    seconds["all"] = first["time"] - start
    return seconds | {"other": seconds["all"] - sum(v for k, v in seconds.items() if k != "all")}
