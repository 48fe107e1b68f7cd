"""What a plot is, for the page and for the PNG alike: axes to choose from, series of points, and where each is from.

This module knows nothing of runs or benchmarks, nor of how a plot is drawn.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from jaxscale.bench.record import Figure

Number = float | int | None
MOST_POINTS = 1200  # of a series on the page
BASIS_LINE: dict[str, "Line"] = {"measured": "solid", "compiled": "dashed", "predicted": "dashed"}
Line = Literal["solid", "dashed", "dotted", "none"]


@dataclass(frozen=True)
class Axis:
    """One of the quantities that a plot can have along an axis.

    Attributes:
        key: of the columns of each series.
        unit: as in `bench.record.Figure`; with an empty one numbers are shown plain.
        log: how the axis opens; a person may switch it.
        zero: a linear axis begins at 0, and ends at `top` at least.
    """

    key: str
    label: str
    unit: str = ""
    log: bool = False
    zero: bool = False
    top: float | None = None


@dataclass
class Series:
    """Points that belong together, column by column; all columns are equally long, None where there is nothing.

    Columns `KEY:low`, `KEY:high` and `KEY:n` hold the least, the greatest and the number of the samples behind `KEY`;
    `KEY:mean`, in a series that was thinned, the mean of the points about it.

    Attributes:
        source: index of the `Source` that it is from.
        name: unique within the plot.
        color, marker: number within the palette and the marks.
        marks: a mark at every point, not only here and there.
        hollow: marks are not filled, as of what is predicted.
        labels: what each point is, where a number does not say it; the categories of bars.
        bases: of each point, where they differ from `basis`.
        tags: short names that are written beside points.
        total: points there were, where some are left out.
    """

    name: str
    source: int
    columns: dict[str, list[Number]]
    basis: str = "measured"
    color: int = 0
    marker: int = 0
    line: Line = "solid"
    marks: bool = False
    hollow: bool = False
    labels: list[str] = field(default_factory=list)
    bases: Sequence[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    total: int | None = None

    def __len__(self) -> int:
        return max((len(c) for c in self.columns.values()), default=0)


@dataclass
class Plot:
    """Series on axes.

    Attributes:
        kind: `lines` (points in the plane), `bars` (one a label and series), `stack` (one a series, cut by labels).
        x, y: to choose from, the first as it opens; bars and stacks have no x.
        smooth: a running mean may be laid over it.
        failed: what there is no point for, and why.
    """

    id: str
    title: str
    kind: Literal["lines", "bars", "stack"]
    y: list[Axis]
    x: list[Axis] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    about: list[str] = field(default_factory=list)
    smooth: bool = False
    failed: list[str] = field(default_factory=list)


@dataclass
class Cell:
    """A figure in a table."""

    value: Number
    unit: str = ""
    basis: str = "measured"


Row = list[str | int | float | Cell | None]


@dataclass
class Table:
    """Rows of text, figures, or nothing; `sources` says what each row is from, empty where a row is from several."""

    title: str
    columns: list[str]
    rows: list[Row]
    sources: list[int]
    closed: bool = False  # opens on demand


@dataclass
class Tile:
    """A headline: one figure, and under it what it is of."""

    label: str
    figure: Cell
    about: str


@dataclass
class Text:
    """What a model wrote after a prompt; `left_out` characters of it are not here. `about`: a step, a reward."""

    source: int
    prompt: str
    text: str
    about: str = ""
    left_out: int = 0


@dataclass
class Section:
    """What belongs together; `about` is what a reader must know, a paragraph each.

    Attributes:
        wall: its plots are small panels, seen together; as a picture they are one.
    """

    id: str
    title: str
    about: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    wall: bool = False


@dataclass
class Source:
    """A run or a record: where its figures are from.

    Attributes:
        facts: name -> text, e.g. commit, date, command, peak; shown as they are.
    """

    name: str
    kind: str
    file: str
    facts: dict[str, str] = field(default_factory=dict)


def finite(value: Any) -> Number:
    """A number that can be drawn, else None; a bool is none, nor is what no float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= sys.float_info.max else None


def thin(values: Sequence[Number], most: int = MOST_POINTS) -> list[int]:
    """Indexes of at most `most` values: first, last, and of each of equal stretches its least and its greatest."""
    if len(values) <= most:
        return list(range(len(values)))
    stretches, kept = (most - 2) // 2, {0, len(values) - 1}
    for i in range(stretches):
        part = range(i * len(values) // stretches, (i + 1) * len(values) // stretches)
        there = [(v, j) for j in part if (v := values[j]) is not None]
        kept |= {min(there)[1], max(there)[1]} if there else set()
    return sorted(kept)


def thinned(series: Series, keys: Sequence[str]) -> Series:
    """`series` with the points that `thin` keeps of each of the columns `keys`, and the mean about each of them."""
    if len(series) > MOST_POINTS:
        series.total = len(series)
        most = MOST_POINTS // len(keys)
        kept = sorted({i for key in keys for i in thin(series.columns[key], most)})
        means = {f"{key}:mean": local_means(series.columns[key], kept, 2 * len(series) // most) for key in keys}
        series.columns = {k: [v[i] for i in kept] for k, v in series.columns.items()} | means
    return series


def local_means(values: Sequence[Number], places: Sequence[int], width: int) -> list[Number]:
    """Of the values about each of the places, as many as `width`; None where there is none."""
    sums = [0.0, *accumulate(v or 0.0 for v in values)]
    counts = [0, *accumulate(v is not None for v in values)]
    means: list[Number] = []
    for i in places:
        a, b = max(0, i - width // 2), min(len(values), i + width // 2 + 1)
        means.append((sums[b] - sums[a]) / (counts[b] - counts[a]) if counts[b] > counts[a] else None)
    return means


def figure_columns(key: str, figures: Iterable[Figure | None]) -> dict[str, list[Number]]:
    """The columns that say a figure whole, for each of `figures`."""
    columns: dict[str, list[Number]] = {key: [], f"{key}:low": [], f"{key}:high": [], f"{key}:n": []}
    for figure in figures:
        sampled = figure is not None and bool(figure.samples)
        columns[key].append(finite(figure.value) if figure else None)
        columns[f"{key}:low"].append(finite(figure.low) if figure and sampled else None)
        columns[f"{key}:high"].append(finite(figure.high) if figure and sampled else None)
        columns[f"{key}:n"].append(len(figure.samples) if figure and sampled else None)
    return columns
