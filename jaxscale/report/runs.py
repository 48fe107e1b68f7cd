"""Runs -> loss, throughput, MFU, memory and goodput, over steps, tokens or time."""

import statistics
from typing import Any

from jaxscale.report.goodput import PARTS, Goodput, goodput
from jaxscale.report.inputs import Run, mapping, part, peak_of
from jaxscale.report.plots import Axis, Cell, Number, Plot, Section, Series, Table, finite, thinned

STEP, TOKENS = Axis("step", "step"), Axis("tokens", "tokens seen")
SECONDS = Axis("seconds", "wall time with restarts", "s")
X = [STEP, TOKENS, SECONDS]
LOSS = Axis("loss", "loss", "nats a token")
SPEED = [
    Axis("tokens_per_second", "tokens a second, median of 50 steps", "tokens/s", zero=True),
    Axis("step_seconds", "seconds of the step", "s", zero=True),
    Axis("step_seconds_p95", "seconds of a step, 95th percentile of 50", "s", zero=True),
    Axis("data_wait_seconds", "seconds the host waited for data", "s", zero=True),
]
MFU = [Axis("mfu", "model FLOPs utilization", "share", zero=True)]
MEMORY = [
    Axis("peak_memory_bytes", "most memory in use on the fullest device", "bytes", zero=True),
    Axis("memory_bytes", "memory in use on the fullest device", "bytes", zero=True),
]
NAMED = {"kind", "step", "time", "loss", "tokens", "step_seconds_median", "mfu_withheld"}
NAMED |= {a.key for a in [*SPEED, *MFU, *MEMORY]}


def runs_section(runs: list[Run], names: list[str]) -> Section:
    """`names` as the sources have them; source i is run i."""
    spent = [goodput(run.events) for run in runs]
    section = Section("runs", "Runs", tables=[summary(runs, names, spent)])
    plots = [
        loss_plot(runs, names),
        over_steps("throughput", "Throughput", SPEED, runs, names),
        over_steps("mfu", "MFU", MFU, runs, names, about=[about_mfu(r, n) for r, n in zip(runs, names, strict=True)]),
        over_steps("memory", "Memory", MEMORY, runs, names),
        over_steps("optimization", "Other figures of a step", other_axes(runs), runs, names),
        goodput_plot(names, spent),
    ]
    section.plots = [p for p in plots if p.series]
    withheld = [p.title for p in plots if p.about and not p.series]
    section.about += [text for p in plots if p.title in withheld for text in p.about]
    missing = [p.title for p in plots if not p.series and p.id != "optimization"]
    if "Memory" in missing:
        section.about.append("Memory: the devices of these runs do not tell it (CPUs do not).")
    section.about += [
        f"{title}: the runs hold no such figures." for title in missing if title not in ("Memory", "Goodput", *withheld)
    ]
    for name, run, found in zip(names, runs, spent, strict=True):
        if found is None:
            section.about.append(f"{name} has no events.jsonl, so where its wall time went is not known.")
        if lost := sum(r["kind"] == "nonfinite" for r in run.metrics):
            section.about.append(f"{name}: the loss or the gradient was not finite in {lost} steps.")
    return section


# --- over steps -----------------------------------------------------------------------------------------------


def loss_plot(runs: list[Run], names: list[str]) -> Plot:
    plot = Plot("loss", "Loss", "lines", x=X, y=[LOSS], smooth=True)
    for i, run in enumerate(runs):
        training = along(run, "train", ["loss"])
        if any(v is not None for v in training["loss"]):
            name = "training" if len(runs) == 1 else f"{names[i]}, training"
            plot.series.append(thinned(Series(name, i, training, color=i, marker=i), ["loss"]))
        validation = along(run, "validation", ["loss"])
        if any(v is not None for v in validation["loss"]):
            name = "validation" if len(runs) == 1 else f"{names[i]}, validation"
            series = Series(name, i, validation, color=i, marker=i, line="dashed", marks=True)
            plot.series.append(thinned(series, ["loss"]))
    return plot


def over_steps(
    id: str, title: str, axes: list[Axis], runs: list[Run], names: list[str], about: list[str] | None = None
) -> Plot:
    """A series a run, of the axes that any of them has."""
    columns = [along(run, "train", [a.key for a in axes]) for run in runs]
    there = [a for a in axes if any(v is not None for c in columns for v in c[a.key])]
    plot = Plot(id, title, "lines", x=X, y=there, smooth=True, about=[text for text in about or [] if text])
    for i, found in enumerate(columns):
        if any(v is not None for a in there for v in found[a.key]):
            kept = {k: found[k] for k in [a.key for a in [*X, *there]]}
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


ROUTERS = {
    "balance": "balance of the experts (1: even loads)",
    "expert_load": "largest load of an expert / mean, worst layer",
    "device_load": "largest load of a device's experts / mean, worst layer",
    "empty_experts": "experts that no token chose, all layers",
    "router_entropy": "entropy of the routers (nats)",
    "router_z": "log of the routers' softmax sum, squared",
}


def other_axes(runs: list[Run]) -> list[Axis]:
    """What else the records hold, in the order of its first being seen."""
    keys = {k: None for run in runs for r in run.metrics if r["kind"] == "train" for k in r if k not in NAMED}
    first = [k for k in ("grad_norm", "learning_rate") if k in keys]
    names = {"grad_norm": "gradient norm, before clipping", "z": "log of the softmax's sum, squared (z)"} | ROUTERS
    return [Axis(k, names.get(k, k.replace("_", " "))) for k in [*first, *(k for k in keys if k not in first)]]


def about_mfu(run: Run, name: str) -> str:
    """The convention and the peak, without which the figure says nothing."""
    withheld = sum("mfu_withheld" in r or ("mfu" in r and figure(r, "mfu") is None) for r in run.metrics)
    if not withheld and not any("mfu" in r for r in run.metrics):
        return ""
    convention = part(run.config, "metrics", "mfu") or "unknown"
    source = part(peak_of(run), "source") or "not on record"
    impossible = f" Withheld in {withheld} records: above 1, so the peak was measured too low." if withheld else ""
    return f"{name}: convention {convention}; peak: {source}.{impossible}"


# --- goodput and the summary ----------------------------------------------------------------------------------


def goodput_plot(names: list[str], spent: list[Goodput | None]) -> Plot:
    axes = [Axis("share", "share of wall time", "share"), Axis("seconds", "wall time", "s")]
    plot = Plot("goodput", "Goodput: where the wall time went", "stack", y=axes)
    for i, found in enumerate(spent):
        if found is None or not found.wall_seconds:
            continue
        seconds: list[Number] = [found.seconds[p] for p in PARTS]
        shares: list[Number] = [found.seconds[p] / found.wall_seconds for p in PARTS]
        columns = {"share": shares, "seconds": seconds}
        plot.series.append(Series(names[i], i, columns, color=i, labels=list(PARTS)))
        attempts = f"{found.attempts} attempt{'s' * (found.attempts != 1)}"
        plot.about.append(
            f"{names[i]}: {found.share:.1%} of {found.wall_seconds:,.1f} s on steps that counted; "
            f"{found.steps_counted} of them, {found.steps_lost} lost and done again, {attempts}."
        )
    if plot.series:
        plot.about.append("Waiting for data is as the host saw it; the devices may have worked meanwhile.")
    return plot


def summary(runs: list[Run], names: list[str], spent: list[Goodput | None]) -> Table:
    columns = ["run", "last step", "training loss", "validation loss", "tokens/s", "step time", "MFU", "peak memory"]
    columns += ["on steps that counted", "attempts", "steps lost", "device"]
    rows = [summary_row(*about) for about in zip(runs, names, spent, strict=True)]
    return Table("The runs in figures", columns, rows, list(range(len(runs))))


def summary_row(run: Run, name: str, found: Goodput | None) -> list[str | int | float | Cell | None]:
    def last(kind: str, key: str) -> Number:
        return next(
            (v for r in reversed(run.metrics) if r["kind"] == kind and (v := finite(r.get(key))) is not None), None
        )

    def middle(key: str) -> Number:
        values = [v for r in run.metrics if r["kind"] == "train" and (v := figure(r, key)) is not None]
        return statistics.median(values) if values else None

    seconds, tokens = middle("step_seconds"), tokens_per_step(run)
    devices = mapping(run.environment, "devices")
    return [
        name,
        max((r["step"] for r in run.metrics), default=None),
        Cell(last("train", "loss"), "nats a token"),
        Cell(last("validation", "loss"), "nats a token"),
        Cell(tokens / seconds if tokens and seconds else middle("tokens_per_second"), "tokens/s"),
        Cell(seconds, "s"),
        Cell(middle("mfu"), "share"),
        Cell(last("train", "peak_memory_bytes"), "bytes"),
        Cell(found.share if found else None, "share"),
        found.attempts if found else None,
        found.steps_lost if found else None,
        f"{devices['count']} x {devices['kind']}" if {"count", "kind"} <= devices.keys() else None,
    ]
