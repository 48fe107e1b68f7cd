"""The best of n by several samples, without bias."""

import pytest

from jaxscale.rollouts.estimates import best_of, mean, powers


def test_the_best_of_n_is_the_mean_over_all_choices():
    rewards = [3.0, 1.0, 2.0, 2.0]
    pairs = [max(a, b) for i, a in enumerate(rewards) for b in rewards[i + 1 :]]
    assert best_of(rewards, 1) == pytest.approx(2.0)
    assert best_of(rewards, 2) == pytest.approx(sum(pairs) / len(pairs))
    assert best_of(rewards, 4) == 3.0
    assert list(powers(9)) == [1, 2, 4, 8]
    assert mean([]) is None
