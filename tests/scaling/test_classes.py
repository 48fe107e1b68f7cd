"""The kinds of curves, on synthetic curves whose kind is known."""

import numpy as np
import pytest

from jaxscale.scaling.classes import Point, classify

FLOPS = np.array([8.7e9, 4e10, 1.3e11, 4e11, 1.2e12, 3.6e12])
EXAMPLES = 256
CURVES = [
    ("flat", 0.0, (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
    ("flat", 0.5, (0.5, 0.5, 0.5, 0.5, 0.5, 0.5)),
    ("flat", 0.25, (0.9, 0.9, 0.9, 0.9, 0.9, 0.9)),
    ("smooth", 0.0, (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)),
    ("smooth", 0.5, (0.62, 0.72, 0.8, 0.86, 0.92, 0.96)),
    ("smooth", 0.0, (0.2, 0.5, 0.8, 0.9, 0.95, 0.97)),
    ("emergent", 0.0, (0.0, 0.0, 0.0, 0.0, 0.0, 0.8)),
    ("emergent", 0.0, (0.0, 0.0, 0.0, 0.0, 1.0, 1.0)),
    ("emergent", 0.5, (0.5, 0.5, 0.5, 0.5, 0.75, 1.0)),
    ("inverse", 0.5, (0.6, 0.55, 0.5, 0.42, 0.34, 0.25)),
    ("inverse", 0.5, (0.5, 0.5, 0.48, 0.4, 0.25, 0.1)),
    ("U-shaped", 0.5, (0.35, 0.2, 0.08, 0.1, 0.6, 0.95)),
    ("not correlated", 0.5, (0.3, 0.7, 0.35, 0.7, 0.3, 0.65)),
    ("not correlated", 0.0, (0.5, 0.2, 0.6, 0.1, 0.55, 0.2)),
]


def drawn(rng: np.random.Generator, truth: tuple[float, ...]) -> list[Point]:
    right = rng.binomial(EXAMPLES, truth) / EXAMPLES
    return [Point(f, v, EXAMPLES) for f, v in zip(FLOPS.tolist(), right.tolist(), strict=True)]


@pytest.mark.parametrize(("kind", "chance", "truth"), CURVES, ids=range(len(CURVES)))
def test_a_kind_is_found_in_95_of_100_redraws(kind: str, chance: float, truth: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    found = [classify(drawn(rng, truth), chance).kind for _ in range(200)]
    assert found.count(kind) >= 190, {k: found.count(k) for k in sorted(set(found))}


def of(values: list[float], **options: float) -> list[Point]:
    return [Point(f, v, EXAMPLES, **options) for f, v in zip(FLOPS.tolist(), values, strict=True)]


def test_the_curves_that_were_measured() -> None:
    """On bytes, six sizes from 8 to 64 wide: accuracies as the verdicts were made for."""
    assert classify(of([0, 0, 0, 0, 1, 1]), 0.0).kind == "emergent"
    assert classify(of([0, 0, 0.13, 0.12, 0.27, 1]), 0.0).kind == "emergent"
    assert classify(of([0.21, 0.09, 0.05, 0.09, 1, 1]), 0.5).kind == "U-shaped"
    assert classify(of([0.57, 0.61, 0.59, 0.55, 0.45, 0.26]), 0.5).kind == "inverse"
    assert classify(of([0.79, 0.79, 0.80, 0.82, 0.86, 0.92]), 1 / 3).kind == "smooth"
    assert classify(of([0.45, 0.5, 0.57, 0.5, 0.48, 0.52]), 0.5).kind == "flat"


def test_a_continuous_metric_is_smooth_or_has_a_transition() -> None:
    induction = classify(of([-3.47, -3.34, -3.24, -3.27, -0.03, 0.0], deviation=1.0), None)
    chain = classify(of([-2.71, -1.49, -0.88, -0.80, -0.29, -0.02], deviation=1.0), None)
    assert (induction.kind, chain.kind) == ("emergent", "smooth")


def test_seeds_that_disagree_are_told() -> None:
    one, two = of([0, 0, 0, 0, 0, 1]), of([0, 0, 0, 0, 1, 1])
    found = classify([*one, *two], 0.0)
    assert found.seeds == "seeds disagree at 1.2e+12 FLOPs (0.00, 1.00)"
    assert found.kind == "emergent"
    assert "seeds disagree" in str(found)
    assert not classify([*one, *one], 0.0).seeds


def test_every_verdict_says_up_to_where() -> None:
    assert "flat up to 3.6e+12 FLOPs" in str(classify(of([0.5] * 6), 0.5))


def test_figures_of_a_straight_line_and_of_a_step() -> None:
    line, step = classify(of([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), 0.0), classify(of([0, 0, 0, 0, 0, 1]), 0.0)
    assert line.linearity == pytest.approx(1.0)
    assert line.breakthrough == pytest.approx(5.0)
    assert step.breakthrough == 100.0
    assert step.discontinuity == pytest.approx(1.0)
    assert classify(of([0.6, 0.5, 0.4, 0.3, 0.2, 0.1]), 0.5).linearity == pytest.approx(-1.0)


def test_what_has_no_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="a curve of 3 rungs has no kind; give 4 or more"):
        classify(of([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])[:3], 0.0)
    with pytest.raises(ValueError, match="a value that is no number"):
        classify(of([0.1, 0.2, float("nan"), 0.4, 0.5, 0.6]), 0.0)
