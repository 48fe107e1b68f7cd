"""Rows of records -> series of points, by what their labels say. Shared by every kind of benchmark."""

from collections.abc import Callable, Sequence

from jaxscale.bench.record import BenchRecord, Figure, Label, Row
from jaxscale.report.plots import BASIS_LINE, Axis, Number, Series, figure_columns, finite

Item = tuple[int, str, BenchRecord]  # index and name of its source, and the record
Labels = dict[str, Label]


def text(labels: Labels) -> str:
    """`all-reduce, size 8`: strings speak for themselves, numbers with their names."""
    return ", ".join(
        v if isinstance(v, str) else {True: k, False: f"not {k}"}[v] if isinstance(v, bool) else f"{k} {v}"
        for k, v in labels.items()
    )


def constant(rows: Sequence[Row], but: Sequence[str] = ()) -> Labels:
    """Labels that are the same in all rows (of which there are several), so that no name need say them."""
    if len(rows) < 2:
        return {}
    return {k: v for k, v in rows[0].labels.items() if k not in but and all(r.labels.get(k, r) == v for r in rows)}


def decided(rows: Sequence[Row], x: str, *more: str) -> list[str]:
    """Labels that `x` decides, numbers or of `more`: a batch that grows with the devices makes no curve of its own."""
    names: list[str] = []
    for name in without(dict.fromkeys(k for row in rows for k in row.labels), [x, *constant(rows)]):
        pairs = {(number(row, x), row.labels.get(name)) for row in rows}
        if len(pairs) == len({place for place, _ in pairs}):
            names += [name] if name in more or all(finite(v) is not None for _, v in pairs) else []
    return names


def without(labels: Labels, keys: Sequence[str] | Labels) -> Labels:
    return {k: v for k, v in labels.items() if k not in keys}


def number(row: Row, label: str) -> float | None:
    return finite(row.labels.get(label))


def groups(
    items: list[Item], wanted: Callable[[Row], bool], leave_out: Sequence[str]
) -> list[tuple[Item, str, list[Row]]]:
    """Rows of each record that differ in nothing but `leave_out`, with a name that is unique among the groups."""
    rows = [r for _, _, record in items for r in record.rows if wanted(r)]
    said = constant(rows, leave_out)
    grouped = []
    for item in items:
        mine: dict[str, list[Row]] = {}
        for row in filter(wanted, item[2].rows):
            mine.setdefault(text(without(row.labels, [*leave_out, *said])), []).append(row)
        for name, members in mine.items():
            full = ", ".join(n for n in (item[1] if len(items) > 1 else "", name) if n)
            grouped.append((item, full or item[1], members))
    return grouped


def curves(
    items: list[Item], x: str, axes: list[Axis], wanted: Callable[[Row], bool] = lambda row: True
) -> tuple[list[Series], Labels]:
    """A series for each choice of the labels other than `x`, in the order of x; and the labels that all rows share."""
    series: list[Series] = []

    def placed(row: Row) -> bool:
        return number(row, x) is not None and wanted(row) and any(a.key in row.figures for a in axes)

    follow = decided([r for _, _, record in items for r in record.rows if placed(r)], x)
    for (source, _, _), name, rows in groups(items, placed, [x, *follow]):
        rows = sorted(rows, key=lambda row: number(row, x) or 0.0)
        curve = points(rows, axes, source, name, len(series))
        curve.columns = {x: [number(row, x) for row in rows]} | curve.columns
        curve.labels = [text({k: row.labels[k] for k in follow if k in row.labels}) for row in rows] if follow else []
        series.append(curve)
    return series, constant([r for _, _, record in items for r in record.rows if placed(r)], [x])


def points(rows: Sequence[Row], axes: list[Axis], source: int, name: str, order: int) -> Series:
    """One series of the rows as they are; the y axes' figures as columns."""
    columns: dict[str, list[Number]] = {}
    for axis in axes:
        columns |= figure_columns(axis.key, [row.figures.get(axis.key) for row in rows])
    basis = next((row.figures[a.key].basis for row in rows for a in axes if a.key in row.figures), "measured")
    line = BASIS_LINE[basis]
    return Series(name, source, columns, basis=basis, color=order, marker=order, line=line, marks=True)


def failures(items: list[Item], wanted: Callable[[Row], bool] = lambda row: True) -> list[str]:
    """Rows that have no figures, and why."""
    rows = [(name, row) for _, name, record in items for row in record.rows if row.error is not None and wanted(row)]
    return [f"{name}: {text(row.labels) or 'all of it'} failed: {row.error}" for name, row in rows]


def bar_series(item: Item, order: int, key: str, named: list[tuple[str, Figure]]) -> Series:
    """A bar for each named figure of one record; `key` is the plot's axis."""
    source, name, _ = item
    columns = figure_columns(key, [figure for _, figure in named])
    labels, bases = [label for label, _ in named], [figure.basis for _, figure in named]
    return Series(name, source, columns, color=order, marker=order, labels=labels, bases=bases)
