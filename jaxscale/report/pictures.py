"""The plots of a page as PNGs, as they open there."""

from itertools import pairwise
from pathlib import Path
from typing import Any

from jaxscale.report.page import Page
from jaxscale.report.plots import Axis, Plot, Series

COLORS = ("#0072b2", "#c04f00", "#00755a", "#a0457d", "#7a6000", "#3f4db8", "#8c2d19", "#555b66", "#8f6fb5", "#2f7d95")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: dict[str, Any] = {"solid": "-", "dashed": (0, (5, 3)), "dotted": (0, (1, 2)), "none": ""}
HATCHES = ("", "//", "..", "xx")
MOST_MARKS = 12  # along a line that does not mark every point


def draw_pictures(page: Page, folder: Path) -> list[Path]:
    """One file a plot, named by it. A plot without a figure to show has none."""
    return [draw(plot, folder / f"{plot.id}.png", page) for plot in page.plots if plot.y and any(map(len, plot.series))]


def draw(plot: Plot, path: Path, page: Page) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = sum(map(len, plot.series)) if plot.kind == "bars" else len(plot.series)
    height = 4.4 if plot.kind == "lines" else min(40.0, 1.9 + 0.32 * count)
    figure = Figure(figsize=(8, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    {"lines": draw_lines, "bars": draw_bars, "stack": draw_stack}[plot.kind](axes, plot)
    axes.set_title(plain(plot.title))
    axes.grid(alpha=0.25, axis="both" if plot.kind == "lines" else "x")
    axes.spines[["top", "right"]].set_visible(False)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    files = list(dict.fromkeys(page.sources[s.source].file for s in plot.series))
    where = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    figure.supxlabel(plain(f"from {where}"), fontsize=6, color="#666666", x=0.99, ha="right")
    figure.savefig(path)
    return path


def draw_lines(axes: Any, plot: Plot) -> None:
    x, y = plot.x[0], plot.y[0]
    for series in plot.series:
        points = shown(series, x, y)
        if not points:
            continue
        style = {"color": COLORS[series.color % 10], "linestyle": LINES[series.line], "linewidth": 1.5}
        every = 1 if series.marks else max(1, len(points) // MOST_MARKS)
        marked = series.marks or (len(plot.series) > 1 and series.basis != "limit")
        marker = MARKERS[series.marker % 8] if marked else ""
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, label=plain(series.name), marker=marker, markevery=every, markersize=4.5, **style)
    for set_scale, axis in ((axes.set_xscale, x), (axes.set_yscale, y)):
        if axis.log:
            set_scale("log")
    if y.zero and not y.log:
        axes.set_ylim(bottom=0)
    axes.set(xlabel=title(x), ylabel=title(y))
    units(axes.xaxis, x)
    units(axes.yaxis, y)


def shown(series: Series, x: Axis, y: Axis) -> list[tuple[float, float]]:
    """Points that have a place: what is not positive has none on a logarithmic axis."""
    both = zip(series.columns.get(x.key, []), series.columns.get(y.key, []), strict=False)
    there = [(a, b) for a, b in both if a is not None and b is not None]
    return [(a, b) for a, b in there if (a > 0 or not x.log) and (b > 0 or not y.log)]


def draw_bars(axes: Any, plot: Plot) -> None:
    y, names = plot.y[0], list(dict.fromkeys(label for s in plot.series for label in s.labels))
    height = 0.8 / len(plot.series)
    for order, series in enumerate(plot.series):
        places = [names.index(label) - 0.4 + height * (order + 0.5) for label in series.labels]
        lengths = [v or 0.0 for v in series.columns[y.key]]
        style = {"color": COLORS[series.color % 10], "hatch": HATCHES[order % 4], "edgecolor": "white"}
        axes.barh(places, lengths, height * 0.9, label=plain(series.name), **style)
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlabel(title(y))
    units(axes.xaxis, y)


def draw_stack(axes: Any, plot: Plot) -> None:
    y, parts = plot.y[0], list(dict.fromkeys(label for s in plot.series for label in s.labels))
    for row, series in enumerate(plot.series):
        ends = [0.0]
        for value in series.columns.get(y.key, []):
            ends.append(ends[-1] + (value or 0.0))
        for label, (begin, end) in zip(series.labels, pairwise(ends), strict=False):
            order = parts.index(label)
            style = {"color": COLORS[order % 10], "hatch": HATCHES[order % 4], "edgecolor": "white"}
            axes.barh(row, end - begin, 0.6, left=begin, label=plain(label) if not row else None, **style)
    axes.set_yticks(range(len(plot.series)), [plain(s.name) for s in plot.series])
    axes.set_ylim(len(plot.series) - 0.4, -0.6)
    axes.set_xlabel(title(y))
    units(axes.xaxis, y)


def title(axis: Axis) -> str:
    return f"{axis.label} ({axis.unit})" if axis.unit and axis.unit not in (axis.label, "share") else axis.label


def units(axis: Any, about: Axis) -> None:
    """Ticks with k, M, G; shares in percent. A short logarithmic axis has figures at its minor ticks, too."""
    from matplotlib.ticker import EngFormatter, PercentFormatter

    if about.unit == "share":
        axis.set_major_formatter(PercentFormatter(1.0))
    elif about.unit and about.unit != "nats a token":
        axis.set_major_formatter(EngFormatter(sep=" "))


def plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
