"""What the trainer's loop costs beside its jitted step: ratio of their times a step, at steps of about 50 ms.

    python benchmarks/trainer_overhead.py             # about 2 minutes on 2 cores

One process, one model, on this machine's CPU. `train(config)` runs as the command line runs it: synthetic rows through
the feed, metrics.jsonl and TensorBoard written every step, the console's live bar drawn (on a terminal that leads
nowhere). Every few dozen steps its watcher holds it back and runs the same jitted step, with one batch and a state of
its own, as many times in a bare loop: the two alternate through the whole run, so a noisy machine hurts both alike.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
from common import HERE, machine, spread, spread_text, write_record
from rich.console import Console

from jaxscale import config as cfg
from jaxscale.console.train import TrainingConsole
from jaxscale.process.heap import keep_heap
from jaxscale.training.feed import Feed, open_source
from jaxscale.training.step import batch_sharding, make_program
from jaxscale.training.trainer import train


def run_config(steps: int, out: str) -> cfg.Config:
    model = cfg.Model(vocab_size=256, num_layers=4, embed_dim=192, num_heads=6, mlp_dim=512, max_seq_len=128)
    return cfg.Config(
        name="trainer-overhead",
        out=out,
        steps=steps,
        model=model,
        mesh=cfg.Mesh(data=1),
        runtime=cfg.Runtime(platform="cpu"),
        data=cfg.Data(kind="synthetic", batch_size=3, seq_len=128),
        step=cfg.Step(remat="none", compute_dtype="float32"),
        evaluation=cfg.Evaluation(batches=1),
    )


class Turns(TrainingConsole):
    """The console, which times the trainer `chunk` steps at a time and takes turns with a bare loop.

    A round, counted in steps read: 2 to get going after the bare loop, then `chunk` that are timed.
    """

    def __init__(self, config: cfg.Config, chunk: int):
        super().__init__(config)
        self.console = Console(file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
        self.chunk, self.trainer, self.bare = chunk, [], []
        self.trainer_cpu, self.bare_cpu = [], []

    def start(self, first_step: int, config: cfg.Config) -> None:
        super().start(first_step, config)
        mesh = jax.sharding.get_mesh()
        self.program = make_program(config)
        self.state = self.program.init()
        feed = Feed(open_source(config, "train"), config, batch_sharding(mesh), stop_step=1)
        self.batch = next(feed)
        feed.close()
        self.run_bare(3)

    def step(self, step: int, values: dict[str, float], speed) -> None:
        super().step(step, values, speed)
        place = step % (self.chunk + 2)
        if place == 2:
            self.began, self.began_cpu = time.perf_counter(), time.process_time()
        elif place == 0:
            self.trainer.append((time.perf_counter() - self.began) / self.chunk)
            self.trainer_cpu.append((time.process_time() - self.began_cpu) / self.chunk)
            time.sleep(0.3)  # the step that the trainer has dispatched ends
            self.run_bare(2)
            began_cpu = time.process_time()
            self.bare.append(self.run_bare(self.chunk))
            self.bare_cpu.append((time.process_time() - began_cpu) / self.chunk)

    def run_bare(self, steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            self.state, _ = self.program.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--chunk", type=int, default=10, help="steps of each in a round")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    about_machine = machine()
    keep_heap()  # as the command line does
    with tempfile.TemporaryDirectory() as folder:
        config = run_config(arguments.rounds * (arguments.chunk + 2) + 1, f"{folder}/run")
        turns = Turns(config, arguments.chunk)
        train(config, watcher=turns)
    # a trainer's chunk against the mean of the bare ones before and after it, where there are both
    around = [(a + b) / 2 for a, b in zip(turns.bare, turns.bare[1:], strict=False)]
    ratios = [t / b for t, b in zip(turns.trainer[1:], around, strict=True)]
    print(f"{about_machine['cores']} cores, {about_machine['cpu']}")
    print(f"{arguments.rounds} rounds of {arguments.chunk} steps each")
    names = ("trainer's loop", turns.trainer, turns.trainer_cpu), ("bare step", turns.bare, turns.bare_cpu)
    for name, seconds, cpu in names:
        low, middle, high = (1e3 * f(seconds) for f in (min, statistics.median, max))
        print(
            f"{name:16}{middle:7.2f} ms a step ({low:.2f} to {high:.2f}), {1e3 * statistics.median(cpu):.2f} ms of CPU"
        )
    fastest = min(turns.trainer) / min(turns.bare)
    cpu_ratio = statistics.median(turns.trainer_cpu) / statistics.median(turns.bare_cpu)
    print(f"ratio of time a step, trainer's loop to bare step: {spread_text(ratios)}; of the fastest {fastest:.3f}")
    print(f"ratio of CPU time a step, all threads: {cpu_ratio:.3f}")
    record = {
        "machine": about_machine,
        "config": config.model_dump(mode="json") | {"out": None},
        "ratio": spread(ratios),
        "ratio_of_fastest": fastest,
        "ratio_of_cpu_time": cpu_ratio,
        "ratios": ratios,
        "steps_a_chunk": arguments.chunk,
        "trainer_seconds_a_step": turns.trainer,
        "bare_seconds_a_step": turns.bare,
        "trainer_cpu_seconds_a_step": turns.trainer_cpu,
        "bare_cpu_seconds_a_step": turns.bare_cpu,
    }
    print(f"recorded in {write_record('trainer_overhead', record, arguments.out)}")


if __name__ == "__main__":
    main()
