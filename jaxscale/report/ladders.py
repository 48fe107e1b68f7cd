"""Ladders -> loss over compute, a wall of abilities with their kinds, and the census beside the talk's."""

from typing import Any

from jaxscale.report.plots import Axis, Number, Plot, Section, Series, Table, finite
from jaxscale.scaling.classes import BIG_BENCH, KINDS, Point
from jaxscale.scaling.record import LadderRecord
from jaxscale.scaling.verdicts import Curve, census, curves_of

Item = tuple[int, str, LadderRecord]  # index and name of its source, and the ladder's record
FLOPS = Axis("flops", "training FLOPs, 6 N D", "FLOPs", log=True)
SIZES = [FLOPS, Axis("parameters", "parameters N, without the table of embeddings", log=True),
         Axis("tokens", "tokens D", log=True)]  # fmt: skip
LOSS = Axis("loss", "loss on held-out text", "nats per token", log=True)
TOGETHER = (("count_chain", "count"), ("parity_chain", "parity"))  # with steps, and at once
KINDS_SAID = (
    "A kind holds up to the compute of the largest rung. Flat up to there may be emergent beyond it: what does not "
    "work does not work yet."
)
MIRAGE = (
    "An ability may emerge in a sharp metric and rise smoothly in a continuous one (arXiv:2304.15004): the second axis "
    "of each panel shows its continuous partner."
)


def ladder_sections(items: list[Item]) -> list[Section]:
    """Loss, abilities, and abilities compared; what there is of them."""
    if not items:
        return []
    return [s for s in (ladder_section(items), abilities_section(items), together_section(items)) if s is not None]


def ladder_section(items: list[Item]) -> Section:
    """Loss over compute, parameters and tokens, a series a ladder; held-out rungs are hollow."""
    plot = Plot("ladder-loss", "Loss over compute", "lines", y=[LOSS], x=SIZES)
    for order, (source, name, record) in enumerate(items):
        several = f"{name}, " if len(items) > 1 else ""
        for held, label in ((False, "fitted"), (True, "held out")):
            rows = [r for r in record.rungs if r.held_out == held]
            if rows:
                columns = {a.key: [finite(getattr(r, a.key)) for r in rows] for a in [*SIZES, LOSS]}
                series = Series(
                    f"{several}{label}", source, columns, color=order, marker=order, line="none", marks=True
                )
                series.hollow, series.labels = held, [r.name for r in rows]
                plot.series.append(series)
        plot.series += along_training(source, several, record, order)
    rows = [r for _, _, record in items for r in record.rungs]
    seconds, training = (sum(r.seconds for r in rows), sum(r.training_seconds for r in rows))
    about = [
        f"{len(rows)} runs took {seconds:,.0f} s, and {training:,.0f} s of that were steps; the rest is starting, "
        "compiling and evaluating."
    ]
    return Section("ladder", "Ladder", about=about, plots=[plot])


def along_training(source: int, several: str, record: LadderRecord, order: int) -> list[Series]:
    """Each run's evaluations on its way, faint."""
    series: list[Series] = []
    for row in record.rungs:
        if len(curve := row.curve) > 1:
            tokens: list[Number] = [finite(t) for t, _ in curve]
            columns: dict[str, list[Number]] = {
                "flops": [6.0 * row.parameters * (t or 0) for t in tokens],
                "parameters": [row.parameters] * len(curve),
                "tokens": tokens,
                "loss": [finite(loss) for _, loss in curve],
            }
            name = f"{several}{row.name} on its way"
            series.append(Series(name, source, columns, color=(order + 1 + len(series)) % 10, line="dotted"))
    return series


# --- abilities ------------------------------------------------------------------------------------------------


def abilities_section(items: list[Item]) -> Section | None:
    """A panel an ability with its kind, chain and direct answers together, the census. None without abilities."""
    curves = [(source, name, curve) for source, name, record in items for curve in curves_of(record)]
    if not curves:
        return None
    section = Section("abilities", "Abilities", about=[KINDS_SAID, MIRAGE], wall=True)
    section.plots = [panel(source, curve, i) for i, (source, _, curve) in enumerate(curves)]
    section.tables = [verdict_table([(source, curve) for source, _, curve in curves])]
    return section


def together_section(items: list[Item]) -> Section | None:
    """Pairs of abilities in one plot, and the census. None without abilities."""
    curves = [(source, curve) for source, _, record in items for curve in curves_of(record)]
    named = {c.ability: (source, c) for source, c in curves if not c.shots}
    plots = [pair(named[a], named[b]) for a, b in TOGETHER if a in named and b in named]
    plots += shots_plots(curves)
    plots += position_plots(items)
    if any(c.verdict for _, c in curves):
        plots.append(census_plot(curves))
    return Section("abilities-compared", "Abilities compared", plots=plots) if plots else None


def panel(source: int, curve: Curve, order: int) -> Plot:
    """The sharp metric with chance, and the continuous partner as another axis to choose."""
    kind = f": {curve.verdict.kind}" if curve.verdict else ""
    y = [metric_axis(curve.metric)] + ([metric_axis(curve.partner_metric)] if curve.partner_metric else [])
    plot = Plot(f"ability-{slug(curve.name)}-{order}", f"{curve.name}{kind}", "lines", y=y, x=[FLOPS])
    columns = series_columns(curve.metric, curve.points)
    if curve.partner_metric:
        columns |= {k: v for k, v in series_columns(curve.partner_metric, curve.partner_points).items() if k != "flops"}
    mean = by_rung(columns)
    plot.series.append(Series("mean of seeds", source, mean, color=0, marks=True))
    if len(columns["flops"]) > len(mean["flops"]):
        plot.series.append(Series("each seed", source, columns, color=1, marker=1, line="none", marks=True))
    ends = [mean["flops"][0], mean["flops"][-1]]
    plot.series.append(
        Series("chance", source, {"flops": ends, curve.metric: [curve.chance] * 2}, "predicted", 7, line="dotted")
    )
    plot.about += panel_words(curve)
    return plot


def panel_words(curve: Curve) -> list[str]:
    if curve.verdict is None:
        return ["Fewer than four rungs: it has no kind."]
    lines = [f"{curve.verdict.why}."]
    if curve.verdict.seeds:
        lines.append(f"{curve.verdict.seeds}.")
    if curve.partner:
        lines.append(f"{metric_words(curve.partner_metric)}: {curve.partner.kind}, {curve.partner.why}.")
    return lines


def series_columns(metric: str, points: tuple[Point, ...]) -> dict[str, list[Number]]:
    return {"flops": [p.flops for p in points], metric: [finite(p.value) for p in points]}


def by_rung(columns: dict[str, list[Number]]) -> dict[str, list[Number]]:
    """Columns averaged over the seeds of a rung."""
    places = sorted({f for f in columns["flops"] if f is not None})
    mean: dict[str, list[Number]] = {"flops": list(places)}
    for key in (k for k in columns if k != "flops"):
        here = [
            [v for f, v in zip(columns["flops"], columns[key], strict=True) if f == at and v is not None]
            for at in places
        ]
        mean[key] = [sum(vs) / len(vs) if vs else None for vs in here]
    return mean


def pair(with_steps: tuple[int, Curve], at_once: tuple[int, Curve]) -> Plot:
    """Chain of thought and direct answers: the same question."""
    name = at_once[1].ability
    plot = Plot(f"together-{slug(name)}", f"{name}: with steps and at once", "lines", y=[SCORE], x=[FLOPS])
    for order, ((source, curve), label) in enumerate(((with_steps, "with steps"), (at_once, "at once"))):
        mean = by_rung(series_columns(curve.metric, curve.points))
        columns = {"flops": mean["flops"], SCORE.key: mean[curve.metric]}
        plot.series.append(Series(label, source, columns, color=order, marker=order, marks=True))
    return plot


SCORE = Axis("score", "share that is right", "share", zero=True, top=1.0)


def shots_plots(curves: list[tuple[int, Curve]]) -> list[Plot]:
    """Abilities that were asked with several numbers of examples in the prompt."""
    plots = []
    for where, ability in dict.fromkeys((source, c.ability) for source, c in curves):
        mine = [(source, c) for source, c in curves if (source, c.ability) == (where, ability)]
        if len(mine) > 1:
            plot = Plot(
                f"shots-{slug(ability)}-{where}", f"{ability}: examples in the prompt", "lines", y=[SCORE], x=[FLOPS]
            )
            for order, (source, curve) in enumerate(mine):
                mean = by_rung(series_columns(curve.metric, curve.points))
                columns = {"flops": mean["flops"], SCORE.key: mean[curve.metric]}
                plot.series.append(
                    Series(f"{curve.shots} examples", source, columns, color=order, marker=order, marks=True)
                )
            plots.append(plot)
    return plots


def position_plots(items: list[Item]) -> list[Plot]:
    """Loss by position of what repeats in its context, a series a rung: where it falls, the context is used."""
    plots: dict[str, Plot] = {}
    for source, name, record in items:
        for rung in record.rungs:
            for one in (a for a in rung.abilities if a.curve):
                x, y = (
                    Axis("position", "position in the repeated text"),
                    Axis("nats", "loss", "nats per token", zero=True),
                )
                plot = plots.setdefault(
                    one.ability,
                    Plot(f"positions-{slug(one.ability)}", f"{one.ability}: loss by position", "lines", y=[y], x=[x]),
                )
                places: list[Number] = [float(i) for i in range(1, len(one.curve) + 1)]
                columns: dict[str, list[Number]] = {"position": places, "nats": [finite(v) for v in one.curve]}
                several = f"{name}, " if len(items) > 1 else ""
                order = len(plot.series)
                plot.series.append(Series(f"{several}{rung.name}", source, columns, color=order % 10, marker=order % 8))
    return list(plots.values())


def census_plot(curves: list[tuple[int, Curve]]) -> Plot:
    """Shares of each kind, ours and BIG-bench's."""
    counts = census([c for _, c in curves])
    whole = sum(counts.values())
    axis = Axis("share", "share of the abilities", "share", zero=True)
    plot = Plot("census", "Census of kinds", "bars", y=[axis])
    source = curves[0][0]
    ours: dict[str, list[Number]] = {"share": [counts[kind] / whole for kind in KINDS]}
    theirs: dict[str, list[Number]] = {"share": [BIG_BENCH.get(kind) for kind in KINDS]}
    plot.series = [
        Series(f"these {whole}", source, ours, color=0, marks=True, labels=list(KINDS)),
        Series(
            "202 BIG-bench tasks (arXiv:2206.07682)", source, theirs, color=1, marker=1, marks=True, labels=list(KINDS)
        ),
    ]
    plot.about = ["These are judged by a rule, from their figures; those of BIG-bench were labelled by hand."]
    return plot


def verdict_table(curves: list[tuple[int, Curve]]) -> Table:
    columns = ["ability", "kind", "why", "seeds", "continuous partner", "B", "L", "jump"]
    rows: list[list[Any]] = []
    for _, c in curves:
        if c.verdict:
            partner = f"{metric_words(c.partner_metric)}: {c.partner.kind}" if c.partner else ""
            v = c.verdict
            rows.append(
                [
                    c.name,
                    v.kind,
                    v.why,
                    v.seeds,
                    partner,
                    round(v.breakthrough, 2),
                    round(v.linearity, 2),
                    round(v.discontinuity, 2),
                ]
            )
    return Table(
        "Kinds, with breakthroughness B, linearity L and the last jump",
        columns,
        rows,
        [s for s, c in curves if c.verdict],
        closed=True,
    )


def metric_axis(metric: str | None) -> Axis:
    share = metric in ("exact", "choice", "final", "p_exact", "late_right")
    return Axis(metric or "", metric_words(metric), "share" if share else "", zero=share, top=1.0 if share else None)


def metric_words(metric: str | None) -> str:
    return {
        "exact": "exact match",
        "choice": "right choice",
        "final": "right last token",
        "nll": "log-likelihood a token",
        "p_exact": "probability of the answer",
        "log_odds": "log-odds of the right choice",
        "brier": "Brier score, turned",
        "final_nll": "log-likelihood of the last token",
        "late_right": "right 100th token",
        "late_nll": "log-likelihood of the 100th token",
    }.get(metric or "", metric or "")


def slug(text: str) -> str:
    return "".join(ch if ch.isalnum() else "-" for ch in text.lower()).strip("-")
