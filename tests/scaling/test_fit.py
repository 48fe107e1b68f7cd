"""The curves' derivatives, the one minimum that every start reaches, and many fits against one."""

import numpy as np
import pytest
from scaling.coverage import asked, held, truth_of
from scaling.ladders import EPOCH, MUENNIGHOFF, ROWS, ladder, size_of

from jaxscale.scaling import fit as fitting
from jaxscale.scaling.curves import PowerSum, Repeated, Sigmoid, power_sum, repeated
from jaxscale.scaling.law import Point
from jaxscale.scaling.laws import FORMS, best_size, fit

RNG = np.random.default_rng
SMOOTH = ("compute", "chinchilla", "data", "task")


def sizes():
    N = np.repeat(np.geomspace(1e7, 1e10, 5), 4)
    return N, N * np.tile([5.0, 20.0, 80.0, 320.0], 5)


CURVES = {
    "compute": (lambda N, D: PowerSum.of(N * D), [0.5, -0.3, -1.2]),
    "chinchilla": (lambda N, D: PowerSum.of(N, D), [0.6, -0.7, -0.8, -1.0, -1.1]),
    "data": (lambda N, D: Repeated.of(N, D, D / 7), [0.6, -0.7, -0.8, -1.0, -1.1, 2.0, 1.5]),
    "data, small models": (lambda N, D: Repeated.of(N, D, D / 7), [0.6, -0.7, -0.8, -1.0, -1.4, 0.2, 0.5]),
    "task": (lambda N, D: Sigmoid.of(np.linspace(0.5, 1.5, 20)), [-0.7, 0.9, 1.0, 0.3]),
}


@pytest.mark.parametrize("name", CURVES)
def test_the_jacobian_is_that_of_differences(name):
    make, inside = CURVES[name]
    curve, at, h = make(*sizes()), np.array(inside), 1e-6
    steps = h * np.eye(len(at))
    wanted = (curve(at + steps)[0] - curve(at - steps)[0]).T / (2 * h)
    np.testing.assert_allclose(curve(at[None])[1][0], wanted, atol=2e-8)


@pytest.mark.parametrize("form", ["compute", "chinchilla"])
def test_noise_free_data_come_back_from_any_of_fifty_starts(form):
    """Each start is a pair of exponents of the grid, drawn; its E, A and B follow by non-negative least squares."""
    table, truth = ladder(form)
    curve = PowerSum.of(table.flops) if form == "compute" else PowerSum.of(table.parameters, table.tokens)
    y, rng = np.log(table.loss), RNG(0)
    for _ in range(50):
        alphas = np.exp(rng.uniform(*np.log(fitting.EXPONENTS[[0, -1]]), curve.exponents))
        _, begin = fitting.projected(curve, y, alphas)
        inside, _ = fitting.refine(curve, y, begin)
        np.testing.assert_allclose(curve.outside(inside[None])[0], truth, rtol=1e-6, err_msg=f"from {alphas}")


@pytest.mark.parametrize("form", ["data", "task"])
def test_other_noise_free_laws_come_back(form):
    table, truth = ladder(form)
    law = fit(form, table, draws=10)
    np.testing.assert_allclose(law.best, truth, rtol=1e-5)


@pytest.mark.parametrize("form", ["isoflop", "envelope"])
def test_the_best_size_of_noise_free_runs(form):
    """With alpha = beta parabolas are right; an envelope reads sizes that were run, 1.25 apart."""
    table, truth = ladder(form)
    law = fit(form, table, draws=20)
    best = float(FORMS[form].size(law.best, 1e20))
    assert best == pytest.approx(size_of(truth, 1e20), rel={"isoflop": 1e-5, "envelope": 0.12}[form])
    loss = float(FORMS[form].value(law.best, Point(best, 1e20 / 6 / best, 1e20)))
    assert loss == pytest.approx(float(power_sum(truth, best, 1e20 / 6 / best)), rel=5e-3)


def test_the_best_size_is_where_the_loss_is_least():
    for C in (1e20, 5.76e23):
        assert float(best_size(EPOCH, C)) == pytest.approx(size_of(EPOCH, C), rel=1e-9)


def test_many_fits_are_each_the_one_fit():
    """A run that is drawn twice counts twice: the same minimum as of a table with the run in it twice."""
    table, _ = ladder("chinchilla", RNG(3))
    curve, y = PowerSum.of(table.parameters, table.tokens), np.log(table.loss)
    begin = fitting.starts(curve, y)
    weights = RNG(0).multinomial(len(y), np.full(len(y), 1 / len(y)), 20).astype(float)
    found = fitting.fit_many(curve, y, weights, begin)
    costs = fitting.huber(curve(found)[0] - y, weights, fitting.DELTA)
    for w, cost in zip(weights.astype(int), costs, strict=True):
        twice = PowerSum(np.repeat(curve.logs, w, 0), curve.centre)
        _, wanted = fitting.fit_one(twice, np.repeat(y, w), begin)
        assert cost == pytest.approx(wanted, rel=2e-2)
        assert cost > wanted * (1 - 1e-9)


def test_data_seen_once_is_worth_itself():
    """With no token seen twice and models that are not too large, the law is chinchilla's."""
    N, D = 1e9, 4e10
    assert float(repeated(MUENNIGHOFF, N, D, np.nan)) == pytest.approx(
        float(power_sum(MUENNIGHOFF[:5], N, D)), rel=1e-12
    )
    worth = [float(repeated(MUENNIGHOFF, N, D, D / epochs)) for epochs in (1, 2, 4, 16, 64)]
    assert worth == sorted(worth)


@pytest.mark.parametrize("form", ROWS)
def test_the_same_table_gives_the_same_law(form):
    table, _ = ladder(form, RNG(1))
    assert fit(form, table, draws=20) == fit(form, table, draws=20)


@pytest.mark.parametrize("form", ROWS)
def test_intervals_hold_the_truth(form):
    """Of 40 ladders; with 36 expected, fewer than 31 are as likely as 2 in 100."""
    assert held(form, 40) >= 31 / 40


@pytest.mark.slow
@pytest.mark.parametrize("form", ROWS)
def test_intervals_hold_the_truth_of_two_hundred_ladders(form):
    assert 0.80 <= held(form, 200) <= 0.97


def test_too_narrow_an_interval_would_be_seen():
    """A tenth of the interval holds the truth far less often: the coverage test can fail."""
    inside = 0
    for seed in range(20):
        table, truth = ladder("compute", RNG(seed))
        law = fit("compute", table, draws=100)
        values = asked("compute", law.drawn)
        low, high = np.median(values) + 0.1 * (np.percentile(values, (5, 95)) - np.median(values))
        inside += bool(low <= truth_of("compute", truth) <= high)
    assert inside < 10
