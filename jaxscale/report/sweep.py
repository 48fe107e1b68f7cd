"""Sweeps -> scaling curves: measured, predicted beside it, and the ideal line."""

import re

from jaxscale.bench.record import Row
from jaxscale.config.mesh_text import mesh_text
from jaxscale.report.plots import Axis, Line, Number, Plot, Section, Series, figure_columns
from jaxscale.report.rows import Item, constant, decided, failures, number, points, text, without

Y = [
    Axis("tokens_per_second", "tokens a second", "tokens/s", zero=True),
    Axis("step_seconds", "seconds of a step", "s", zero=True),
    Axis("mfu_causal", "MFU, attention counted causally", "share", zero=True),
    Axis("mfu_palm", "MFU, attention counted in full (PaLM)", "share", zero=True),
    Axis("peak_memory_bytes", "most memory in use on a device", "bytes", zero=True),
]
EACH = "tokens_per_second_each"
PREFER = ("devices", "chips", "processes")


def sweep_section(items: list[Item]) -> Section:
    """A plot for each grid of each record: curves over what was varied in numbers, else bars."""
    section = Section("scaling", "Scaling")
    for item in items:
        grids = dict.fromkeys(str(row.labels.get("grid", "")) for row in item[2].rows)
        for grid in grids:
            section.plots.append(grid_plot(item, grid, f"scaling-{len(section.plots) + 1}", len(items) > 1))
    return section


def grid_plot(item: Item, grid: str, id: str, several: bool) -> Plot:
    rows = [with_mesh(row) for row in item[2].rows if str(row.labels.get("grid", "")) == grid]
    title = ": ".join(t for t in ("Scaling", item[1] if several else "", grid) if t)
    mine = (item[0], item[1], item[2].model_copy(update={"rows": rows}))
    axes = [a for a in Y if any(f"{what}{a.key}" in r.figures for r in rows for what in ("", "predicted_", "ideal_"))]
    plot = Plot(id, title, "lines", y=axes, failed=failures([mine]))
    if said := without(constant(rows), ["grid"]):
        plot.about.append(f"All of them: {text(said)}.")
    x = varied(rows)
    if x is None:
        plot.kind, plot.series = "bars", bars(mine, plot.y)
        return plot
    counts_devices = x in PREFER
    plot.x = [Axis(x, x.replace("_", " "), log=True)]
    if counts_devices and any(a.key == "tokens_per_second" for a in plot.y):
        plot.y.insert(1, Axis(EACH, f"tokens a second for each of the {x}", "tokens/s", zero=True))
    logs = {"tokens_per_second"} if counts_devices else set()
    plot.y = [Axis(a.key, a.label, a.unit, log=a.key in logs, zero=a.zero) for a in plot.y]
    for order, (name, members) in enumerate(by_name(rows, x).items()):
        plot.series += curves_of(mine, x, plot.y, members, name, order)
    return plot


def with_mesh(row: Row) -> Row:
    """Sizes of mesh axes, each a label of its own, as one: `data=2,tensor=4`."""
    sizes = {k: v for k, v in row.labels.items() if k.startswith("mesh.")}
    if not sizes:
        return row
    split = {k.removeprefix("mesh."): v for k, v in sizes.items() if v not in (1, None)}
    mesh = mesh_text(split, join=",") or "one device"
    return row.model_copy(update={"labels": without(row.labels, sizes) | {"mesh": mesh}})


def by_name(rows: list[Row], x: str) -> dict[str, list[Row]]:
    """What was measured, in the order of x, by what makes a curve of its own.

    A label that x decides (a global batch that grows with the devices) makes none, nor do the sizes within a mesh.
    """
    there = [row for row in rows if row.error is None and number(row, x) is not None]
    rows_by_name: dict[str, list[Row]] = {}
    for row in sorted(there, key=lambda row: number(row, x) or 0.0):
        labels = without(row.labels, [x, "grid", *constant(rows), *decided(there, x, "mesh")])
        if isinstance(mesh := labels.get("mesh"), str):
            labels = labels | {"mesh": re.sub(r"\s*[=:]\s*\d+", "", mesh)}
        rows_by_name.setdefault(text(labels), []).append(row)
    return rows_by_name


def varied(rows: list[Row]) -> str | None:
    """The label along the x axis: a number of machines, else the first that has several numbers."""
    names = list(dict.fromkeys(k for row in rows for k in row.labels if k != "grid"))
    names.sort(key=lambda k: PREFER.index(k) if k in PREFER else len(PREFER))
    return next((k for k in names if len({number(row, k) for row in rows} - {None}) > 1), None)


def curves_of(item: Item, x: str, axes: list[Axis], rows: list[Row], name: str, order: int) -> list[Series]:
    """Measured, predicted and ideal of one choice of the other labels."""
    place: list[Number] = [number(row, x) for row in rows]
    measured = points(rows, axes, item[0], name or "measured", order)
    measured.columns = {x: place} | measured.columns
    series = [measured]
    for what in ("predicted", "ideal"):
        columns: dict[str, list[Number]] = {x: place}
        for axis in axes:
            columns |= figure_columns(axis.key, [row.figures.get(f"{what}_{axis.key}") for row in rows])
        if what == "ideal" and "tokens_per_second" in columns and not any(columns["tokens_per_second"]) and x in PREFER:
            columns["tokens_per_second"] = linear(place, measured.columns["tokens_per_second"])
        if any(v is not None for k, column in columns.items() if k != x for v in column):
            full = f"{name}, {what}" if name else what
            line: Line = "dashed" if what == "predicted" else "dotted"
            series.append(Series(full, item[0], columns, "predicted", order, order, line, marks=what == "predicted"))
    for one in series:
        one.labels = [text(without(row.labels, [x, "grid"])) for row in rows]
        if any(a.key == EACH for a in axes):
            one.columns[EACH] = [y / n if n and y else None for n, y in zip(place, one.columns[Y[0].key], strict=True)]
    return [one for one in series if any(v is not None for k, c in one.columns.items() if k != x for v in c)]


def linear(place: list[Number], measured: list[Number]) -> list[Number]:
    """From the smallest point that was measured, in proportion to the machines."""
    start = next(((x, y) for x, y in zip(place, measured, strict=True) if x and y), None)
    return [x / start[0] * start[1] if start and x else None for x in place]


def bars(item: Item, axes: list[Axis]) -> list[Series]:
    """What was varied has no order: a bar for each row; the measured ones, and the predicted ones beside."""
    rows = [row for row in item[2].rows if row.error is None]
    said = [*constant(rows), "grid"]
    series: list[Series] = []
    for what in ("measured", "predicted"):
        columns: dict[str, list[Number]] = {}
        labels = [text(without(row.labels, said)) or item[1] for row in rows]
        for axis in axes:
            key = axis.key if what == "measured" else f"predicted_{axis.key}"
            columns |= figure_columns(axis.key, [row.figures.get(key) for row in rows])
        if any(v is not None for column in columns.values() for v in column):
            order = len(series)
            series.append(Series(what, item[0], columns, what, order, order, marks=True, labels=labels))
    return series
