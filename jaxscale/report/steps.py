"""What runs have written, step by step, as columns: over steps, tokens or time."""

from typing import Any

from jaxscale.report.inputs import Run, part
from jaxscale.report.plots import Axis, Line, Number, Plot, Series, finite, thinned

STEP, TOKENS = Axis("step", "step"), Axis("tokens", "tokens seen")
SECONDS = Axis("seconds", "wall time with restarts", "s")
X = [STEP, TOKENS, SECONDS]


def series_of(
    run: Run,
    kind: str,
    axis: str,
    key: str,
    name: str,
    source: int,
    *,
    color: int,
    line: Line = "solid",
    marks: bool = False,
) -> list[Series]:
    """One of the run's figures as a series of the column `axis`; none where its records of that kind do not hold it."""
    columns = along(run, kind, [key])
    columns[axis] = columns.pop(key) if axis != key else columns[key]
    if all(v is None for v in columns[axis]):
        return []
    return [thinned(Series(name, source, columns, color=color, marker=color, line=line, marks=marks), [axis])]


def over_steps(
    id: str,
    title: str,
    axes: list[Axis],
    runs: list[Run],
    names: list[str],
    about: list[str] | None = None,
    *,
    kind: str = "train",
) -> Plot:
    """A series a run, of the axes that any of them has; `kind` of its records."""
    columns = [along(run, kind, [a.key for a in axes]) for run in runs]
    there = [a for a in axes if any(v is not None for c in columns for v in c[a.key])]
    plot = Plot(id, title, "lines", x=X, y=there, smooth=True, about=[text for text in about or [] if text])
    for i, run_columns in enumerate(columns):
        if any(v is not None for a in there for v in run_columns[a.key]):
            kept = {k: run_columns[k] for k in [a.key for a in [*X, *there]]}
            plot.series.append(thinned(Series(names[i], i, kept, color=i, marker=i), [a.key for a in there]))
    return plot


def along(run: Run, kind: str, keys: list[str]) -> dict[str, list[Number]]:
    """The columns of X and of `keys` for the run's records of that kind."""
    records = [r for r in run.metrics if r["kind"] == kind]
    tokens = tokens_per_step(run)
    start = began(run)
    columns: dict[str, list[Number]] = {
        "step": [finite(r["step"]) for r in records],
        "tokens": [None if tokens is None else finite(r["step"] * tokens) for r in records],
        "seconds": [None if (t := finite(r.get("time"))) is None else round(t - start, 3) for r in records],
    }
    return columns | {key: [figure(r, key) for r in records] for key in keys}


def figure(record: dict[str, Any], key: str) -> Number:
    """A record's figure; a share of the peak above 1 cannot be, and is none."""
    value = finite(record.get(key))
    return None if key == "mfu" and value is not None and value > 1 else value


def tokens_per_step(run: Run) -> Number:
    rows, length = part(run.config, "data", "batch_size"), part(run.config, "data", "seq_len")
    return finite(rows * length) if isinstance(rows, int) and isinstance(length, int) else None


def began(run: Run) -> float:
    """Unix seconds of the first thing that is known of it."""
    return min((t for r in [*run.events[:1], *run.metrics] if (t := finite(r.get("time"))) is not None), default=0.0)
