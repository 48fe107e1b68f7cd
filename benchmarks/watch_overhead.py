"""What watching a run costs: the monitor, events.jsonl and the question before each step, on and off in one run.

    python benchmarks/watch_overhead.py             # about 2 minutes on 2 cores

Steps take about 50 ms. Every few dozen steps all of it is turned off, or on again, so that both meet the same noise.
Beside the ratio, which noise may drown, stands what these calls themselves take of a step, measured around each.
"""

import argparse
import statistics
import tempfile
import time
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


class Chunks:
    """The run's watcher: turns the switch every `chunk` steps and keeps the time of each chunk but its first steps."""

    def __init__(self, switch: Switch, chunk: int):
        self.switch, self.chunk = switch, chunk
        self.times: dict[bool, list[float]] = {True: [], False: []}
        self.own: list[float] = []

    def say(self, line: str) -> None: ...
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


def run(rounds: int, chunk: int, folder: str) -> tuple[Chunks, dict]:
    from trainer_overhead import run_config

    from jaxscale.cluster.monitor import Monitor
    from jaxscale.heap import keep_heap
    from jaxscale.training import trainer
    from jaxscale.training.events import Events

    switch = Switch()
    Monitor.tick = switch.timed(Monitor.tick, True)  # type: ignore[method-assign]
    Monitor.may_start = switch.timed(Monitor.may_start, True)  # type: ignore[method-assign]
    Monitor.follow = switch.timed(Monitor.follow, None)  # type: ignore[method-assign]
    Events.step = switch.timed(Events.step, None)  # type: ignore[method-assign]
    steps = (2 * rounds + 2) * (chunk + 2) + 1
    config = run_config(steps, f"{folder}/run").model_dump(mode="json")
    config["data"] |= {"batch_size": 6}
    config["metrics"] |= {"tensorboard": False}
    config["checkpoint"] |= {"every": 0}
    config["watch"] |= {"enabled": True}
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
    arguments = parser.parse_args()
    about_machine = machine()
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


if __name__ == "__main__":
    main()
