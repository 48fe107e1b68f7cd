"""Records -> sections: steps, matmuls, collectives, attention, sweeps, and whatever else a record holds."""

from jaxscale.bench.record import Figure, Row
from jaxscale.report.plots import Axis, Cell, Plot, Section, Series, Table, finite
from jaxscale.report.roofline import by_pass, roofline_section
from jaxscale.report.rows import Item, bar_series, curves, failures, number, text
from jaxscale.report.sweep import sweep_section

BYTES = Axis("bytes", "bytes of the whole operand", "bytes", log=True)
COLLECTIVE = [
    Axis("busbw", "bus bandwidth, as nccl-tests count it", "bytes/s", zero=True),
    Axis("algbw", "bytes of the operand a second", "bytes/s", zero=True),
    Axis("seconds", "time", "s", log=True),
]
LENGTH = Axis("seq_len", "sequence length", log=True)
ATTENTION = [
    Axis("flops_per_second", "FLOP/s", "FLOP/s", zero=True),
    Axis("seconds", "time", "s", log=True),
    Axis("peak_memory_bytes", "most memory in use", "bytes", log=True),
    Axis("max_error", "greatest difference from float32 attention", log=True),
]
STEP_TIMES = {
    "step_seconds": "median",
    "step_seconds_p95": "95th percentile",
    "predicted_step_seconds": "predicted",
}
DONE = ("step", "sweep", "matmul", "memory", "collectives", "attention")


def benchmark_sections(items: list[Item]) -> list[Section]:
    """In a reader's order; a kind that is not here has no section."""
    kinds: dict[str, list[Item]] = {}
    for item in items:
        kinds.setdefault(item[2].kind, []).append(item)
    parts: list[tuple[Section, list[Item]]] = []
    if steps := kinds.get("step"):
        parts.append((step_section(steps), steps))
    if sweeps := kinds.get("sweep"):
        parts.append((sweep_section(sweeps), sweeps))
    matmuls = [*kinds.get("matmul", []), *(item for item in kinds.get("step", []) if by_pass(item))]
    memories = kinds.get("memory", [])
    if matmuls or memories:
        parts.append((roofline_section(matmuls, memories), kinds.get("matmul", []) + memories))
    if collectives := kinds.get("collectives"):
        parts.append((collectives_section(collectives), collectives))
    if attention := kinds.get("attention"):
        plot = curve_plot("attention", "Attention", attention, LENGTH, ATTENTION)
        parts.append((Section("attention", "Attention", plots=[plot]), attention))
    parts += [(plain_section(kind, mine), mine) for kind, mine in kinds.items() if kind not in DONE]
    for section, mine in parts:
        section.plots = [plot for plot in section.plots if plot.series or plot.failed]
        section.about += [f"{name}: {record.under_load}." for _, name, record in mine if record.under_load]
        section.about += [f"{name}: {note}." for _, name, record in mine for note in record.notes]
    return [section for section, _ in parts if section.plots or section.tables or section.about]


# --- the training step ----------------------------------------------------------------------------------------


def step_section(items: list[Item]) -> Section:
    section = Section("step", "The training step, benchmarked")
    time = Plot("step-time", "Step time", "bars", [Axis("seconds", "time", "s", zero=True)])
    share = Plot("utilization", "Utilization", "bars", [Axis("share", "share", "share", zero=True)])
    parts = Plot("step-parts", "Where the step's time goes", "stack", y=[])
    for order, item in enumerate(items):
        figures = {k: f for row in item[2].rows if not row.labels for k, f in row.figures.items()}
        timed = [(STEP_TIMES[k], figures[k]) for k in STEP_TIMES if k in figures]
        shares = [(readable(k), f) for k, f in figures.items() if f.unit == "share"]
        time.series += [bar_series(item, order, "seconds", timed)] if timed else []
        share.series += [bar_series(item, order, "share", shares)] if shares else []
        convention, peak = item[2].convention or "convention not on record", item[2].peak
        share.about.append(f"{item[1]}: {convention}; peak: {peak.source if peak else 'none'}.")
        parts.series += parts_series(item, order)
        for row in item[2].rows:
            if str(row.labels.get("part", "")).startswith("hidden") and (f := row.figures.get("seconds")):
                parts.about.append(f"{item[1]}: besides, {row.labels['part']} of {f.value:.4g} s, while others ran.")
    parts.y = stack_axes(parts.series)
    time.failed = failures(items)
    section.plots = [p for p in (time, share, parts) if p.series]
    section.about += time.failed if time not in section.plots else []
    return section


def parts_series(item: Item, order: int) -> list[Series]:
    """One bar: the rows that are parts of a step."""
    rows = [row for row in item[2].rows if "part" in row.labels and row.figures]
    rows = [row for row in rows if not str(row.labels["part"]).startswith("hidden")]  # beside others, not after them
    columns = {k: [value(row, k) for row in rows] for k in ("share", "seconds")}
    columns = {k: v for k, v in columns.items() if any(x is not None for x in v)}
    labels = [str(row.labels["part"]) for row in rows]
    bases = [next(iter(row.figures.values())).basis for row in rows]
    return [Series(item[1], item[0], columns, color=order, labels=labels, bases=bases)] if columns else []


def stack_axes(series: list[Series]) -> list[Axis]:
    axes = [Axis("share", "share of the step", "share"), Axis("seconds", "time", "s")]
    return [a for a in axes if any(a.key in s.columns for s in series)]


def value(row: Row, key: str) -> float | int | None:
    return finite(row.figures[key].value) if key in row.figures else None


def readable(key: str) -> str:
    """`mfu_causal` -> `MFU causal`."""
    parts = key.removesuffix("_seconds").replace("_seconds_", "_").split("_")
    return " ".join({"mfu": "MFU", "hfu": "HFU", "p95": "95th percentile"}.get(part, part) for part in parts)


# --- curves and bars ------------------------------------------------------------------------------------------


def collectives_section(items: list[Item]) -> Section:
    plot = curve_plot("collectives", "Collectives", items, BYTES, COLLECTIVE)
    section = Section("collectives", "Collectives", plots=[plot])
    fits = [(item, row) for item in items for row in item[2].rows if row.labels.get("fit")]
    if fits:
        keys = list(dict.fromkeys(k for _, row in fits for k in row.figures))
        section.tables.append(
            Table(
                "Fitted: time = phases x latency + bytes on the wire / bandwidth",
                ["record", "collective", "axis", *(readable(k) for k in keys)],
                [
                    [item[1], label(row, "collective"), label(row, "axis"), *(cell(row.figures.get(k)) for k in keys)]
                    for item, row in fits
                ],
                [item[0] for item, _ in fits],
            )
        )
    return section


def curve_plot(id: str, title: str, items: list[Item], x: Axis, axes: list[Axis]) -> Plot:
    """Series over one label; the labels that all share are said once."""
    there = [
        a for a in axes if any(a.key in r.figures and number(r, x.key) is not None for i in items for r in i[2].rows)
    ]
    series, said = curves(items, x.key, there)
    about = [f"All of them: {text(said)}."] if said else []
    return Plot(id, title, "lines", there, [x], series, about, failed=failures(items))


def plain_section(kind: str, items: list[Item]) -> Section:
    """Of a benchmark that the page knows nothing of: bars for each figure, by the labels."""
    section = Section(f"kind-{kind}", kind.capitalize())
    units = {(k, f.unit): None for _, _, record in items for row in record.rows for k, f in row.figures.items()}
    for order, (key, unit) in enumerate(units):
        name = key.replace("_", " ")
        plot = Plot(f"{kind}-{order + 1}", name.capitalize(), "bars", [Axis(key, name, unit, zero=True)])
        for i, item in enumerate(items):
            rows = [row for row in item[2].rows if key in row.figures and row.figures[key].unit == unit]
            named = [(text(row.labels) or item[1], row.figures[key]) for row in rows]
            plot.series += [bar_series(item, i, key, named)] if named else []
        section.plots.append(plot)
    section.about = failures(items)
    return section


# --- tables ---------------------------------------------------------------------------------------------------


def label(row: Row, key: str) -> str | int | float | None:
    label_value = row.labels.get(key)
    return str(label_value) if isinstance(label_value, bool) else label_value


def cell(figure: Figure | None) -> Cell | None:
    return Cell(finite(figure.value), figure.unit, figure.basis) if figure else None


def records_section(items: list[Item]) -> Section:
    """Every figure of every record, whatever it is."""
    section = Section("records", "All figures of the records")
    section.tables = [record_table(item) for item in items]
    return section


def record_table(item: Item) -> Table:
    source, name, record = item
    labels = list(dict.fromkeys(k for row in record.rows for k in row.labels))
    columns = [*labels, "figure", "value", "basis", "samples", "least", "greatest", "95th percentile"]
    rows: list[list[str | int | float | Cell | None]] = []
    for row in record.rows:
        start = [label(row, k) for k in labels]
        for key, f in row.figures.items():
            spread = [Cell(finite(v), f.unit, f.basis) for v in (f.low, f.high, f.p95)] if f.samples else [None] * 3
            rows.append([*start, key.replace("_", " "), cell(f), f.basis, len(f.samples) or None, *spread])
        if row.error is not None or not row.figures:
            rows.append([*start, f"failed: {row.error}" if row.error else "no figures", *[None] * 6])
    title = name if record.kind in name else f"{record.kind}: {name}"
    return Table(title, columns, rows, [source] * len(rows), closed=True)
