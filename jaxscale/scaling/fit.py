"""Fitting a curve: starts by variable projection, scipy's least squares, and many weighted fits side by side.

The objective is Hoffmann's (arXiv:2203.15556, eq. 3): the Huber loss, delta 1e-3, of the residuals of log L. Dims: S
problems, n runs, p parameters.
"""

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy.optimize import least_squares, nnls

from jaxscale.scaling.curves import LEAST, PowerSum, Repeated, Sigmoid

Array = np.ndarray
DELTA = 1e-3  # of log L; residuals above it count by their size
SMOOTH = 1.0  # a delta that no residual of log L exceeds: least squares
EXPONENTS = np.geomspace(0.03, 1.5, 14)
RATES = (4.0, 15.0, 60.0)  # rD and rN, where a fit begins
BEST = 8  # starts that are refined
TRIAL = 60  # evaluations of each start; the best one has more
STEPS = 60  # of the fits side by side: most end before
CHUNK = 4_000_000  # numbers of a Jacobian that is held at one time


class Curve(Protocol):
    """A function of parameters inside [S, p]: its values [S, n] and derivatives [S, n, p]. `bounds` is [2, p]."""

    @property
    def bounds(self) -> Array: ...

    def __call__(self, inside: Array) -> tuple[Array, Array]: ...


# --- starts ------------------------------------------------------------------------------------------------------


def starts(curve: PowerSum, y: Array, *, best: int = BEST, exponents: Array = EXPONENTS) -> Array:
    """The `best` starts [best, p] of log losses y [n]: for given exponents the law is linear in E, A and B."""
    candidates = []
    for alphas in itertools.product(exponents, repeat=curve.exponents):
        candidates.append(projected(curve, y, np.array(alphas)))
    candidates.sort(key=lambda one: one[0])
    return np.stack([inside for _, inside in candidates[:best]])


def projected(curve: PowerSum, y: Array, alphas: Array) -> tuple[float, Array]:
    """(squared relative error, parameters inside) of the best E, A, B for given exponents: non-negative, linear."""
    columns = curve.terms(alphas) * np.exp(-y)[:, None]  # rows divided by L: errors are relative
    coefficients, error = nnls(columns, np.ones(len(y)))
    return error, curve.start(coefficients, alphas, LEAST * float(np.exp(y.min())))


def repeated_starts(curve: Repeated, y: Array, *, best: int = BEST) -> Array:
    """As `starts`, with tokens worth what each rate of decay makes of them."""
    candidates = []
    for rD in RATES:
        worth = curve.log_U + np.log1p(rD * -np.expm1(-curve.repeats / rD))
        plain = PowerSum(np.stack([curve.log_N, worth], -1), curve.centre)
        for alphas in itertools.product(EXPONENTS[::2], repeat=2):
            error, inside = projected(plain, y, np.array(alphas))
            candidates += [(error, np.append(inside, np.log([rD, rN]))) for rN in RATES[:2]]
    candidates.sort(key=lambda one: one[0])
    return np.stack([inside for _, inside in candidates[:best]])


def sigmoid_starts(curve: Sigmoid, y: Array, *, best: int = BEST) -> Array:
    """As `starts`: for given k and x0 accuracy is linear in a and b. a below 0: accuracy falls with the loss."""
    candidates = []
    z = (curve.x - curve.mean) / curve.spread
    for k, x0 in itertools.product(np.geomspace(0.3, 20, 12), np.linspace(z.min() - 0.5, z.max() + 0.5, 16)):
        s = 1 / (1 + np.exp(np.clip(-k * (z - x0), -500, 500)))
        columns = np.stack([s, np.ones_like(s)], 1)
        (a, b), *_ = np.linalg.lstsq(columns, y, rcond=None)
        error = float(np.sum((columns @ [a, b] - y) ** 2)) + (1e3 if a > 0 else 0.0)
        candidates.append((error, np.array([min(a, -1e-6), b, np.log(k), x0])))
    candidates.sort(key=lambda one: one[0])
    return np.stack([inside for _, inside in candidates[:best]])


# --- one fit -----------------------------------------------------------------------------------------------------


def fit_one(curve: Curve, y: Array, begin: Array, *, delta: float = DELTA) -> tuple[Array, float]:
    """(parameters inside [p], objective: the sum of Huber losses) of the best of the starts `begin` [k, p]."""
    ends = [refine(curve, y, one, delta=delta, evaluations=TRIAL) for one in begin]
    best = min(ends, key=lambda end: end[1])
    return min(best, refine(curve, y, best[0], delta=delta), key=lambda end: end[1])


def refine(
    curve: Curve, y: Array, begin: Array, *, delta: float = DELTA, evaluations: int = 400
) -> tuple[Array, float]:
    """The minimum that is reached from one start [p]: scipy's trust region with the analytic Jacobian.

    First of least squares, then with residuals from `delta` on counting by their size: far from the minimum all of
    them do, and the trust region shrinks on their kinks.
    """
    low, high = curve.bounds
    inside = begin
    for scale in (SMOOTH, delta) if delta < SMOOTH else (delta,):
        minimum = least_squares(
            lambda inside: curve(inside[None])[0][0] - y,
            np.clip(inside, low + 1e-3, high - 1e-3),
            jac=lambda inside: curve(inside[None])[1][0],
            bounds=(low, high),
            loss="huber",
            f_scale=scale,
            x_scale="jac",
            ftol=1e-15,
            xtol=1e-15,
            gtol=1e-15,
            max_nfev=evaluations,
        )
        inside = minimum.x
    return inside, float(minimum.cost)


# --- many fits ---------------------------------------------------------------------------------------------------


def fit_many(curve: Curve, y: Array, weights: Array, begin: Sequence[Array] | Array, *, delta: float = DELTA) -> Array:
    """Parameters inside [S, p] of S fits whose runs count by weights [S, n]; each from all of the starts [k, p].

    Levenberg and Marquardt's steps on the reweighted residuals, of all problems at one time: the same minima as
    `refine`, which `tests/scaling/test_fit.py` compares.

    Args:
        y: log losses [n], or of each problem its own [S, n].
    """
    begin = np.atleast_2d(begin)
    y = np.broadcast_to(y, weights.shape)
    each = max(1, CHUNK // (weights.shape[1] * begin.shape[1] * len(begin)))
    parts = [slice(i, i + each) for i in range(0, len(weights), each)]
    return np.concatenate([_fit_many(curve, y[part], weights[part], begin, delta) for part in parts])


def _fit_many(curve: Curve, y: Array, weights: Array, begin: Array, delta: float) -> Array:
    count, k = len(weights), len(begin)
    inside, cost = descend(curve, np.repeat(y, k, 0), np.repeat(weights, k, 0), np.tile(begin, (count, 1)), delta, 15)
    best = cost.reshape(count, k).argmin(1) + k * np.arange(count)
    return descend(curve, y, weights, inside[best], delta, STEPS)[0]


def descend(curve: Curve, y: Array, weights: Array, inside: Array, delta: float, steps: int) -> tuple[Array, Array]:
    """At most so many steps down from `inside` [S, p]: (parameters, objectives [S])."""
    damping = np.full(len(y), 1e-3)
    value, slope = curve(inside)
    cost = huber(value - y, weights, delta)
    live = np.arange(len(y))
    for _ in range(steps):
        r, J = (value - y)[live], slope[live]
        v = weights[live] * np.minimum(1.0, delta / np.maximum(np.abs(r), 1e-300))
        gradient = np.einsum("snp,sn->sp", J, v * r)
        hessian = np.einsum("snp,snq->spq", J * v[..., None], J)
        diagonal = np.einsum("spp->sp", hessian)
        ridge = damping[live, None] * diagonal + 1e-9 * diagonal.max(1, keepdims=True) + 1e-300
        step = np.linalg.solve(hessian + ridge[..., None] * np.eye(J.shape[2]), gradient[..., None])[..., 0]
        trial = np.clip(inside[live] - np.clip(step, -2, 2), *curve.bounds)
        new_value, new_slope = curve(trial)
        new_cost = huber(new_value - y[live], weights[live], delta)
        better = new_cost < cost[live]
        gain = np.where(better, cost[live] - new_cost, 0.0)
        taken = live[better]
        inside[taken], value[taken], slope[taken] = trial[better], new_value[better], new_slope[better]
        ended = (better & (gain < 1e-7 * cost[live])) | (damping[live] > 1e8)
        cost[taken] = new_cost[better]
        damping[live] = np.where(better, damping[live] / 5, damping[live] * 8).clip(1e-12, 1e9)
        live = live[~ended]
        if not len(live):
            break
    return inside, cost


def huber(r: Array, weights: Array, delta: float) -> Array:
    """Sum over runs [S] of Huber losses of residuals [S, n]."""
    size = np.abs(r)
    return (weights * np.where(size <= delta, r * r / 2, delta * (size - delta / 2))).sum(-1)
