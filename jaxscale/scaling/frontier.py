"""The best size for each budget: Hoffmann's approaches 1 (envelope) and 2 (isoflop). arXiv:2203.15556, section 3.

Both give N* = k C^power, and from five budgets on the loss there, E + A C^-alpha. Dims: G budgets, S fits, n runs.
"""

from dataclasses import dataclass

import numpy as np

from jaxscale.scaling.curves import PowerSum, power_sum
from jaxscale.scaling.fit import fit_many, starts
from jaxscale.scaling.problems import WARM, Omission, by_size
from jaxscale.scaling.table import Table

Array = np.ndarray
SAME = 0.12  # budgets that differ by a smaller share are one
BUDGETS = 5  # of which a loss of three parameters is fitted
GRID = 48  # budgets at which the envelope is read
FLAT = 1e-9  # a parabola's curvature, below which it has no minimum


@dataclass(frozen=True)
class Parabola:
    """log L = q0 + q1 x + q2 x^2 with x = log(N / its geometric mean): a curve whose Jacobian is constant [n, 3]."""

    columns: Array

    @property
    def bounds(self) -> Array:
        return np.array([(-1e6, 1e6)] * 3).T

    def __call__(self, inside: Array) -> tuple[Array, Array]:
        return inside @ self.columns.T, np.tile(self.columns, (len(inside), 1, 1))


class Frontier:
    """What both approaches share: minima (C, N*, L*) of each fit, and the laws through them."""

    begin: Array  # of fits of the loss
    losses = True  # are there budgets enough for a law of the loss?

    def through(self, C: Array, log_N: Array, log_L: Array, valid: Array) -> Array:
        """Parameters [S, q] through minima of budgets [G] and fits [S, G]: k, power, and E, A, alpha."""
        x = np.log(C)
        w = valid / np.maximum(valid.sum(1, keepdims=True), 1e-300)
        log_N, log_L = np.where(valid > 0, log_N, 0.0), np.where(valid > 0, log_L, 0.0)
        middle = (w * x).sum(1, keepdims=True)
        level = (w * log_N).sum(1, keepdims=True)
        spread = (w * (x - middle) ** 2).sum(1)
        power = np.divide((w * (x - middle) * (log_N - level)).sum(1), spread, where=spread > 0, out=spread * np.nan)
        size_law = np.stack([np.exp(level[:, 0] - power * middle[:, 0]), power], 1)
        if not self.losses:
            return size_law
        curve = PowerSum.of(C)
        begin = starts(curve, log_L[0], best=WARM + 1) if valid[0].all() else self.begin
        self.begin = begin
        return np.concatenate([size_law, curve.outside(fit_many(curve, log_L, valid, begin))], 1)


class Isoflop(Frontier):
    """A parabola through the runs of each budget.

    Attributes:
        groups: the runs of each budget; `budgets` [G] their FLOPs.
    """

    smooth = True  # of five runs, one in ten draws has fewer than three

    def __init__(self, table: Table):
        self.table, self.clusters = table, table.rungs
        self.groups = budgets_of(table.flops)
        self.strata = np.zeros(len(table), int)
        for g, rows in enumerate(self.groups):
            self.strata[rows] = g
            require_sizes(table, rows)
        if len(self.groups) < 3:
            raise ValueError(
                f"{table.source}: {len(self.groups)} budgets of FLOPs; isoflop needs 3, each with 3 sizes of model"
            )
        self.budgets = np.array([np.exp(np.log(table.flops[rows]).mean()) for rows in self.groups])
        self.losses, self.distinct = len(self.groups) >= BUDGETS, 3
        ones = np.ones((1, len(table)))
        self.log_N, self.log_L, valid = (one[0] for one in self.minima(ones))
        for g in np.flatnonzero(np.isnan(valid)).tolist():
            raise ValueError(
                f"{table.source}: the runs of {self.budgets[g]:.3g} FLOPs show no minimum: a parabola through them "
                "opens downwards, or has it far outside; run smaller or larger models of that budget"
            )
        self.notes = [
            note for rows, x in zip(self.groups, self.log_N, strict=True) if (note := at_edge(table, rows, x))
        ]

    def minima(self, weights: Array) -> tuple[Array, Array, Array]:
        """(log N*, log L*, 1 where there is a minimum, 0 where no run of the budget is left, else NaN) [S, G]."""
        by_budget = []
        for rows in self.groups:
            log_N, y, w = np.log(self.table.parameters[rows]), np.log(self.table.loss[rows]), weights[:, rows]
            x = log_N - log_N.mean()
            columns = np.stack([np.ones_like(x), x, x * x], 1)
            begin = np.linalg.lstsq(columns, y, rcond=None)[0]
            q = fit_many(Parabola(columns), y, w, begin)
            few = np.array([len(set(log_N[one > 0])) < 3 for one in w])
            curved = ~few & (q[:, 2] > FLAT)
            best = -q[:, 1] / (2 * np.where(curved, q[:, 2], 1.0))
            bad = ~curved | (np.abs(best) > np.ptp(x))  # far outside of what was run: this is no minimum
            best = np.where(bad, 0.0, best)
            valid = np.where(w.sum(1) == 0, 0.0, np.where(bad, np.nan, 1.0))
            by_budget.append((best + log_N.mean(), q[:, 0] + best * q[:, 1] / 2, valid))
        log_N, log_L, valid = (np.stack(part, 1) for part in zip(*by_budget, strict=True))
        return log_N, log_L, valid

    def main(self) -> tuple[Array, float]:
        parameters = self.through(self.budgets, self.log_N[None], self.log_L[None], np.ones((1, len(self.budgets))))
        return parameters[0], float(np.abs(self.residuals(parameters[0])).sum())

    def many(self, weights: Array) -> Array:
        log_N, log_L, valid = self.minima(weights)
        whole = ~np.isnan(valid).any(1)
        parameters = np.full((len(weights), 5 if self.losses else 2), np.nan)
        if whole.any():
            parameters[whole] = self.through(self.budgets, log_N[whole], log_L[whole], valid[whole])
        return parameters

    def residuals(self, parameters: Array) -> Array:
        return self.log_N - np.log(parameters[0]) - parameters[1] * np.log(self.budgets)

    def omissions(self) -> list[Omission]:
        return [
            Omission(
                f"the budget {self.budgets[g]:.3g}",
                float(self.budgets[g]),
                np.where(self.strata == g, 0.0, 1.0),
                "N*",
                float(np.exp(self.log_N[g])),
                lambda p, C=self.budgets[g]: float(p[0] * C ** p[1]),  # type: ignore[misc]
            )
            for g in reversed(range(len(self.groups)))
        ]


def budgets_of(flops: Array) -> list[Array]:
    """The runs of each budget, the smallest first: those between whose FLOPs there is no gap wider than SAME."""
    order = np.argsort(flops, kind="stable")
    cuts = np.flatnonzero(np.diff(np.log(flops[order])) > SAME) + 1
    return [np.sort(group) for group in np.split(order, cuts)]


def require_sizes(table: Table, rows: Array) -> None:
    sizes = len(set(table.parameters[rows].tolist()))
    if sizes < 3:
        raise ValueError(
            f"{table.source}: {sizes} sizes of model at {table.flops[rows[0]]:.3g} FLOPs; isoflop needs 3 at each "
            "budget (runs within 12 % of each other's FLOPs are one budget)"
        )


def at_edge(table: Table, rows: Array, log_N: float) -> str:
    """A warning where the best size lies at, or outside of, the sizes that were run."""
    sizes = np.array(sorted(set(table.parameters[rows].tolist())))
    inside = np.sqrt(sizes[0] * sizes[1]), np.sqrt(sizes[-2] * sizes[-1])
    if inside[0] <= np.exp(log_N) <= inside[1]:
        return ""
    side = "larger" if np.exp(log_N) > inside[1] else "smaller"
    return (
        f"at {table.flops[rows[0]]:.3g} FLOPs the best size {np.exp(log_N):.3g} is at the edge of those that were run "
        f"({sizes[0]:.3g} to {sizes[-1]:.3g}); run {side} models"
    )


class Envelope(Frontier):
    """The lowest loss of all runs at each of GRID budgets, from losses while they trained.

    A draw without a run has a gap where that run was the best, so that intervals of few sizes are too wide.
    """

    smooth = False

    def __init__(self, table: Table):
        table = joined(table)
        self.table, self.clusters, self.strata = table, table.rungs, np.zeros(len(table), int)
        self.distinct, self.notes = 3, list[str]()
        self.log_sizes = np.log(table.parameters)
        curves = [np.log(np.array(curve)) for curve in table.curves]
        C = [curve[:, 0] + np.log(f / t) for curve, f, t in zip(curves, table.flops, table.tokens, strict=True)]
        firsts, lasts = (np.sort([one[at] for one in C]) for at in (0, -1))
        self.budgets = np.exp(np.linspace(firsts[1], lasts[-1], GRID))  # from where there are two runs
        reads = [
            np.interp(np.log(self.budgets), c, y[:, 1], left=np.inf, right=np.inf)
            for c, y in zip(C, curves, strict=True)
        ]
        self.log_losses = np.stack(reads)  # [n, G]
        best, valid = self.winners(np.ones((1, len(table))))
        if len(set(self.log_sizes[best[0][valid[0] > 0]].tolist())) < 3:
            raise ValueError(
                f"{table.source}: fewer than 3 sizes between the smallest and the largest are ever the best; envelope "
                "needs runs of more sizes, each long enough to cross the next one's curve"
            )

    def winners(self, weights: Array) -> tuple[Array, Array]:
        """(the best run, 1 where its size is neither the smallest nor the largest) of each fit and budget [S, G]."""
        there = weights > 0
        losses = np.where(there[:, :, None], self.log_losses, np.inf)
        best = losses.argmin(1)
        sizes = self.log_sizes[best]
        low = np.where(there, self.log_sizes, np.inf).min(1, keepdims=True)
        high = np.where(there, self.log_sizes, -np.inf).max(1, keepdims=True)
        return best, (np.isfinite(losses.min(1)) & (sizes > low) & (sizes < high)).astype(float)

    def main(self) -> tuple[Array, float]:
        parameters = self.many(np.ones((1, len(self.table))))[0]
        return parameters, float(np.abs(self.residuals(parameters)).sum())

    def many(self, weights: Array) -> Array:
        best, valid = self.winners(weights)
        log_L = np.take_along_axis(self.log_losses.T[None], best[:, :, None], 2)[..., 0]
        log_N = self.log_sizes[best]
        middle = (valid * log_N).sum(1, keepdims=True) / np.maximum(valid.sum(1, keepdims=True), 1)
        sizes = [len(set(row[ok > 0].tolist())) for row, ok in zip(log_N, valid, strict=True)]
        whole = (np.array(sizes) >= 2) & (np.abs(valid * (log_N - middle)).sum(1) > 0)
        parameters = np.full((len(weights), 5), np.nan)
        if whole.any():
            self.begin = starts(
                PowerSum.of(self.budgets), np.where(np.isfinite(log_L[0]), log_L[0], 0.0), best=WARM + 1
            )
            parameters[whole] = self.through(self.budgets, log_N[whole], log_L[whole], valid[whole])
        return parameters

    def residuals(self, parameters: Array) -> Array:
        best, valid = self.winners(np.ones((1, len(self.table))))
        log_L = np.take_along_axis(self.log_losses.T, best[0][:, None], 1)[:, 0]
        return (log_L - np.log(power_sum(parameters[2:], self.budgets)))[valid[0] > 0]

    def omissions(self) -> list[Omission]:
        return [
            Omission(
                self.table.names[rows[0]],
                float(self.table.flops[rows[0]]),
                np.where(np.isin(np.arange(len(self.table)), rows), 0.0, 1.0),
                "loss",
                float(np.exp(np.log(self.table.loss[rows]).mean())),
                lambda p, C=self.table.flops[rows[0]]: float(power_sum(p[2:], C)),  # type: ignore[misc]
            )
            for rows in by_size(self.table)
        ]


def joined(table: Table) -> Table:
    """A table with a curve for each run: of its record, or of the rows that have one size and seed."""
    if table.curves and all(len(curve) > 1 for curve in table.curves):
        return table
    if any(table.curves):
        short = next(name for name, curve in zip(table.names, table.curves, strict=True) if len(curve) < 2)
        raise ValueError(f"{table.source}: {short} has no curve of (tokens, loss); leave it out, or run it again")
    runs: dict[tuple[float, int], list[int]] = {}
    for i, key in enumerate(zip(table.parameters.tolist(), table.seeds, strict=True)):
        runs.setdefault(key, []).append(i)
    rows = [sorted(group, key=lambda i: table.tokens[i]) for group in runs.values()]
    if any(len(group) < 2 for group in rows):
        raise ValueError(
            f"{table.source}: envelope needs each run's loss while it trained: rows of the same parameters and seed "
            "with growing tokens, or a ladder's record with curves"
        )
    last = np.zeros(len(table), bool)
    last[[group[-1] for group in rows]] = True
    curves = {group[-1]: tuple((float(table.tokens[i]), float(table.loss[i])) for i in group) for group in rows}
    kept = table.take(last)
    return type(table)(**{**vars(kept), "curves": tuple(curves[i] for i in np.flatnonzero(last).tolist())})
