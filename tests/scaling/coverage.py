"""How often 90 % intervals hold the truth, on ladders that are drawn from a known law."""

import numpy as np
from scaling.ladders import ladder, size_of

from jaxscale.scaling.curves import power_sum, repeated, sigmoid
from jaxscale.scaling.law import Point
from jaxscale.scaling.laws import FORMS, fit

N, D, U = 2e10, 4e11, 5e10  # a run of ten times the largest size
C = 6 * N * D
DRAWS = 100  # of each ladder: percentiles of 300 hold the truth as often


def asked(form: str, p: np.ndarray) -> np.ndarray:
    """What is forecast of parameters [..., q]: a loss or an accuracy at the point, or N* at its FLOPs."""
    if form in ("isoflop", "envelope"):
        return FORMS[form].size(p, 1e22)
    if form == "task":
        return sigmoid(p[..., 5:], power_sum(p[..., :5], N, D))
    return FORMS[form].value(p, Point(N, D, C, U))


def truth_of(form: str, p: np.ndarray) -> float:
    if form in ("isoflop", "envelope"):
        return size_of(p, 1e22)
    if form == "task":
        return float(sigmoid(p[5:], power_sum(p[:5], N, D)))
    if form == "data":
        return float(repeated(p, N, D, U))
    return float(power_sum(p, C) if form == "compute" else power_sum(p, N, D))


def held(form: str, count: int, *, first: int = 0) -> float:
    """The share of `count` ladders whose interval holds the truth."""
    inside = 0
    for seed in range(first, first + count):
        table, truth = ladder(form, np.random.default_rng(seed))
        law = fit(form, table, draws=DRAWS, seed=seed)
        low, high = np.percentile(asked(form, law.drawn), (5, 95))
        inside += bool(low <= truth_of(form, truth) <= high)
    return inside / count
