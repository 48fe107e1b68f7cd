"""What each form fits: runs with weights in, parameters out. `laws.FORMS` is the table of them.

Dims: n runs, S fits side by side, q parameters as they are written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jaxscale.scaling.curves import PowerSum, Repeated, Sigmoid, power_sum, repeated, sigmoid
from jaxscale.scaling.fit import fit_many, fit_one, repeated_starts, sigmoid_starts, starts
from jaxscale.scaling.table import Table

Array = np.ndarray
WARM = 3  # starts of a draw beside the law's own parameters
LEAVE_OUTS = 40  # rungs that are left out in turn: the largest
SHARE = 10.0  # of accuracy: residuals below it count squared, which are all


@dataclass(frozen=True)
class Omission:
    """Runs that a law is fitted without, and how it then does on them.

    Attributes:
        weights: of each run [n], 0 for those that are left out.
        quantity: what is compared, with its measured value.
        predict: that quantity, of parameters [q].
    """

    what: str
    flops: float
    weights: Array
    quantity: str
    measured: float
    predict: Callable[[Array], float]


class Problem(Protocol):
    """A form with the runs that it is fitted to.

    Attributes:
        clusters: of each run the rung that is resampled as one [n].
        strata: of each run the group within which rungs are resampled [n].
        distinct: rungs that a draw needs to be fitted at all.
        smooth: draws weight every run, and leave none out.
        notes: what is doubtful about it, a line each.
    """

    clusters: Array
    strata: Array
    distinct: int
    smooth: bool
    notes: list[str]

    def main(self) -> tuple[Array, float]:
        """(parameters [q], objective) of all runs, each once."""
        ...

    def many(self, weights: Array) -> Array:
        """Parameters [S, q] of runs with weights [S, n]; NaN where they cannot be had."""
        ...

    def residuals(self, parameters: Array) -> Array:
        """log of measured over fitted, of each run or minimum."""
        ...

    def omissions(self) -> list[Omission]: ...


# --- sums of powers, and data that is repeated ----------------------------------------------------------------------


class Smooth:
    """A curve through the runs' losses: the forms compute, chinchilla and data."""

    smooth = False

    def __init__(self, table: Table, curve: PowerSum | Repeated, losses: Array, predict: Callable[[Array], Array]):
        self.table, self.curve, self.y, self.predict = table, curve, np.log(losses), predict
        self.clusters, self.notes = table.rungs, list[str]()
        self.strata = np.zeros(len(table), int)
        begin = starts(curve, self.y) if isinstance(curve, PowerSum) else repeated_starts(curve, self.y)
        self.inside, self.objective = fit_one(curve, self.y, begin)
        self.begin = np.stack([self.inside, *begin[:WARM]])
        self.distinct = len(self.inside)

    def main(self) -> tuple[Array, float]:
        return self.curve.outside(self.inside[None])[0], self.objective

    def many(self, weights: Array) -> Array:
        return self.curve.outside(fit_many(self.curve, self.y, weights, self.begin))

    def residuals(self, parameters: Array) -> Array:
        return self.y - np.log(self.predict(parameters))

    def omissions(self) -> list[Omission]:
        return [
            Omission(
                self.table.names[rows[0]],
                float(self.table.flops[rows[0]]),
                np.where(np.isin(np.arange(len(self.y)), rows), 0.0, 1.0),
                "loss",
                float(np.exp(self.y[rows].mean())),
                lambda p, row=rows[0]: float(self.predict(p)[row]),  # type: ignore[misc]
            )
            for rows in by_size(self.table)
        ]


def by_size(table: Table) -> list[Array]:
    """The runs of each rung, the most FLOPs first; at most LEAVE_OUTS rungs."""
    rungs = table.rungs
    groups = [np.flatnonzero(rungs == rung) for rung in dict.fromkeys(rungs.tolist())]
    return sorted(groups, key=lambda rows: -table.flops[rows[0]])[:LEAVE_OUTS]


def compute(table: Table) -> Smooth:
    C = table.flops
    return Smooth(table, PowerSum.of(C), table.loss, lambda p: power_sum(p[..., None, :], C))


def chinchilla(table: Table) -> Smooth:
    N, D = table.parameters, table.tokens
    return Smooth(table, PowerSum.of(N, D), table.loss, lambda p: power_sum(p[..., None, :], N, D))


def data(table: Table) -> Smooth:
    N, D, U = table.parameters, table.tokens, table.unique_tokens
    if not np.any(D > 1.01 * U):
        raise ValueError(
            f"{table.source}: no run has more tokens than unique_tokens, so nothing says what repeating costs; "
            "use --form chinchilla, or run rungs that repeat their data"
        )
    return Smooth(table, Repeated.of(N, D, U), table.loss, lambda p: repeated(p, N, D, U))


# --- a task ---------------------------------------------------------------------------------------------------------


class Task:
    """Two steps, one after the other: the task's loss by N and D, then accuracy by that loss."""

    smooth = False

    def __init__(self, table: Table):
        self.table, self.x, self.accuracy = table, table.bits_per_byte, table.accuracy
        N, D = table.parameters, table.tokens
        self.loss = Smooth(table, PowerSum.of(N, D), self.x, lambda p: power_sum(p[..., None, :5], N, D))
        self.clusters, self.strata, self.distinct = self.loss.clusters, self.loss.strata, self.loss.distinct
        self.notes = self.loss.notes
        self.curve = Sigmoid.of(self.x)
        begin = sigmoid_starts(self.curve, self.accuracy)
        self.inside, _ = fit_one(self.curve, self.accuracy, begin, delta=SHARE)
        self.begin = np.stack([self.inside, *begin[:WARM]])

    def main(self) -> tuple[Array, float]:
        parameters, objective = self.loss.main()
        return np.concatenate([parameters, self.curve.outside(self.inside[None])[0]]), objective

    def many(self, weights: Array) -> Array:
        second = fit_many(self.curve, self.accuracy, weights, self.begin, delta=SHARE)
        return np.concatenate([self.loss.many(weights), self.curve.outside(second)], 1)

    def residuals(self, parameters: Array) -> Array:
        return self.loss.residuals(parameters)

    def omissions(self) -> list[Omission]:
        def chained(p: Array, row: int) -> float:
            return float(sigmoid(p[5:], self.loss.predict(p)[row]))

        rows = by_size(self.table)
        return [
            Omission(
                one.what,
                one.flops,
                one.weights,
                "accuracy",
                float(self.accuracy[here].mean()),
                lambda p, row=here[0]: chained(p, row),  # type: ignore[misc]
            )
            for one, here in zip(self.loss.omissions(), rows, strict=True)
        ]
