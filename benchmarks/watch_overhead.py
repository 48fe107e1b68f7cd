"""What watching a run costs: the monitor, events.jsonl and the question before each step, on and off in one run.

    python benchmarks/watch_overhead.py             # about 2 minutes on 2 cores
    python benchmarks/watch_overhead.py --processes 2 --rounds 8      # the calls themselves, about 1 minute

Steps take about 50 ms. Every few dozen steps all of it is turned off, or on again, so that both meet the same noise.
Beside the ratio, which noise may drown, stands what these calls themselves take of a step, measured around each.

Several processes cannot do without: they agree by it where to stop. There only the calls are measured, on each process
of one run: the wall time of those that the run waits for, and the CPU time of the thread beside it, whose wall time is
mostly waiting for the key-value store's answers.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from common import HERE, machine, spread, spread_text, write_record


class Switch:
    """Whether things are watched, and the seconds that doing so took in this chunk of steps."""

    def __init__(self) -> None:
        self.on, self.seconds = True, 0.0

    def timed(self, call: Any, otherwise: Any) -> Any:
        """`call`, timed, while it is on; else what `otherwise` returns."""

        def run(*arguments: Any, **more: Any) -> Any:
            if not self.on:
                return otherwise
            start = time.perf_counter()
            try:
                return call(*arguments, **more)
            finally:
                self.seconds += time.perf_counter() - start

        return run


class Called:
    """On one of several processes: the time of the calls, a chunk of steps after the other; also the run's watcher."""

    def __init__(self, chunk: int, path: Path):
        self.chunk, self.path = chunk, path
        self.run = self.thread_cpu = self.thread_wall = 0.0
        self.chunks: list[dict[str, float]] = []

    def waited_for(self, call: Any) -> Any:
        def run(*arguments: Any, **more: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*arguments, **more)
            finally:
                self.run += time.perf_counter() - start

        return run

    def beside(self, call: Any) -> Any:
        def run(*arguments: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return call(*arguments)
            finally:
                self.thread_cpu += time.thread_time() - cpu
                self.thread_wall += time.perf_counter() - wall

        return run

    def say(self, line: str) -> None: ...
    def describe(self, *about: Any, decoder: bool) -> None: ...
    def start(self, first_step: int, config: Any) -> None: ...
    def finish(self) -> None: ...

    def step(self, step: int, values: dict[str, float], speed: Any) -> None:
        if step % self.chunk:
            return
        now = {"time": time.perf_counter(), "run": self.run, "cpu": self.thread_cpu, "wall": self.thread_wall}
        self.chunks.append(now)
        self.path.write_text(json.dumps(self.chunks))


def one_of_several(path: Path, steps: int, chunk: int) -> None:
    """A process of the run, told its place by the environment."""
    import jax

    from jaxscale.cluster.monitor import Monitor
    from jaxscale.config import validate
    from jaxscale.training import trainer
    from jaxscale.training.journal import Journal

    jax.config.update("jax_disable_most_optimizations", False)  # which tests ask for
    called = Called(chunk, path)
    Monitor.tick = called.beside(Monitor.tick)  # type: ignore[method-assign]
    Monitor.may_start = called.waited_for(Monitor.may_start)  # type: ignore[method-assign]
    Journal.mark = called.waited_for(Journal.mark)  # type: ignore[method-assign]
    trainer.train(validate(watched_config(steps, str(path.parent / "run"), 2), source="watch_overhead"), watcher=called)


def several(processes: int, rounds: int, chunk: int, folder: Path) -> list[list[dict[str, float]]]:
    """For each process the chunks of one run: seconds a step, and of them the run's calls and the thread's."""
    sys.path.append(str(HERE.parent / "tests"))
    from faults.processes import Group

    paths = [folder / f"{rank}.json" for rank in range(processes)]
    words = [__file__, "--chunk", str(chunk), "--rounds", str(rounds), "--one"]
    with Group(
        words, folder, processes=processes, each={rank: [str(path)] for rank, path in enumerate(paths)}
    ) as group:
        codes = group.wait(600)
        assert codes == [0] * processes, group.texts()
    found = []
    for path in paths:
        marks = json.loads(path.read_text())[1:]  # the first chunk warms up
        found.append([{name: (b[name] - a[name]) / chunk for name in a} for a, b in pairwise(marks)])
    return found


class Chunks:
    """The run's watcher: turns the switch every `chunk` steps and keeps the time of each chunk but its first steps."""

    def __init__(self, switch: Switch, chunk: int):
        self.switch, self.chunk = switch, chunk
        self.times: dict[bool, list[float]] = {True: [], False: []}
        self.own: list[float] = []

    def say(self, line: str) -> None: ...
    def describe(self, *about: Any, decoder: bool) -> None: ...
    def start(self, first_step: int, config: Any) -> None: ...
    def finish(self) -> None: ...

    def step(self, step: int, values: dict[str, float], speed: Any) -> None:
        place = step % (self.chunk + 2)
        if place == 2:
            self.began, self.switch.seconds = time.perf_counter(), 0.0
        elif place == 0 and step > 2 * self.chunk:  # the first two warm up
            self.times[self.switch.on].append((time.perf_counter() - self.began) / self.chunk)
            if self.switch.on:
                self.own.append(self.switch.seconds / self.chunk)
            self.switch.on = not self.switch.on


def watched_config(steps: int, out: str, devices: int) -> dict[str, Any]:
    from trainer_overhead import run_config

    config = run_config(steps, out).model_dump(mode="json")
    config["data"] |= {"batch_size": 6}
    config["metrics"] |= {"tensorboard": False}
    config["checkpoint"] |= {"every": 0}
    config["watch"] |= {"enabled": True}
    if devices > 1:
        config["mesh"] |= {"data": devices}
        config["runtime"] |= {"simulated_devices": devices}
    return config


def run(rounds: int, chunk: int, folder: str) -> tuple[Chunks, dict]:
    from jaxscale.cluster.monitor import Monitor
    from jaxscale.process.heap import keep_heap
    from jaxscale.training import trainer
    from jaxscale.training.journal import Journal

    switch = Switch()
    Monitor.tick = switch.timed(Monitor.tick, True)  # type: ignore[method-assign]
    Monitor.may_start = switch.timed(Monitor.may_start, True)  # type: ignore[method-assign]
    Journal.mark = switch.timed(Journal.mark, None)  # type: ignore[method-assign]
    steps = (2 * rounds + 2) * (chunk + 2) + 1
    config = watched_config(steps, f"{folder}/run", 1)
    keep_heap()
    chunks = Chunks(switch, chunk)
    from jaxscale.config import validate

    trainer.train(validate(config, source="watch_overhead"), watcher=chunks)
    return chunks, config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="each on, then off")
    parser.add_argument("--chunk", type=int, default=12, help="steps of each")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    steps = (2 * arguments.rounds + 2) * arguments.chunk
    if arguments.one:
        one_of_several(arguments.one, steps, arguments.chunk)
        return
    about_machine = machine()
    if arguments.processes > 1:
        tell_several(about_machine, arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        chunks, config = run(arguments.rounds, arguments.chunk, folder)
    on, off = chunks.times[True], chunks.times[False]
    ratios = [a / b for a, b in zip(on, off, strict=False)]
    step, own = statistics.median(off), statistics.median(chunks.own)
    print(f"{about_machine['cores']} cores, {about_machine['cpu']}")
    print(f"step: {1e3 * step:.1f} ms with nothing watched; ratio with all of it on: {spread_text(ratios)}")
    print(f"the calls themselves: {1e6 * own:.0f} us a step, {own / step:.3%} of it")
    record = {
        "machine": about_machine,
        "config": config | {"out": None},
        "steps_a_chunk": arguments.chunk,
        "ratio": spread(ratios),
        "ratios": ratios,
        "on_seconds_a_step": on,
        "off_seconds_a_step": off,
        "own_seconds_a_step": chunks.own,
        "own_share_of_a_step": own / step,
    }
    print(f"recorded in {write_record('watch_overhead', record, arguments.out)}")


def tell_several(about_machine: dict[str, Any], arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ranks = several(arguments.processes, arguments.rounds, arguments.chunk, Path(folder))
    print(f"{about_machine['cores']} cores, {about_machine['cpu']}")
    told = []
    for rank, chunks in enumerate(ranks):
        step, waited, cpu, wall = (
            statistics.median(c[name] for c in chunks) for name in ("time", "run", "cpu", "wall")
        )
        told.append({"step_seconds": step, "waited_for_seconds_a_step": waited, "thread_cpu_seconds_a_step": cpu,
                     "thread_wall_seconds_a_step": wall, "share_of_a_step": (waited + cpu) / step})  # fmt: skip
        print(f"process {rank}: step {1e3 * step:.1f} ms; waited {1e6 * waited:.0f} us of it, the thread takes "
              f"{1e6 * cpu:.0f} us of CPU: {(waited + cpu) / step:.3%}; calls last {1e6 * wall:.0f} us")  # fmt: skip
    record = {
        "rounds": arguments.rounds,
        "machine": about_machine,
        "load_after": os.getloadavg()[0],
        "processes": arguments.processes,
        "steps_a_chunk": arguments.chunk,
        "by_process": told,
        "chunks": ranks,
    }
    print(f"recorded in {write_record('watch_overhead-processes', record, arguments.out)}")


if __name__ == "__main__":
    main()
