"""Runs -> loss, throughput, MFU, memory and goodput, over steps, tokens or time."""

from jaxscale.report.differences import differences
from jaxscale.report.goodput import OF_SAMPLES, PARTS, Goodput, goodput
from jaxscale.report.inputs import Run, mapping, part, peak_of
from jaxscale.report.learned import LABELS, learned_cells, learned_columns, unit_of
from jaxscale.report.plots import Axis, Cell, Number, Plot, Row, Section, Series, Table, finite
from jaxscale.report.steps import X, figure, over_steps, series_of
from jaxscale.report.typical import middle, step_seconds, throughput

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
    section = Section("runs", "Runs", tables=[summary(runs, names, spent), *differences(runs, names)])
    if len(runs) > 1 and len(section.tables) == 1:
        section.about.append("The configs of these runs are the same.")
    plots = [
        *loss_plots(runs, names),
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
    for name, run, breakdown in zip(names, runs, spent, strict=True):
        if breakdown is None:
            section.about.append(f"{name} has no events.jsonl, so where its wall time went is not known.")
        if lost := sum(r["kind"] == "nonfinite" for r in run.metrics):
            section.about.append(f"{name}: the loss or the gradient was not finite in {lost} steps.")
    return section


# --- over steps -----------------------------------------------------------------------------------------------


def loss_plots(runs: list[Run], names: list[str]) -> list[Plot]:
    """A plot for each unit of the loss: numbers of different units have no axis in common."""
    units = list(dict.fromkeys(unit_of(run) for run in runs))
    plots = []
    for unit in units:
        title = "Loss" if len(units) == 1 else f"Loss, {unit}"
        id_ = "loss" if unit == units[0] else f"loss-{unit.replace(' ', '-')}"
        plot = Plot(id_, title, "lines", x=X, y=[Axis("loss", "loss", unit)], smooth=True)
        for i, run in enumerate(runs):
            if unit_of(run) == unit:
                said = "" if len(runs) == 1 else f"{names[i]}, "
                plot.series += series_of(run, "train", "loss", "loss", f"{said}training", i, color=i)
                validation = f"{said}validation"
                plot.series += series_of(
                    run, "validation", "loss", "loss", validation, i, color=i, line="dashed", marks=True
                )
        plots.append(plot)
    return plots


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
    names = (
        {"grad_norm": "gradient norm, before clipping", "z": "log of the softmax's sum, squared (z)"} | ROUTERS | LABELS
    )
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
    sampled = any(breakdown and breakdown.samples for breakdown in spent)
    parts = [p for p in PARTS if sampled or p not in OF_SAMPLES]
    for i, breakdown in enumerate(spent):
        if breakdown is None or not breakdown.wall_seconds:
            continue
        seconds: list[Number] = [breakdown.seconds[p] for p in parts]
        shares: list[Number] = [breakdown.seconds[p] / breakdown.wall_seconds for p in parts]
        columns = {"share": shares, "seconds": seconds}
        plot.series.append(Series(names[i], i, columns, color=i, labels=parts))
        attempts = f"{breakdown.attempts} attempt{'s' * (breakdown.attempts != 1)}"
        on = "steps that counted and their samples" if breakdown.samples else "steps that counted"
        plot.about.append(
            f"{names[i]}: {breakdown.share:.1%} of {breakdown.wall_seconds:,.1f} s on {on}; "
            f"{breakdown.steps_counted} of them, {breakdown.steps_lost} lost and done again, {attempts}."
        )
    if plot.series:
        plot.about.append("Waiting for data is as the host saw it; the devices may have worked meanwhile.")
    return plot


def summary(runs: list[Run], names: list[str], spent: list[Goodput | None]) -> Table:
    columns = ["run", "last step", "training loss", "validation loss", "tokens/s", "step time", "MFU", "peak memory"]
    learned = learned_columns(runs)
    columns += ["on steps that counted", "attempts", "steps lost", *learned, "device"]
    rows = [summary_row(*about, learned) for about in zip(runs, names, spent, strict=True)]
    return Table("The runs in figures", columns, rows, list(range(len(runs))))


def summary_row(run: Run, name: str, breakdown: Goodput | None, learned: list[str]) -> Row:
    devices = mapping(run.environment, "devices")
    return [
        name,
        max((r["step"] for r in run.metrics), default=None),
        Cell(last(run, "train", "loss"), unit_of(run)),
        Cell(last(run, "validation", "loss"), unit_of(run)),
        Cell(throughput(run), "tokens/s"),
        Cell(step_seconds(run), "s"),
        Cell(middle(run, "mfu"), "share"),
        Cell(last(run, "train", "peak_memory_bytes"), "bytes"),
        Cell(breakdown.share if breakdown else None, "share"),
        breakdown.attempts if breakdown else None,
        breakdown.steps_lost if breakdown else None,
        *learned_cells(run, learned),
        f"{devices['count']} x {devices['kind']}" if {"count", "kind"} <= devices.keys() else None,
    ]


def last(run: Run, kind: str, key: str) -> Number:
    """The newest figure of that key."""
    records = (r for r in reversed(run.metrics) if r["kind"] == kind)
    return next((v for r in records if (v := finite(r.get(key))) is not None), None)
