"""The plots of a page as PNGs, as they open there."""

import math
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

from jaxscale.report.learned import OF_LOSSES
from jaxscale.report.page import Page
from jaxscale.report.plots import Axis, Plot, Series

COLORS = ("#0072b2", "#b84b00", "#00755a", "#a0457d", "#7a6000", "#3f4db8", "#8c2d19", "#555b66", "#8f6fb5", "#27718a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: dict[str, Any] = {"solid": "-", "dashed": (0, (5, 3)), "dotted": (0, (1, 2)), "none": ""}
HATCHES = ("", "//", "..", "xx")
MOST_MARKS = 12  # along a line that does not mark every point


def draw_pictures(page: Page, folder: Path) -> list[Path]:
    """One file a plot, named by it, and one a wall of panels. A plot without a figure to show has none."""
    paths = []
    for section in page.sections:
        plots = [plot for plot in section.plots if plot.y and any(map(len, plot.series))]
        if section.wall and plots:
            paths.append(draw_wall(section.title, plots, folder / f"{section.id}.png"))
        else:
            paths += [draw(plot, folder / f"{plot.id}.png", page) for plot in plots]
    return paths


def draw(plot: Plot, path: Path, page: Page) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = sum(map(len, plot.series)) if plot.kind == "bars" else len(plot.series)
    height = 4.4 if plot.kind == "lines" else min(40.0, 1.9 + 0.32 * count)
    figure = Figure(figsize=(8, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    {"lines": draw_lines, "bars": draw_bars, "stack": draw_stack}[plot.kind](axes, plot)
    figure.suptitle(plain(plot.title))
    axes.grid(alpha=0.25, axis="both" if plot.kind == "lines" else "x")
    axes.spines[["top", "right"]].set_visible(False)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    files = list(dict.fromkeys(page.sources[s.source].file for s in plot.series))
    where = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    axes.set_title(plain(f"from {where}"), fontsize=6, color="#666666", loc="right")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names in letters that its font lacks
        figure.savefig(path)
    return path


def draw_wall(name: str, plots: list[Plot], path: Path) -> Path:
    """Small panels side by side, of lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    columns = min(4, len(plots))
    rows = math.ceil(len(plots) / columns)
    figure = Figure(figsize=(3.1 * columns, 0.6 + 2.3 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, plot in zip(grid, plots, strict=False):
        draw_lines(axes, plot)
        axes.set_title(plain(plot.title), fontsize=9)
        if plot.x[0].log:  # powers of ten alone: there is little room
            axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.set_xlabel("")
        axes.tick_params(labelsize=7)
        axes.yaxis.label.set_size(7)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(plots) :]:
        axes.set_axis_off()
    figure.suptitle(f"{plain(name)} over {plots[0].x[0].label}")
    figure.savefig(path)
    return path


def draw_lines(axes: Any, plot: Plot) -> None:
    x, y, said = plot.x[0], plot.y[0], set[str]()
    for series in plot.series:
        points = shown(series, x, y)
        if not points:
            continue
        style = {"color": COLORS[series.color % 10], "linestyle": LINES[series.line], "linewidth": 1.5}
        every = 1 if series.marks else max(1, len(points) // MOST_MARKS)
        marked = series.marks or (len(plot.series) > 1 and series.line == "solid")
        marker = MARKERS[series.marker % 8] if marked else ""
        face = "white" if series.basis == "predicted" or series.hollow else style["color"]
        xs, ys = zip(*points, strict=True)
        style |= {"marker": marker, "markevery": every, "markersize": 4.5, "markerfacecolor": face}
        axes.plot(xs, ys, label=plain(series.name), **style)
        for tag, a, b in zip(series.tags, series.columns[x.key], series.columns[y.key], strict=False):
            if tag and tag not in said:
                axes.annotate(plain(tag), (a, b), (0, 5), textcoords="offset points", fontsize=6, rotation=45)
            said.add(tag)
    for axis, which, about in ((axes.xaxis, "x", x), (axes.yaxis, "y", y)):
        if about.log:
            getattr(axes, f"set_{which}scale")("log")
            log_ticks(axis, [v for s in plot.series for pair in shown(s, x, y) for v in pair[which == "y" :][:1]])
    if y.zero and not y.log:
        axes.set_ylim(0, None if y.top is None else max(y.top, axes.get_ylim()[1]))
    axes.set(xlabel=title(x), ylabel=title(y))
    units(axes.xaxis, x)
    units(axes.yaxis, y)


def log_ticks(axis: Any, values: list[float]) -> None:
    """The values themselves where they are few, else powers of ten, with 2 and 5 between them where those are few."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    there = sorted(set(values))
    spread = [b / a for a, b in pairwise(there)]
    if 1 < len(there) <= 10 and min(spread) >= 1.4:
        axis.set_major_locator(FixedLocator(there))
    elif there:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if there[-1] / there[0] < 300 else (1.0,)))
    axis.set_minor_locator(NullLocator())


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
        drawn = axes.barh(places, lengths, height * 0.9, label=plain(series.name), **style)
        for bar, basis in zip(drawn, series.bases or [series.basis] * len(lengths), strict=True):
            bar.set_alpha(0.5 if basis == "predicted" else 1.0)
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
    """Ticks with k, M, G; shares in percent; plain numbers have no powers of ten."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, PercentFormatter, StrMethodFormatter

    if about.unit == "share":
        axis.set_major_formatter(PercentFormatter(1.0))
    elif about.unit == "bytes":
        axis.set_major_formatter(FuncFormatter(lambda value, _: binary(value)))
    elif about.unit and about.unit not in OF_LOSSES:
        axis.set_major_formatter(EngFormatter(sep=" "))
    elif about.log:
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def binary(value: float) -> str:
    """Bytes as KiB, MiB, ..."""
    power = min(5, max(0, int(math.log2(value) // 10))) if value >= 1 else 0
    return f"{value / 1024**power:.4g} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[power]}"


def plain(text: str) -> str:
    """Text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
