"""Curves of abilities over compute, from a ladder's record: their points and kinds. No jax."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxscale.scaling.classes import KINDS, LEAST_RUNGS, Point, Verdict, classify
from jaxscale.scaling.record import LadderRecord, Measured

LOWER_IS_BETTER = ("nll", "brier")  # ends of their names


@dataclass(frozen=True)
class Curve:
    """One ability, at so many examples in the prompt.

    Attributes:
        metric: the sharp one; `partner_metric`: the continuous one that is told beside it, if there is one.
        points: of the sharp metric; `partner_points`: of the other, higher is better.
        verdict, partner: None below four rungs.
    """

    ability: str
    shots: int
    metric: str
    chance: float
    points: tuple[Point, ...]
    partner_metric: str | None
    partner_points: tuple[Point, ...]
    verdict: Verdict | None
    partner: Verdict | None

    @property
    def name(self) -> str:
        return self.ability + (f", {self.shots} shots" if self.shots else "")


def curves_of(record: LadderRecord) -> list[Curve]:
    """Every ability of a ladder, in the order in which it was measured."""
    by_ability: dict[tuple[str, int], list[tuple[float, Measured]]] = {}
    for rung in record.rungs:
        for one in rung.abilities:
            by_ability.setdefault((one.ability, one.shots), []).append((rung.flops, one))
    return [curve_of(*key, rows) for key, rows in by_ability.items() if rows[0][1].metrics]


def curve_of(ability: str, shots: int, rows: Sequence[tuple[float, Measured]]) -> Curve:
    first = rows[0][1]
    sharp = next((k for k, v in first.metrics.items() if v.sharp), None)
    soft = next((k for k, v in first.metrics.items() if not v.sharp), None)
    metric = first.main or sharp or soft or ""
    sharp = metric if first.metrics[metric].sharp else None
    partner = (first.metrics[metric].partner or soft) if sharp else None
    points, more = points_of(rows, metric), points_of(rows, partner) if partner else ()
    verdict = verdict_of(points, first.chance if sharp else None)
    return Curve(ability, shots, metric, first.chance, points, partner, more, verdict, verdict_of(more, None))


def points_of(rows: Sequence[tuple[float, Measured]], metric: str) -> tuple[Point, ...]:
    """Higher is better: what falls as it gets better is turned."""
    sign = -1.0 if metric.endswith(LOWER_IS_BETTER) else 1.0
    measurements = [(flops, one.metrics[metric]) for flops, one in rows if metric in one.metrics]
    return tuple(Point(flops, sign * m.value, m.n, None if m.sharp else m.std or 0.0) for flops, m in measurements)


def verdict_of(points: Sequence[Point], chance: float | None) -> Verdict | None:
    return classify(points, chance) if len({p.flops for p in points}) >= LEAST_RUNGS else None


def census(curves: Sequence[Curve]) -> dict[str, int]:
    """How many curves there are of each kind."""
    kinds = [c.verdict.kind for c in curves if c.verdict]
    return {kind: kinds.count(kind) for kind in KINDS}
