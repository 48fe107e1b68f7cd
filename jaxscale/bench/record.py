"""What a benchmark leaves behind: a `BenchRecord`, one JSON file with every sample and where it is from. No jax.

A record has rows; a row has labels (what was varied) and figures (what came out), each with its unit, its samples and
whether it is measured, compiled or predicted. What reads records (`compare`, `report`) knows no more than this.
"""

import contextlib
import datetime
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from jaxscale.files.reading import parse_json
from jaxscale.files.whole import require_directory, require_file, write_whole

SCHEMA_VERSION = 1
INTERRUPTED, FAILED = "interrupted", "failed"  # how the note of a record begins that was ended before its time
BUSY = 0.3  # cores that other processes use: from here on times are marked as made under load
Basis = Literal["measured", "compiled", "predicted"]
Label = str | int | float | bool | None


class Part(BaseModel):
    """A part of a record: unknown keys are errors, as they would be lost."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(Part):
    """A number with its unit; `value` is the median of `samples` where there are any.

    Attributes:
        unit: e.g. `s`, `FLOP/s`, `bytes/s`, `bytes`, `tokens/s`, `share` (of 1), `FLOPs`, `count`.
    """

    value: float
    unit: str
    basis: Basis = "measured"
    samples: list[float] = []

    @property
    def low(self) -> float:
        return min(self.samples, default=self.value)

    @property
    def high(self) -> float:
        return max(self.samples, default=self.value)

    @property
    def p95(self) -> float:
        return quantile(self.samples, 0.95) if self.samples else self.value


class Row(Part):
    """What came out for one choice of the labels; `error`: in one line, why there are no figures."""

    labels: dict[str, Label] = {}
    figures: dict[str, Figure] = {}
    error: str | None = None


class Device(Part):
    """What it ran on. `memory_bytes`: of one device, where it tells."""

    platform: str
    kind: str
    count: int
    processes: int = 1
    memory_bytes: int | None = None


class Peak(Part):
    """The denominator of utilization: FLOP/s of all devices together, dense, and where the figure is from."""

    flops_per_second: float
    source: str


class Clock(Part):
    """How time was taken.

    Attributes:
        source: e.g. `host, blocking on the result`, or the device's own clock.
        load: the machine's load average before and after, one minute.
        others: cores that other processes kept busy, before and after; `busy_with`: the names of the busiest.
        burn_in: runs before the first sample.
    """

    source: str
    load: tuple[float, float] | None = None
    others: tuple[float, float] | None = None
    busy_with: list[str] = []
    burn_in: int = 0
    notes: list[str] = []


class BenchRecord(Part):
    """One benchmark's outcome, whole.

    Attributes:
        kind: which benchmark: `matmul`, `memory`, `collectives`, `attention`, `step`, `loader`, `checkpoint`,
            `startup`, `sweep`.
        time: when it began, ISO 8601 in UTC.
        peak: None where the device has no published one and none was measured.
        config: the resolved run, where there is one.
        convention: how model FLOPs are counted, in words, where they are.
    """

    schema_version: int = SCHEMA_VERSION
    kind: str
    name: str
    time: str
    command: list[str] = []
    device: Device
    peak: Peak | None = None
    topology: str | None = None
    mesh: dict[str, int] = {}
    config: dict[str, Any] | None = None
    commit: str | None = None
    versions: dict[str, str] = {}
    compiler_options: dict[str, str | bool | int] = {}
    convention: str | None = None
    clock: Clock
    rows: list[Row]
    notes: list[str] = []

    @property
    def under_load(self) -> str | None:
        """That other processes were busy while it was made, in words; None where they were not, or nobody looked."""
        others = self.clock.others
        if others is None or max(others) < BUSY:
            return None
        names = f" ({', '.join(self.clock.busy_with)})" if self.clock.busy_with else ""
        return (
            f"made under load: other processes kept {others[0]:.1f} cores busy before and {others[1]:.1f} after{names}"
        )


def measured(samples: list[float], unit: str) -> Figure:
    """The median of samples, which are kept."""
    return Figure(value=statistics.median(samples), unit=unit, samples=samples)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()


def quantile(values: list[float], share: float) -> float:
    """Linear between the two nearest of the sorted values (numpy's default), without numpy."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def told_if_not_finite(row: Row) -> Row:
    """A row without figures that are NaN or infinite: JSON cannot hold them, so the row's error names them."""
    bad = [name for name, f in row.figures.items() if not all(math.isfinite(x) for x in (f.value, *f.samples))]
    if not bad:
        return row
    error = ", ".join(f"{name} is {row.figures[name].value}" for name in bad)
    left = {name: f for name, f in row.figures.items() if name not in bad}
    return row.model_copy(update={"figures": left, "error": f"{row.error}; {error}" if row.error else error})


def is_share_of_peak(name: str, figure: Figure) -> bool:
    """Of the device's peak, or of the best that was measured on it: it cannot be above 1."""
    return figure.unit == "share" and name.startswith(("mfu", "hfu", "share_of_"))


def without_impossible(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """The rows without shares of a peak above 1, and a line for each name that was left out."""
    left, largest = [], dict[str, list[float]]()
    for row in rows:
        bad = {k: f.value for k, f in row.figures.items() if is_share_of_peak(k, f) and f.value > 1}
        for name, value in bad.items():
            largest.setdefault(name, []).append(value)
        kept = {k: f for k, f in row.figures.items() if k not in bad}
        left.append(row.model_copy(update={"figures": kept}) if bad else row)
    return left, [impossible(name, values, len(rows)) for name, values in largest.items()]


def impossible(name: str, values: list[float], rows: int) -> str:
    said = f"{name} withheld in {len(values)} of {rows} rows: {max(values):.3g} times the peak cannot be; "
    if name.startswith("share_of_") and name != "share_of_peak":  # of matmuls that were timed one by one
        return said + "the matmuls that it is a share of are too small to be timed alone, or the machine was busy"
    return said + "the peak or the time is wrong, as on a busy machine"


def require_writable(path: Path) -> Path:
    """A directory that can be made, or a `.json` file in one; ValueError before anything is measured."""
    if path.is_file():
        require_file(path)
    else:
        require_directory(folder_of(path), said=str(path), fix="choose another place")
    return path


def folder_of(path: Path) -> Path:
    """Where records go: `path` itself, or the directory of a `.json` file."""
    return path.parent if path.suffix == ".json" else path


def write_record(record: BenchRecord, path: Path) -> Path:
    """Write whole or not at all; into a directory under a name of date, kind and name, never over another record.

    Raises ValueError where it cannot be written: it is then in the temporary directory.
    """
    with contextlib.suppress(OSError):  # writing says why
        folder_of(path).mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        stem, number = f"{record.time[:10]}-{record.kind}-{record.name}".replace("/", "-").replace(" ", "-"), 1
        folder, path = path, path / f"{stem}.json"
        while path.exists():
            number += 1
            path = folder / f"{stem}-{number}.json"
    text = json.dumps(record.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"
    try:
        write_whole(path, text)
    except OSError as error:
        spare = Path(tempfile.gettempdir()) / path.name
        spare.write_text(text)
        raise ValueError(f"cannot write {path}: {error.strerror}; the record is in {spare}") from error
    return path


def read_record(path: Path) -> BenchRecord:
    """A record from its file. Raises ValueError, in one line, for what is no record of this schema."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a record: {error}") from error
    if not isinstance(values, dict) or "schema_version" not in values:
        raise ValueError(f"{path} is not a record that `jaxscale bench` wrote: it has no schema_version")
    if values["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema {values['schema_version']} and this jaxscale reads {SCHEMA_VERSION}; measure it "
            "again, or use the version that wrote it"
        )
    try:
        record = BenchRecord.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    rows, notes = without_impossible(record.rows)
    return record.model_copy(update={"rows": rows, "notes": [*record.notes, *notes]}) if notes else record
