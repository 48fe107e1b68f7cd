"""What a person sees in the terminal: the bar of a run, its closing table, and what `show` prints."""

import contextlib
import os
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from jaxscale import config as cfg
from jaxscale.data.index import read_index
from jaxscale.predict.costs import CONVENTIONS, active_parameters, parameter_counts


class TrainingConsole:
    """Follows a run: a live bar on a terminal, a line now and then elsewhere. Only process 0 speaks."""

    def __init__(self, config: cfg.Config):
        self.console = Console(highlight=False)
        self.config = config
        self.progress: Progress | None = None
        self.task: TaskID | None = None

    def speaks(self) -> bool:
        import jax

        return jax.process_index() == 0

    def say(self, line: str) -> None:
        if self.speaks():
            with contextlib.suppress(OSError):  # the log's disk is full, its reader is gone: the run goes on
                self.console.print(escape(line), soft_wrap=True)

    def start(self, first_step: int, config: cfg.Config) -> None:
        if not self.speaks():
            return
        if first_step >= config.steps:
            self.say(f"already at step {first_step} of {config.steps}; raise steps to train on")
        elif self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            self.progress = Progress(*columns, console=self.console)
            self.task = self.progress.add_task(
                config.name, total=config.steps, completed=first_step, figures="compiling"
            )
            self.progress.start()
        else:
            self.say(f"training {config.name}: steps {first_step + 1} to {config.steps} (the first one compiles)")

    def step(self, step: int, values: dict[str, float], speed) -> None:
        if not self.speaks():
            return
        figures = f"loss {values['loss']:.4f}"
        if speed:
            figures += f"  {speed.tokens_per_second:,.0f} tokens/s"
            if speed.mfu is not None:
                figures += f"  MFU {speed.mfu:.1%}"
            elif speed.mfu_withheld:
                figures += "  MFU withheld"
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=step, figures=figures)
        elif step == self.config.steps or step % max(1, self.config.steps // 20) == 0:
            self.say(f"step {step}/{self.config.steps}  {figures}")

    def finish(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


def summarise(config: cfg.Config, result, *, sample: str | None) -> None:
    """The closing table, the loss curve, a sample, and what to type next."""
    import jax

    from jaxscale.files.jsonl import Lines, read_records
    from jaxscale.report.curve import plot_losses

    if jax.process_index():
        return
    console = Console(highlight=False)
    records = read_records(result.out / "metrics.jsonl")
    try:
        curve = str(plot_losses(records, result.out / "loss.png", title=config.name, unit=config.objective.unit))
    except Exception as error:  # whatever matplotlib raises: the run is done, and its figures are kept
        curve = f"not drawn ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
    table = Table(title=f"{config.name}, step {result.step}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")  # a path cut short is of no use
    for name, value in summary_rows(config, result, records):
        table.add_row(name, escape(value))
    table.add_row("loss curve", escape(str(curve)))
    console.print(table)
    if sample is not None and jax.process_count() > 1:
        console.print("\n--sample is for one process; the command below samples from the checkpoint, on any mesh.")
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
    return "python -m jaxscale.cli" if sys.argv[0].endswith("__main__.py") else os.path.relpath(sys.argv[0])


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
    for title, found, key in (
        ("reward of samples", rounds, "reward"),
        ("judge of samples", rounds, "judge"),
        ("held-out reward, drawn", held_out, "reward"),
        ("held-out reward, greedy", held_out, "greedy_reward"),
        ("held-out judge, greedy", held_out, "greedy_judge"),
    ):
        if values := [r[key] for r in found if isinstance(r.get(key), float)]:
            rows.append((title, f"{values[-1]:.3f}" + (f" (first {values[0]:.3f})" if len(values) > 1 else "")))
    return rows


def fall(losses: list[float], unit: str) -> str:
    if not losses:
        return "none measured"
    return f"{losses[-1]:.4f}" + (f" (first {losses[0]:.4f})" if len(losses) > 1 else "") + f" {unit}"


# --- show -----------------------------------------------------------------------------------------------------


def show_config(config: cfg.Config, num_devices: int | None) -> None:
    from jaxscale.training.layout import parameter_layout

    mesh_text, rows = parameter_layout(config, num_devices)  # first, as it may refuse
    console = Console(highlight=False)
    console.print(cfg.dump_config(config), markup=False)
    counts = parameter_counts(config.model)
    table = Table(title="Parameters, without vocabulary padding", title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("share", justify="right")
    for part, number in counts.items():
        if number:
            table.add_row(part, f"{number:,}", f"{number / sum(counts.values()):.1%}")
    table.add_row("all", f"{sum(counts.values()):,}", "100%", style="bold")
    if config.model.moe:
        active = active_parameters(config.model)
        table.add_row("active for a token", f"{active:,}", f"{active / sum(counts.values()):.1%}")
    console.print(table)
    table = Table(title=f"Every parameter on {mesh_text}", title_justify="left")
    for name, justify in (
        ("parameter", "left"),
        ("logical axes", "left"),
        ("PartitionSpec", "left"),
        ("global shape", "left"),
        ("global bytes", "right"),
        ("shape a device", "left"),
        ("bytes a device", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(
            row.name,
            ", ".join(row.axes),
            row.spec,
            shape_text(row.shape),
            f"{row.bytes:,}",
            shape_text(row.device_shape),
            f"{row.device_bytes:,}",
        )
    table.add_row(
        "all", "", "", "", f"{sum(r.bytes for r in rows):,}", "", f"{sum(r.device_bytes for r in rows):,}", style="bold"
    )
    if num_devices is None and -1 in config.mesh.model_dump().values() and len(rows):
        console.print(
            "An axis of the mesh is -1 (the devices that are left), taken as 1 here; --devices N says how many."
        )
    wide = console if console.width >= 180 else Console(highlight=False, width=180)  # a wrapped row cannot be read
    wide.print(table)


def show_fields(directory: str) -> None:
    """What each field of a published config.json became."""
    found = cfg.read_published(Path(directory))
    table = Table("config.json", "value", "here", title=f"{directory} is of the family {found.family}")
    for key, value, ours in found.fields:
        table.add_row(key, str(value), ours)
    Console().print(table)


def shape_text(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape)) or "scalar"
