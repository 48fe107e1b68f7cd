"""How uncertain a law is: its runs are drawn again, with replacement, and it is fitted to each draw.

A pairs bootstrap (Efron & Tibshirani 1993, 9.5): it resamples runs and not residuals, and a rung with all of its seeds.
"""

import numpy as np

from jaxscale.scaling.problems import Problem

Array = np.ndarray
DRAWS = 300
TRIES = 20  # times as many are drawn at most, where few of them can be fitted
INTERVAL = (5.0, 95.0)  # percentiles: 90 %


def draw_weights(clusters: Array, strata: Array, distinct: int, count: int, rng: np.random.Generator) -> Array:
    """How often each run counts in each draw [count, n]; at least `distinct` rungs of each stratum are in each.

    A stratum that has no more rungs than that needs all of them but one.
    """
    weights = np.zeros((count, len(clusters)))
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        rungs, which = np.unique(clusters[rows], return_inverse=True)
        k = len(rungs)
        least = min(distinct, max(1, k - 1))
        for i in range(count):
            for _ in range(1000):
                times = np.bincount(rng.integers(0, k, k), minlength=k)
                if (times > 0).sum() >= least:
                    break
            weights[i, rows] = times[which]
    return weights


def smooth_weights(clusters: Array, strata: Array, count: int, rng: np.random.Generator) -> Array:
    """Weights of each run in each draw [count, n], none of them 0: Dirichlet's (Rubin 1981, the Bayesian bootstrap).

    For forms of which each stratum has a handful of runs: whole draws often lack what a parabola needs.
    """
    weights = np.zeros((count, len(clusters)))
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        rungs, which = np.unique(clusters[rows], return_inverse=True)
        weights[:, rows] = len(rungs) * rng.dirichlet(np.ones(len(rungs)), count)[:, which]
    return weights


def bootstrap(problem: Problem, *, count: int = DRAWS, seed: int = 0) -> tuple[Array, float]:
    """(parameters [count, q] of `count` draws, the share of draws that could be fitted).

    Raises:
        ValueError: hardly any draw can be fitted.
    """
    rng = np.random.default_rng(seed)
    draws: list[Array] = []
    kept = tried = 0
    while kept < count and tried < TRIES * count:
        if problem.smooth:
            weights = smooth_weights(problem.clusters, problem.strata, count, rng)
        else:
            weights = draw_weights(problem.clusters, problem.strata, problem.distinct, count, rng)
        here = problem.many(weights)
        good = here[np.isfinite(here).all(1)]
        draws.append(good)
        kept, tried = kept + len(good), tried + count
    if kept < count:
        raise ValueError(
            f"only {kept} of {tried} draws of the runs can be fitted, so the law has no interval; give it more runs"
        )
    return np.concatenate(draws)[:count], kept / tried
