"""Who chose this loss? Maximum likelihood has a ceiling, learned objectives pass it, and one is over-optimised.

    make objectives                                  # or: python demos/objectives.py --out build/objectives

A small model learns to sort four digits from teachers who do so 3 times in 10 and else hand the digits back. Then the
same model is trained on: on more of its data, on its best samples (RAFT), by policy gradients with a verifier (GRPO),
on preferences (DPO), and by a reward model alone, held to its beginning well and badly. Nothing is fetched.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import sorting

from jaxscale import config as cfg
from jaxscale.data.examples.prepare import prepare_examples
from jaxscale.data.examples.reading import examples_source
from jaxscale.files.jsonl import read_records
from jaxscale.process.heap import keep_heap
from jaxscale.process.quiet import quiet_logs
from jaxscale.serving.rollout import Ask, roll_out
from jaxscale.training.trainer import train
from jaxscale.training.watcher import Silent

EXACT = f"{Path(sorting.__file__).resolve()}:exact"
MODEL = {"vocab_size": 257, "num_layers": 2, "embed_dim": 64, "num_heads": 4, "mlp_dim": 192, "max_seq_len": 64}
SAMPLED = {"max_new": 6, "group": 8, "reward": EXACT}
BLUE, RED = "#4477aa", "#cc6633"
STEADY = {"schedule": "constant", "weight_decay": 0.0}
METHODS = {
    "base": "maximum likelihood",
    "longer": "... and half as long again",
    "raft": "RAFT, best of 8",
    "grpo": "GRPO, verifier",
    "dpo": "DPO on its own pairs",
    "learned": "GRPO, learned reward, held",
    "over": "GRPO, learned reward, loose",
}


@dataclass(frozen=True)
class Task:
    """One seed: its directory, and how each run of it begins."""

    out: Path
    seed: int

    @property
    def runs(self) -> Path:
        return self.out / f"seed-{self.seed}"

    def run(self, name: str, data: str, rows: int, steps: int, rate: float, **sections: Any) -> Path:
        """Train a run, from the base unless it is that."""
        started, directory = time.perf_counter(), self.runs / name
        begins = {} if name == "base" else {"from": str(self.runs / "base")}
        values = {
            "name": name,
            "out": str(directory),
            "seed": self.seed,
            "steps": steps,
            "model": MODEL,
            "runtime": {"platform": "cpu"},
            "data": {"path": str(data), "batch_size": rows, "seq_len": 48},
            "step": {"compute_dtype": "float32", "remat": "none"},
            "init": begins,
            "optimizer": {"learning_rate": rate, "warmup_steps": 5, **STEADY} | sections.pop("optimizer", {}),
            "checkpoint": {"every": 0, "resume": False},
            "evaluation": {"examples": sorting.HELD_OUT},
            "metrics": {"tensorboard": False},
        }
        shutil.rmtree(directory, ignore_errors=True)
        train(cfg.validate(values | sections, source=name), watcher=Flags())
        print(f"  {name:8} {steps:4} steps in {time.perf_counter() - started:4.0f} s", flush=True)
        return directory

    def data(self, name: str) -> str:
        return str(self.out / "data" / name)


class Flags(Silent):
    """Passes on what a run has to warn of."""

    def say(self, line: str) -> None:
        if "over-optimised" in line or "no reward" in line:
            print(f"  {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/objectives"), help="where runs and the page go")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    quiet_logs()
    keep_heap()
    started, out = time.perf_counter(), given.out
    prepare(out)
    found = [one_seed(Task(out, seed)) for seed in range(given.seeds)]
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    table(found)
    draw(out, found)
    print(f"\n{time.perf_counter() - started:.0f} s in all; look at {out / 'objectives.html'}")


def prepare(out: Path) -> None:
    """What teachers wrote, and prompts whose last 512 no run trains on."""
    shutil.rmtree(out / "data", ignore_errors=True)
    (out / "data").mkdir(parents=True)
    sorting.write(out / "data")
    prepared(out / "data", "chat", "conversations")
    prepared(out / "data", "prompts", "prompts", held_out="held-out")


def prepared(data: Path, name: str, kind: Any, held_out: str | None = None) -> None:
    validation = examples_source(kind, [data / f"{held_out}.jsonl"]) if held_out else None
    shutil.rmtree(data / name, ignore_errors=True)
    prepare_examples(
        examples_source(kind, [data / f"{name}.jsonl"]), "byte", data / name, template="plain", validation=validation
    )


def one_seed(task: Task) -> dict[str, Any]:
    """All methods: name -> what its samples come to; what the base's best of n come to; curves of the loose run."""
    print(f"seed {task.seed}", flush=True)
    verifier = {**SAMPLED, "kind": "grpo", "aggregate": "dr_grpo"}
    task.run("base", task.data("chat"), 64, 300, 3e-3, optimizer={"schedule": "cosine", "warmup_steps": 20})
    own = pairs_of(task)
    task.run("longer", task.data("chat"), 64, 150, 3e-4)
    raft = {**SAMPLED, "kind": "raft", "prompts": 128, "updates": 10}
    task.run("raft", task.data("prompts"), 64, 80, 3e-4, objective=raft)
    task.run("grpo", task.data("prompts"), 256, 40, 3e-4, objective=verifier)
    task.run("dpo", own, 32, 100, 5e-5, objective={"kind": "dpo", "beta": 0.1, "sft": 0.2})
    reward = task.run("reward", own, 32, 100, 1e-3, objective={"kind": "reward"})
    by_model = verifier | {"reward": str(reward), "judge": EXACT}
    task.run("learned", task.data("prompts"), 256, 40, 2e-4, objective=by_model | {"kl": 0.3})
    if task.seed == 0:
        task.run("over", task.data("prompts"), 256, 90, 3e-4, objective=by_model | {"kl": 0.03})
    methods = [name for name in METHODS if (task.runs / name).is_dir()]
    validation = [r for r in read_records(reward / "metrics.jsonl") if r["kind"] == "validation"]
    return {
        "seed": task.seed,
        "exact": {name: measured(task, name) for name in methods},
        "best_of": json.loads((task.runs / "rollout.json").read_text())["best_of"],
        "pair_accuracy": validation[-1]["accuracy"],
    }


def pairs_of(task: Task) -> str:
    """Pairs of the base's own samples, one right and one wrong, as a dataset; what its best of n come to."""
    data = task.runs / "pairs"
    data.mkdir(exist_ok=True)
    some = data / "prompts.jsonl"
    some.write_text("".join(list((task.out / "data" / "prompts.jsonl").open())[:1024]))
    ask = Ask(some, 8, data / "samples.jsonl", pairs=data / "own.jsonl", reward=EXACT, rows=512, seed=task.seed)
    summary = roll_out(str(task.runs / "base"), ask, [], max_new_tokens=6, temperature=1.0, say=quiet)
    (task.runs / "rollout.json").write_text(json.dumps(summary, default=str))
    prepared(data, "own", "pairs")
    return str(data / "own")


def measured(task: Task, name: str) -> dict[str, float]:
    """Exact matches of the held-out prompts, in percent: drawn and greedy."""
    found = {}
    for how, temperature in (("drawn", 1.0), ("greedy", 0.0)):
        ask = Ask(task.out / "data" / "held-out.jsonl", 1, task.runs / f"{name}-{how}.jsonl", reward=EXACT, rows=512)
        summary = roll_out(str(task.runs / name), ask, [], max_new_tokens=6, temperature=temperature, say=quiet)
        assert summary is not None
        found[how] = 100 * summary["reward"]
    return found


quiet: Callable[[str], None] = lambda line: None  # noqa: E731


def table(found: list[dict[str, Any]]) -> None:
    print("\nExact matches of 512 held-out prompts, drawn / greedy, in percent:")
    for name, title in METHODS.items():
        cells = [one["exact"].get(name) for one in found]
        print(f"  {title:30}", *(f"{c['drawn']:3.0f} / {c['greedy']:3.0f} " if c else " " * 10 for c in cells))
    accuracy = " ".join(f"{one['pair_accuracy']:.2f}" for one in found)
    print(f"  reward model, accuracy of held-out pairs: {accuracy}")


def draw(out: Path, found: list[dict[str, Any]]) -> None:
    """The page of the first seed's runs, and a picture of the answers."""
    runs = [out / "seed-0" / name for name in (*METHODS, "reward") if (out / "seed-0" / name).is_dir()]
    command = [sys.executable, "-m", "jaxscale.cli", "report", *map(str, runs), "-o", str(out / "objectives.html")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    methods, best, over = figure.subplots(1, 3, width_ratios=(3, 2, 2))
    draw_methods(methods, found)
    draw_best(best, found)
    draw_over(over, out / "seed-0" / "over")
    for axes in (methods, best, over):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(out / "objectives.png")


def draw_methods(axes: Any, found: list[dict[str, Any]]) -> None:
    """Each method's exact matches, a point for each seed."""
    for row, name in enumerate(METHODS):
        cells = [one["exact"][name] for one in found if name in one["exact"]]
        for how, color, marker in (("drawn", BLUE, "o"), ("greedy", RED, "D")):
            label = how if row == 0 else None
            axes.plot([c[how] for c in cells], [row] * len(cells), marker, color=color, label=label, alpha=0.8)
    axes.set(title="Exact matches of held-out prompts", xlabel="percent", xlim=(0, 100))
    axes.set_yticks(range(len(METHODS)), METHODS.values())
    axes.invert_yaxis()
    axes.legend(frameon=False)


def draw_best(axes: Any, found: list[dict[str, Any]]) -> None:
    """Best of n samples of the base, chosen by the verifier."""
    for one in found:
        numbers = {int(n): 100 * value for n, value in one["best_of"].items()}
        axes.plot(numbers.keys(), numbers.values(), "o-", color=BLUE, alpha=0.8, label=f"seed {one['seed']}")
    axes.set_xscale("log", base=2)
    axes.set(title="Best of n samples, maximum likelihood", xlabel="n", ylabel="percent exact", ylim=(0, 100))
    axes.legend(frameon=False)


def draw_over(axes: Any, run: Path) -> None:
    """The learned reward and the truth against the divergence, in the order of the rounds."""
    records = read_records(run / "metrics.jsonl")
    kl = {r["step"]: r["kl_k1"] for r in records if r["kind"] == "train"}
    rounds = [r for r in records if r["kind"] == "rollout" and r["step"] in kl]
    far = [kl[r["step"]] for r in rounds]
    axes.plot(far, [r["reward"] for r in rounds], ".", color=BLUE, label="learned reward")
    other = axes.twinx()
    other.plot(far, [100 * r["judge"] for r in rounds], ".", color=RED)
    other.set(ylabel="exact matches, percent", ylim=(0, 100))
    axes.plot([], [], ".", color=RED, label="the truth")
    axes.set(title="A learned reward, held loosely", xlabel="divergence, nats per token", ylabel="learned reward")
    axes.legend(frameon=False, loc="center right")


if __name__ == "__main__":
    main()
