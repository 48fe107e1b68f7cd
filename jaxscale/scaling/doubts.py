"""What a law does not know, said beside what it says."""

import math
from collections.abc import Mapping

import numpy as np

from jaxscale.scaling.curves import PowerSum
from jaxscale.scaling.fit import fit_one, starts
from jaxscale.scaling.table import Table

WIDE = {"E": 0.5, "alpha": 1.0, "beta": 1.0, "power": 1.0}  # an interval's width, as a share of what it is about
FACTOR = 100.0  # high over low of a coefficient or a rate, above which it may be anything
UNEQUAL = 1.2  # alpha over beta, or the reverse, from which parabolas in log N are biased
FEW = 0.5  # of the draws that could be fitted


def not_identified(intervals: Mapping[str, tuple[float, float]], smallest: float, table: Table) -> dict[str, str]:
    """Parameter -> its interval as text, for each that the runs do not determine.

    Args:
        smallest: the lowest loss that was seen, which E is compared with.
    """
    unidentified = {}
    for name, (low, high) in intervals.items():
        if name == "E":
            unknown = high - low > WIDE["E"] * smallest or low < 0.01 * smallest
        elif name in WIDE:
            unknown = high - low > WIDE[name] * abs(low + high) / 2
        elif name in ("a", "b", "x0"):
            unknown = high - low > 1.0
        else:
            unknown = low <= 0 or high / low > FACTOR
        if unknown:
            unidentified[name] = f"{name}: {low:.2g} to {high:.2g}"
    if "beta" in intervals and together(table):
        unidentified["beta"] = (
            "A, alpha and B, beta: every rung has the same tokens per parameter, so they stand for each other"
        )
    return unidentified


def together(table: Table) -> bool:
    """Do N and D grow together in all rungs?"""
    n, d = np.log(table.parameters), np.log(table.tokens)
    return bool(n.std() == 0 or d.std() == 0 or abs(np.corrcoef(n, d)[0, 1]) > 0.999)


def warnings_of(form: str, table: Table, fitted: float) -> list[str]:
    """What weakens a law beside its interval, a line each."""
    lines = []
    if fitted < FEW:
        lines.append(f"only {fitted:.0%} of the draws could be fitted: the interval is of the others")
    if form in ("isoflop", "envelope"):
        lines += biased(form, table)
    return lines


def biased(form: str, table: Table) -> list[str]:
    """A parabola in log N is symmetric; the loss is so only where alpha = beta (arXiv:2603.22339)."""
    if form == "envelope" or len(set(table.rungs.tolist())) < 6 or together(table):
        return []
    curve, y = PowerSum.of(table.parameters, table.tokens), np.log(table.loss)
    inside, _ = fit_one(curve, y, starts(curve, y))
    alpha, beta = (math.exp(x) for x in inside[3:])
    if 1 / UNEQUAL < alpha / beta < UNEQUAL:
        return []
    return [
        f"alpha {alpha:.2f} and beta {beta:.2f} differ in these runs, so parabolas miss the minimum by more the wider "
        "their sizes are spread (arXiv:2603.22339); compare --form chinchilla"
    ]
