"""What a person sees of a run in the terminal: its banner, its bar or lines, and its closing table."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from jaxscale import config as cfg
from jaxscale.console.banner import banner, duration
from jaxscale.console.predict import gib
from jaxscale.console.tables import FittedTable, filled, make_console, make_table, tell
from jaxscale.data.index import read_index
from jaxscale.predict.costs import CONVENTIONS

LINES = 20  # of a run without a terminal, and more where it takes long
LONGEST_SILENCE = 60.0  # seconds
FIGURES = (
    ("rollout/reward", "reward", ".3f"),
    ("rollout_validation/greedy_reward", "held-out reward", ".3f"),
    ("loss", "loss", ".4f"),
    ("validation/loss", "validation loss", ".4f"),
    ("learning_rate", "learning rate", ".2e"),
    ("grad_norm", "gradient norm", ".3g"),
)


class TrainingConsole:
    """Follows a run: a live bar on a terminal, a line now and then elsewhere. Only process 0 speaks."""

    def __init__(self, config: cfg.Config):
        self.console = make_console()
        self.config = config
        self.bar: Bar | None = None
        self.pace = Pace()
        self.said = 0.0  # when the last line of a step was, by `time.monotonic`

    def speaks(self) -> bool:
        import jax

        return jax.process_index() == 0

    def say(self, line: str) -> None:
        if self.speaks():
            with contextlib.suppress(OSError):  # the log's disk is full, its reader is gone: the run goes on
                tell(self.console, line)

    def describe(self, config: cfg.Config, mesh, rows, *, decoder: bool) -> None:
        """The banner."""
        from jaxscale.training.watcher import mesh_words

        if self.speaks():
            for line in banner(config, mesh_words(mesh), list(mesh.devices.flat), len(rows), decoder=decoder):
                self.say(line)

    def start(self, first_step: int, config: cfg.Config) -> None:
        if not self.speaks():
            return
        if first_step >= config.steps:
            self.say(f"already at step {first_step} of {config.steps}; raise steps to train on")
            return
        self.say(f"training steps {first_step + 1:,} to {config.steps:,}; the first one compiles")
        if self.console.is_terminal:
            self.bar = Bar(self.console, first_step, config.steps)
            self.bar.start()

    def step(self, step: int, values: Mapping[str, Any], speed) -> None:
        if not self.speaks():
            return
        left, last = self.pace.left(step, self.config.steps), step == self.config.steps
        if last:  # validation is measured once more after this step
            values = {key: value for key, value in values.items() if "validation/" not in key}
        figures = step_figures(values, speed)
        if self.bar is not None:
            self.bar.show(step, left, figures)
            return
        now, seconds = time.monotonic(), values.get("step_seconds", 0.0)
        share = step % max(1, self.config.steps // LINES) == 0
        if share or last or not self.said or now - self.said + seconds > LONGEST_SILENCE:
            self.said = now
            self.say(f"{time.strftime('%H:%M:%S')}  {self.line(step, left, seconds, figures)}")

    def line(self, step: int, left: float | None, seconds: float, figures: list[str]) -> str:
        """A step in one line."""
        times = [f"step {step:,}/{self.config.steps:,}"]
        times += [f"{seconds:.3g} s a step"] if seconds else []
        times += [f"ETA {duration(left)}"] if left is not None else []
        return "  ".join([*times, *figures])

    def finish(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def step_figures(values: Mapping[str, Any], speed) -> list[str]:
    """What is known of a step, each with its label; of a run on its samples their rewards first."""
    figures = [f"{label} {values[key]:{form}}" for key, label, form in FIGURES if key in values]
    if speed:
        figures.append(f"{speed.tokens_per_second:,.0f} tokens/s")
        if speed.mfu is not None:
            figures.append(f"MFU {speed.mfu:.1%}")
        elif speed.mfu_withheld:
            figures.append("MFU withheld")
    if "peak_memory_bytes" in values:
        figures.append(f"memory {gib(values['peak_memory_bytes'])} at most")
    return figures


class Pace:
    """How long the steps that are left take, by what those since the first one took, pauses between them included."""

    def __init__(self) -> None:
        self.first, self.last = (0, 0.0), 0

    def left(self, step: int, steps: int) -> float | None:
        """Seconds; None after the first step, and after a step back."""
        now = time.monotonic()
        known = self.last and step > self.last
        self.last = step
        if not known:
            self.first = (step, now)
            return 0.0 if step == steps else None
        before, since = self.first
        return (now - since) / (step - before) * (steps - step)


class Bar(Progress):
    """A bar with labelled times, and the figures of the newest step below it."""

    def __init__(self, console: Console, first_step: int, steps: int):
        self.terminal, self.figures, self.began = console, ["compiling"], time.monotonic()
        columns = ("step {task.completed:,}/{task.total:,}", BarColumn(bar_width=None))
        elsewhere = TextColumn("{task.fields[elapsed]} elapsed"), TextColumn("ETA {task.fields[left]}")
        super().__init__(*columns, *elsewhere, console=console)
        self.row = self.add_task("", total=steps, completed=first_step, elapsed=duration(0), left="not known yet")

    def show(self, step: int, left: float | None, figures: list[str]) -> None:
        self.figures = figures
        self.tasks[0].fields["left"] = "not known yet" if left is None else duration(left)
        self.update(self.row, completed=step)

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            task.fields["elapsed"] = duration(time.monotonic() - self.began)
        yield self.make_tasks_table(self.tasks)
        yield Text("\n".join(filled(self.figures, self.terminal.width)))


def summarise(config: cfg.Config, result, *, sample: str | None) -> None:
    """The closing table, the loss curve, a sample, and what to type next."""
    import jax

    from jaxscale.files.jsonl import Lines, read_records
    from jaxscale.report.curve import plot_losses

    if jax.process_index():
        return
    console = make_console()
    records = read_records(result.out / "metrics.jsonl")
    try:
        curve = str(plot_losses(records, result.out / "loss.png", title=config.name, unit=config.objective.unit))
    except Exception as error:  # whatever matplotlib raises: the run is done, and its figures are kept
        curve = f"not drawn ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    table = result_table(config, result, records)
    table.add_row("loss curve", escape(str(curve)))
    console.print(table)
    if sample is not None and jax.process_count() > 1:
        tell(console, "\n--sample is for one process; the command below samples from the checkpoint, on any mesh.")
    elif sample is not None:
        from jaxscale.serving.serve import sample_after

        console.print(f"\nA continuation of {sample!r}:\n", markup=False)
        text = sample_after(result, config, sample)
        console.print(sample + text, markup=False)
        kept = Lines(result.out / "samples.jsonl", lambda line: console.print(line, markup=False))  # for `report`
        kept.write({"step": result.step, "prompt": sample, "samples": [{"text": text}]})
        kept.close()
    console.print("\nNext:")
    console.print(f"  {program()} {first_use(config, result.out)}", markup=False, soft_wrap=True)
    console.print(f"  {program()} report {result.out} -o report.html", markup=False, soft_wrap=True)
    again = f"  {program()} train {result.out}/config.yaml steps={2 * config.steps}    # goes on from here"
    console.print(again, markup=False, soft_wrap=True)


def result_table(config: cfg.Config, result, records: list[dict]) -> FittedTable:
    """How a run ended."""
    table = make_table(f"{config.name}, step {result.step}", "", "<")
    for name, value in summary_rows(config, result, records):
        table.add_row(name, escape(value))
    return table


def first_use(config: cfg.Config, out: Path) -> str:
    """What to try first with a trained model."""
    if config.model.score:
        return f"reward {out} FILE.jsonl -o scores.jsonl"
    data = config.data
    if data.kind == "tokens" and read_index(Path(data.places[0])).examples is not None:  # by a template
        return f'generate {out} --chat --prompt "..."'
    return f'generate {out} --prompt "class "'


def program() -> str:
    """How to call jaxscale from here: its name where the shell finds it, else as it was called."""
    if shutil.which("jaxscale"):
        return "jaxscale"
    return "python -m jaxscale" if sys.argv[0].endswith("__main__.py") else os.path.relpath(sys.argv[0])


def summary_rows(config: cfg.Config, result, records: list[dict]) -> list[tuple[str, str]]:
    training = [r["loss"] for r in records if r["kind"] == "train"]
    validation = [r["loss"] for r in records if r["kind"] == "validation"]
    unit = config.objective.unit
    rows = [("training loss", fall(training, unit)), ("validation loss", fall(validation, unit))]
    rows += reward_rows(records)
    speed = result.speed
    if speed:
        rows += [
            ("tokens/s, measured", f"{speed.tokens_per_second:,.0f}"),
            (
                "step seconds, measured",
                f"median {speed.step_seconds:.3f}, 95th percentile {speed.step_seconds_p95:.3f}",
            ),
            (
                "sampling and rewards" if config.objective.samples else "waiting for data",
                f"median {speed.data_wait_seconds * 1e3:.2f} ms a step",
            ),
        ]
        if speed.mfu is not None and result.peak:
            rows += [
                ("MFU, measured", f"{speed.mfu:.1%} of {result.peak.flops_per_second / 1e12:,.3g} TFLOP/s"),
                ("  its peak", result.peak.source),
                ("  its convention", f"{config.metrics.mfu}: {CONVENTIONS[config.metrics.mfu]}{of_samples(config)}"),
            ]
        elif speed.mfu_withheld:
            rows.append(("MFU", speed.mfu_withheld))
        else:
            rows.append(("MFU", "none: no published peak for this device and dtype, or no FLOP formula for this model"))
    return [*rows, ("run", str(result.out)), ("checkpoints", config.checkpoint_place)]


def of_samples(config: cfg.Config) -> str:
    """What MFU counts of a step that samples first."""
    return (
        "; training's alone, over the seconds of the whole step with its sampling" if config.objective.samples else ""
    )


def reward_rows(records: list[dict]) -> list[tuple[str, str]]:
    """Rewards of a run that trains on its samples."""
    rounds = [r for r in records if r["kind"] == "rollout"]
    held_out = [r for r in records if r["kind"] == "rollout_validation"]
    rows = []
    for title, entries, key in (
        ("reward of samples", rounds, "reward"),
        ("judge of samples", rounds, "judge"),
        ("held-out reward, drawn", held_out, "reward"),
        ("held-out reward, greedy", held_out, "greedy_reward"),
        ("held-out judge, greedy", held_out, "greedy_judge"),
    ):
        if values := [r[key] for r in entries if isinstance(r.get(key), float)]:
            rows.append((title, f"{values[-1]:.3f}" + (f" (first {values[0]:.3f})" if len(values) > 1 else "")))
    return rows


def fall(losses: list[float], unit: str) -> str:
    if not losses:
        return "none measured"
    return f"{losses[-1]:.4f}" + (f" (first {losses[0]:.4f})" if len(losses) > 1 else "") + f" {unit}"
