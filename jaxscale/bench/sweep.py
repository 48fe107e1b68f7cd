"""A grid of runs, each `bench step` in a fresh process, so that one that fails is a row and not the end. No jax.

A grid file says which run, what is varied (`vary`: every combination; or `runs`: one by one) and what ideal scaling
would mean. Rows are kept on disk as they come: the same command goes on where it was interrupted.
"""

import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from jaxscale import config as cfg
from jaxscale.bench.record import BenchRecord, Clock, Figure, Label, Row, read_record
from jaxscale.compiled.source import source_hash
from jaxscale.compiled.store import versions
from jaxscale.config.other_files import read_kind

KEPT = ("step_seconds", "tokens_per_second", "tokens_per_second_per_device", "mfu_causal", "mfu_palm",
        "hfu_causal", "hfu_palm", "compile_seconds", "peak_memory_bytes", "compiled_memory_bytes",
        "process_peak_memory_bytes", "predicted_step_seconds", "predicted_tokens_per_second",
        "predicted_memory_bytes")  # fmt: skip
Values = list[bool | int | float | str | None]


class Grid(cfg.Section):
    """A grid file.

    Attributes:
        config: a run file, or a shipped one's name; `set`: overrides for all of it.
        vary: key (`mesh.data`, `model.embed_dim`, ...) -> values; every combination is a run.
        runs: single runs, each a mapping of overrides; in place of `vary`. A key without a dot overrides nothing: it
            names the run. Where there are such keys, they (and the devices) are the labels of a row, else all are.
        ideal: `strong`: the same work on more devices, ideally in as much less time; `weak`: work that grows with the
            devices, ideally in the same time; `none`: no line.
        timeout_seconds: of one run.
    """

    name: str
    config: str
    set: list[str] = Field(default_factory=list)
    vary: dict[str, Values] = Field(default_factory=dict)
    runs: list[dict[str, bool | int | float | str | None]] = Field(default_factory=list)
    ideal: Literal["strong", "weak", "none"] = "none"
    timeout_seconds: cfg.Positive = 1800


def read_grid(name: str) -> Grid:
    """From a path, or the name of a shipped one. Raises ValueError, in one line."""
    path, grid = read_kind(name, "grid", Grid, "name, config, and vary or runs")
    if bool(grid.vary) == bool(grid.runs):
        raise ValueError(f"{path}: give either vary (every combination) or runs (one by one)")
    if "/" in grid.name:
        raise ValueError(f"{path}: name {grid.name!r} has a slash; it names a folder beside the record")
    for key, choices in grid.vary.items():
        if not choices:
            raise ValueError(f"{path}: vary.{key} has no value; give one or more, or leave it out")
    for key in (key for run in grid.runs for key in run if "." not in key and key in cfg.Config.model_fields):
        raise ValueError(
            f"{path}: runs: {key} has no dot and so names a run, and is a key of the config too; put it in set"
        )
    require_a_run(grid)
    return grid


def require_a_run(grid: Grid) -> None:
    """Raise ValueError where every run would fail, as the first one does."""
    problems: list[ValueError] = []
    for run in runs_of(grid):
        try:
            cfg.load_config(grid.config, overrides_of(grid, run, []))
            return
        except ValueError as error:
            problems.append(error)
    raise problems[0]


def runs_of(grid: Grid) -> list[dict[str, Label]]:
    if grid.runs:
        return [dict(r) for r in grid.runs]
    return [dict(zip(grid.vary, values, strict=True)) for values in itertools.product(*grid.vary.values())]


def overrides_of(grid: Grid, run: dict[str, Label], more: list[str]) -> list[str]:
    run_overrides = (f"{key}={yaml_value(value)}" for key, value in run.items() if grid.vary or "." in key)
    return [*grid.set, *run_overrides, *more]


def names_of(grid: Grid, run: dict[str, Label]) -> dict[str, Label]:
    """What a run is called: in `runs` its keys without a dot where it has any, else all that it overrides."""
    return (not grid.vary and {key: value for key, value in run.items() if "." not in key}) or run


def yaml_value(value: Label) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def sweep(
    grid: Grid, folder: Path, more: list[str], options: list[str], *, say: Callable[[str], None]
) -> Iterator[tuple[Row, BenchRecord | None]]:
    """Row and record of all runs: those kept under `folder` from before, the others each from a process of its own.

    Args:
        more: overrides over the grid's own; `options`: of `bench step`, the same for all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = runs_of(grid)
    for number, run in enumerate(runs, 1):
        overrides, names = overrides_of(grid, run, more), names_of(grid, run)
        line = f"{number}/{len(runs)} {' '.join(f'{k}={v}' for k, v in names.items())}"
        try:
            path = folder / f"{identity(grid, overrides, options)}.json"
        except ValueError as error:  # a config that cannot be
            say(f"{line}\n  failed: {error}")
            yield Row(labels=names, error=str(error)), None
            continue
        record = kept(path)
        if record:
            say(f"{line}: kept from before")
        else:
            say(line)
            error_text = run_one(grid, overrides, options, path)
            if error_text:
                say(f"  failed: {error_text}")
                yield Row(labels=names, error=error_text), None  # not kept: it is tried again when the sweep is
                continue
            record = read_record(path)
        yield row_of(names, record), record


def identity(grid: Grid, overrides: list[str], options: list[str]) -> str:
    """Of everything that a run's figures follow from: its whole config, the options, the versions, the code."""
    config = cfg.load_config(grid.config, overrides).model_dump(mode="json")
    text = json.dumps([config, options, versions(), source_hash()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def kept(path: Path) -> BenchRecord | None:
    """A run's record from before; None where there is none, or it is damaged and is to be measured again."""
    try:
        record = read_record(path)
    except (OSError, ValueError):
        return None
    return record if record.kind == "step" and record.rows and not record.rows[0].labels else None


def run_one(grid: Grid, overrides: list[str], options: list[str], path: Path) -> str | None:
    """`bench step` in a process of its own, its record in `path`; None, or why there is none, in one line."""
    command = [
        sys.executable,
        "-m",
        "jaxscale.cli",
        "bench",
        "step",
        grid.config,
        *overrides,
        "-o",
        str(path),
        *options,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=grid.timeout_seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"no end after timeout_seconds={grid.timeout_seconds}"
    if done.returncode == 0 and path.exists():
        return None
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}" + (" (out of memory?)" if done.returncode == -9 else "")
    return reason(done.stderr, done.returncode)


def reason(stderr: str, code: int) -> str:
    """Why a process failed, in one line: its error line, else one on memory, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    memory = [line for line in lines if "RESOURCE_EXHAUSTED" in line]
    return (errors or memory or lines or [f"exit code {code}"])[-1][:300]


def row_of(run: dict[str, Label], record: BenchRecord) -> Row:
    figures = {name: f for name, f in record.rows[0].figures.items() if name in KEPT}
    return Row(labels=run | {"devices": record.device.count}, figures=figures)


def with_ideal(grid: Grid, rows: list[Row], *, shared_cores: bool) -> list[Row]:
    """Rows with `ideal_tokens_per_second`: that of the same work on fewest devices, times as many devices.

    In strong and in weak scaling alike, tokens/s would ideally grow with the devices. Simulated devices share one
    machine's cores (`shared_cores`): there the ideal is that they are together as fast as one.
    """
    if grid.ideal == "none":
        return rows
    bases: dict[tuple, tuple[int, float]] = {}
    for row in sorted((r for r in rows if r.figures), key=devices_of):
        bases.setdefault(work_of(row), (devices_of(row), row.figures["tokens_per_second"].value))

    def add(row: Row) -> Row:
        if not row.figures:
            return row
        devices, rate = bases[work_of(row)]
        times = 1.0 if shared_cores else devices_of(row) / devices
        ideal = Figure(value=rate * times, unit="tokens/s", basis="predicted")
        return row.model_copy(update={"figures": row.figures | {"ideal_tokens_per_second": ideal}})

    return [add(r) for r in rows]


def devices_of(row: Row) -> int:
    return int(row.labels["devices"] or 1)


def work_of(row: Row) -> tuple:
    """The labels that make it other work: a model, a sequence length; not how it is cut, or how much there is of it."""
    cut = ("mesh.", "runtime.", "data.batch_size")
    return tuple((k, v) for k, v in row.labels.items() if "." in k and not k.startswith(cut))


def summary(grid: Grid, runs: list[tuple[Row, BenchRecord | None]], command: list[str]) -> BenchRecord:
    """One record of the sweep; where it ran is what its runs say. Raises ValueError where none came through.

    Every run of a CPU measures a peak of its own: the highest one is the denominator of all.
    """
    records = [record for _, record in runs if record is not None]
    if not records:
        raise ValueError(f"none of the {len(runs)} runs of {grid.name} came through; the first: {runs[0][0].error}")
    first = max(records, key=lambda r: r.peak.flops_per_second if r.peak else 0.0)
    keys = dict.fromkeys(key for row, _ in runs for key in row.labels)
    rows = [against(first, filled(row, record, keys), record) for row, record in runs]
    simulated = first.device.platform == "cpu"
    notes = [f"ideal: {grid.ideal} scaling" + (", simulated devices share one machine's cores" if simulated else "")]
    return first.model_copy(
        update={
            "device": first.device.model_copy(update={"count": max(r.device.count for r in records)}),
            "kind": "sweep",
            "name": grid.name,
            "command": command,
            "mesh": {},
            "config": None,
            "time": records[0].time,
            "rows": with_ideal(grid, rows, shared_cores=simulated),
            "notes": notes if grid.ideal != "none" else [],
            "clock": busiest(records),
        }
    )


def busiest(records: list[BenchRecord]) -> Clock:
    """The clock of the run beside which other processes did most: it speaks for the sweep."""
    return max((r.clock for r in records), key=lambda clock: max(clock.others or (0.0, 0.0)))


def filled(row: Row, record: BenchRecord | None, keys: Iterable[str]) -> Row:
    """With every label of the sweep: what another run varies stands in this one's config."""

    def value(key: str) -> Label:
        if key in row.labels or record is None:
            return row.labels.get(key)
        node: Any = record.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return node if not isinstance(node, dict | list) else None

    return row.model_copy(update={"labels": {key: value(key) for key in keys}})


def against(best: BenchRecord, row: Row, record: BenchRecord | None) -> Row:
    """A row's utilization against another record's peak: of a CPU, which measures its own each time, in one dtype."""
    if (
        record is None
        or not record.peak
        or not best.peak
        or record.device.platform != "cpu"
        or dtype_of(record) != dtype_of(best)
    ):
        return row
    scale = record.peak.flops_per_second / best.peak.flops_per_second

    def scaled(figure: Figure) -> Figure:
        samples = [s * scale for s in figure.samples]
        return figure.model_copy(update={"value": figure.value * scale, "samples": samples})

    figures = {name: scaled(f) if name.startswith(("mfu", "hfu")) else f for name, f in row.figures.items()}
    return row.model_copy(update={"figures": figures})


def dtype_of(record: BenchRecord) -> str | None:
    return (record.config or {}).get("step", {}).get("compute_dtype")
