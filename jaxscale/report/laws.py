"""Laws -> loss over compute with its interval, the best size for a budget, and rungs forecast from the others."""

import math
from collections.abc import Sequence

import numpy as np

from jaxscale.report.plots import Axis, Cell, Number, Plot, Section, Series, Table, finite
from jaxscale.scaling.bootstrap import INTERVAL
from jaxscale.scaling.frontier import budgets_of
from jaxscale.scaling.law import Law, LeaveOut, Point, UsedRow
from jaxscale.scaling.laws import Form, form_of

Item = tuple[int, str, Law]  # index and name of its source, and the law
FLOPS = Axis("flops", "training FLOPs", "FLOPs", log=True)
LOSS = Axis("loss", "loss on held-out text", "nats per token", log=True)
BITS = Axis("loss", "loss of the right answer", "bits per byte", log=True)
PARAMETERS = Axis("parameters", "parameters N", log=True)
SIZES = [PARAMETERS, Axis("tokens", "tokens D", log=True)]
BEYOND = 10.0  # times the largest run's FLOPs, as far as a law is drawn
POINTS = 40
RULE_OF_THUMB = 20  # tokens a parameter (arXiv:2203.15556)
COUNTED = {"without": "without the table of embeddings", "with": "with embeddings", "unknown": "as the table has them"}


def laws_sections(items: list[Item]) -> list[Section]:
    """A section for all laws; none without one."""
    if not items:
        return []
    section = Section("laws", "Laws")
    for number, (source, name, law) in enumerate(items, 1):
        title, form = (f"{name}: " if len(items) > 1 else ""), form_of(law.form)
        section.about += words(law, title)
        made = [
            loss_plot(source, law, form, f"law-loss-{number}", title),
            size_plot(source, law, form, f"law-size-{number}", title),
            budgets_plot(source, law, f"law-budgets-{number}", title) if law.form == "isoflop" else None,
            left_out_plot(source, law, f"law-left-out-{number}", title),
        ]
        section.plots += [plot for plot in made if plot is not None]
        section.tables.append(parameters_table(source, law, title))
    return [section]


def words(law: Law, title: str) -> list[str]:
    largest = law.largest
    lines = [f"{title}{law.form}, {law.formula} ({law.source}); N counts parameters {COUNTED[law.counts]}."]
    if largest is not None:
        lines.append(
            f"{title}the largest rung, forecast from the others, is off by {percent(largest)}. The interval leaves out "
            "that the form itself may be wrong."
        )
    lines += [f"{title}not identified: {what}." for what in law.not_identified.values()]
    return lines + [f"{title}{line}." for line in law.warnings]


def percent(one: LeaveOut) -> str:
    return f"{one.error:+.3f}" if one.quantity == "accuracy" else f"{one.error:+.1%}"


def measured_loss(row: UsedRow, law: Law) -> Number:
    return finite(row.bits_per_byte if law.form == "task" else row.loss)


def loss_plot(source: int, law: Law, form: Form, id: str, title: str) -> Plot:
    """Runs, held-out ones hollow, and the law at the best size for each budget, with its interval."""
    plot = Plot(id, f"{title}Loss over compute", "lines", y=[BITS if law.form == "task" else LOSS], x=[FLOPS])
    for held, name in ((False, "fitted"), (True, "held out")):
        rows = [row for row in law.rows if row.held_out == held]
        if rows:
            columns = {"flops": [finite(r.flops) for r in rows], "loss": [measured_loss(r, law) for r in rows]}
            labels = [r.name for r in rows]
            plot.series.append(Series(name, source, columns, line="none", marks=True, hollow=held, labels=labels))
    low, high = (f(r.flops for r in law.rows) for f in (min, max))
    places = np.geomspace(low, BEYOND * high, POINTS)
    try:
        best = np.array([value(form, law.best, C) for C in places])
        drawn = np.stack([value(form, law.drawn, C) for C in places])
    except ValueError:  # a frontier of fewer than five budgets says no loss
        return plot
    bounds = np.nanpercentile(np.where(np.isfinite(drawn), drawn, np.nan), INTERVAL, axis=1)
    where = "" if form.size is None else ", at the best size"
    for name, curve, line in (
        (f"the law{where}", best, "dashed"),
        ("5 %", bounds[0], "dotted"),
        ("95 %", bounds[1], "dotted"),
    ):
        columns = {"flops": places.tolist(), "loss": [finite(v) for v in curve.tolist()]}
        plot.series.append(Series(name, source, columns, "predicted", 1, line=line))  # type: ignore[arg-type]
    return plot


def value(form: Form, parameters: np.ndarray, C: float) -> np.ndarray:
    """Loss of parameters [..., q] at C FLOPs, spent on the best size where the form has one."""
    if form.size is None:
        return form.value(parameters, Point(math.nan, math.nan, C))
    N = form.size(parameters, C)
    return form.value(parameters, Point(N, C / (6 * N), C))  # type: ignore[arg-type]  # a size for each draw


def size_plot(source: int, law: Law, form: Form, id: str, title: str) -> Plot | None:
    """N* and D* over compute, beside 20 tokens a parameter."""
    if form.size is None:
        return None
    low, high = (f(r.flops for r in law.rows) for f in (min, max))
    places = np.geomspace(low, BEYOND * high, POINTS)
    best = np.array([float(form.size(law.best, C)) for C in places])
    drawn = np.stack([form.size(law.drawn, C) for C in places])
    bounds = np.nanpercentile(np.where(np.isfinite(drawn), drawn, np.nan), INTERVAL, axis=1)
    thumb = np.sqrt(places / (6 * RULE_OF_THUMB))
    plot = Plot(id, f"{title}The best size for a budget", "lines", y=SIZES, x=[FLOPS])
    curves = (("the law", best, "dashed", 1), ("5 %", bounds[0], "dotted", 1), ("95 %", bounds[1], "dotted", 1),
              (f"{RULE_OF_THUMB} tokens a parameter", thumb, "dashed", 7))  # fmt: skip
    for name, N, line, color in curves:
        columns = {
            "flops": places.tolist(),
            "parameters": [finite(v) for v in N.tolist()],
            "tokens": [finite(v) for v in (places / (6 * N)).tolist()],
        }
        plot.series.append(Series(name, source, columns, "predicted", color, line=line))  # type: ignore[arg-type]
    return plot


def budgets_plot(source: int, law: Law, id: str, title: str) -> Plot:
    """IsoFLOP curves: loss over N at one budget each, with the law's best size."""
    plot = Plot(id, f"{title}Loss over size at one budget", "lines", y=[LOSS], x=[PARAMETERS])
    for order, rows in enumerate(budgets(law.fitted_rows)):
        rows = sorted(rows, key=lambda r: r.parameters or 0.0)
        C = float(np.exp(np.mean([math.log(r.flops) for r in rows])))
        columns = {"parameters": [finite(r.parameters) for r in rows], "loss": [finite(r.loss) for r in rows]}
        name = f"{C:.2g} FLOPs"
        plot.series.append(Series(name, source, columns, color=order % 10, marker=order % 8, marks=True))
        N = float(form_of(law.form).size(law.best, C))  # type: ignore[misc]  # isoflop has one
        lowest = min((r.loss for r in rows if r.loss is not None), default=None)
        best = {"parameters": [finite(N)], "loss": [finite(lowest)]}
        plot.series.append(
            Series(f"{name}, best size", source, best, "predicted", order % 10, 7, line="none", marks=True)
        )
    return plot


def budgets(rows: Sequence[UsedRow]) -> list[list[UsedRow]]:
    """Runs of one budget together, as the law has them."""
    return [[rows[i] for i in group] for group in budgets_of(np.array([row.flops for row in rows]))]


def left_out_plot(source: int, law: Law, id: str, title: str) -> Plot | None:
    """Each rung as forecast from the others, against what was measured."""
    groups = (("left out in turn", law.leave_out, False), ("held out", law.held_out, True))
    every = [one for _, rows, _ in groups for one in rows if one.quantity != "accuracy"]
    if not every:
        return None
    what = every[0].quantity
    unit = {"loss": "nats per token", "bits_per_byte": "bits per byte"}.get(what, "")
    axes = (Axis("measured", "measured", unit), Axis("predicted", "predicted, without it", unit))
    plot = Plot(id, f"{title}Predicted against measured", "lines", y=[axes[1]], x=[axes[0]])
    for name, rows, hollow in groups:
        rows = [one for one in rows if one.quantity == what]
        if rows:
            columns = {"measured": [finite(r.measured) for r in rows], "predicted": [finite(r.predicted) for r in rows]}
            labels = [f"{r.what}: {percent(r)}" for r in rows]
            plot.series.append(Series(name, source, columns, line="none", marks=True, hollow=hollow, labels=labels))
    ends: list[Number] = [min(one.measured for one in every), max(one.measured for one in every)]
    plot.series.append(Series("equal", source, {"measured": ends, "predicted": ends}, "predicted", 7, line="dotted"))
    return plot


def parameters_table(source: int, law: Law, title: str) -> Table:
    rows: list[list[str | int | float | Cell | None]] = []
    for name, number in law.parameters.items():
        low, high = law.intervals[name]
        rows.append(
            [name, f"{number:.4g}", f"{low:.4g} to {high:.4g}", "not identified" * (name in law.not_identified)]
        )
    return Table(
        f"{title}Parameters of the law", ["parameter", "value", "90 % interval", ""], rows, [source] * len(rows)
    )
