"""A round of samples on the host: advantages, weights, the best of each group, what is told, and the flag."""

import numpy as np
import pytest

from jaxscale.rollouts.flag import overoptimised
from jaxscale.rollouts.kept import keep_round, kept_round
from jaxscale.rollouts.round import Round, advantages, numbers, rows_of, rows_of_step, winners

NAN = float("nan")


def made(rewards, *, lengths=None, max_new: int = 4, judged=None) -> Round:
    """Prompts [9, 8 + p] of two tokens; sample i is the tokens 10 i, 10 i + 1, ..."""
    rewards = np.array(rewards, float)
    R = rewards.size
    lengths = np.full(R, 3) if lengths is None else np.array(lengths)
    tokens = 10 * np.arange(R)[:, None] + np.arange(max_new) + 10
    prompts = [[9, 8 + i // rewards.shape[1]] for i in range(R)]
    return Round(
        3, prompts, tokens.astype(np.int32), -0.5 * np.ones((R, max_new), np.float32), lengths,
        lengths < max_new, rewards, None if judged is None else np.array(judged, float),
    )  # fmt: skip


def test_advantages_by_hand():
    rewards = np.array([[1.0, 0, 0, 1], [2, 2, 2, 2], [0, 3, NAN, 3]])
    found = advantages(rewards, "group")
    spread = np.std([1, 0, 0, 1], ddof=1)
    np.testing.assert_allclose(found[0], np.array([0.5, -0.5, -0.5, 0.5]) / (spread + 1e-4), rtol=1e-6)
    assert (found[1] == 0).all()
    np.testing.assert_allclose(found[2], np.array([-2, 1, 0, 1]) / (np.std([0, 3, 3], ddof=1) + 1e-4), rtol=1e-6)
    np.testing.assert_allclose(advantages(rewards, "none")[2], [-2, 1, 0, 1])
    every = rewards[np.isfinite(rewards)]
    np.testing.assert_allclose(
        advantages(rewards, "batch")[0], np.array([0.5, -0.5, -0.5, 0.5]) / (every.std(ddof=1) + 1e-4), rtol=1e-6
    )


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_or_missing_rewards_have_an_advantage_of_exactly_zero(scale):
    tenths = np.full((2, 3), 0.1)  # whose mean differs from .1 by a rounding
    assert (advantages(tenths, scale) == 0).all()
    assert (advantages(np.full((2, 3), NAN), scale) == 0).all()
    assert (advantages(np.array([[NAN, 5.0, NAN]]), scale) == 0).all()


def test_rows_hold_prompt_and_sample_with_weights_at_the_samples_targets():
    one = made([[1, 0], [0, 1]], lengths=[3, 1, 4, 2])
    columns = rows_of(one, np.array([1, 2, -1]), 8, aggregate="grpo", extra={"advantages": np.array([5, 6, 7, 8.0])})
    assert columns["tokens"].tolist() == [[9, 8, 20, 0, 0, 0, 0, 0], [9, 9, 30, 31, 32, 33, 0, 0], [0] * 8]
    assert columns["targets"].tolist() == [[8, 20, 0, 0, 0, 0, 0, 0], [9, 30, 31, 32, 33, 0, 0, 0], [0] * 8]
    assert columns["weights"].tolist() == [[0, 1, 0, 0, 0, 0, 0, 0], [0, 0.25, 0.25, 0.25, 0.25, 0, 0, 0], [0] * 8]
    assert columns["advantages"].tolist() == [[0, 6, *[0] * 6], [0, 7, 7, 7, 7, 0, 0, 0], [0] * 8]
    assert columns["old"][0].tolist() == [0, -0.5, *[0] * 6]
    assert rows_of(one, np.array([0]), 8)["weights"].sum() == 3


def test_winners_are_the_best_of_their_groups_and_better_than_the_mean():
    rewards = np.array([[0, 1, 1], [0, 0, 0], [1, 1, 1], [NAN, NAN, NAN], [NAN, 0.9, 0.1]])
    assert winners(rewards).tolist() == [1, 6, 13]
    assert not len(winners(np.ones((3, 2))))
    assert not len(winners(np.full((3, 2), NAN)))
    best = winners(rewards)
    assert rows_of_step(best, 0, 4).tolist() == [1, 6, 13, 1]
    assert rows_of_step(best, 1, 4).tolist() == [6, 13, 1, 6]
    assert rows_of_step(best[:0], 0, 2).tolist() == [-1, -1]


def test_what_is_told_of_a_round():
    one = made([[1, 0], [0.5, 0.5], [NAN, 1]], lengths=[3, 4, 4, 4, 1, 1], judged=[[1, 1], [0, 0], [0, 1]])
    one.tokens[5] = one.tokens[4]
    found = numbers(one)
    assert found["reward"] == pytest.approx(np.mean([1, 0, 0.5, 0.5, 1]))
    assert found["no_reward"] == 1
    assert found["best"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["without_signal"] == pytest.approx(2 / 3)
    assert found["cut_off"] == pytest.approx(0.5)
    assert found["distinct"] == pytest.approx(5 / 6)
    assert found["judge"] == pytest.approx(0.5)


def test_a_kept_round_is_read_again_and_another_or_a_damaged_one_is_not(tmp_path):
    one = made([[1, 0], [NAN, 1]], judged=[[1, 0], [0, 1]])
    keep_round(tmp_path, one)
    again = kept_round(tmp_path, 3)
    assert again is not None
    assert again.prompts == one.prompts
    for name in ("tokens", "log_probs", "lengths", "stopped", "rewards", "judged"):
        np.testing.assert_array_equal(getattr(again, name), getattr(one, name))
    assert kept_round(tmp_path, 4) is None
    (tmp_path / "round.npz").write_bytes((tmp_path / "round.npz").read_bytes()[:200])
    assert kept_round(tmp_path, 3) is None


def rounds(rewards, judged, std=0.5):
    return [
        {"round": float(i), "reward": float(r), "judge": float(j), "judge_std": std}
        for i, (r, j) in enumerate(zip(rewards, judged, strict=True))
    ]


def test_the_flag_is_raised_where_the_reward_rises_and_the_judge_falls():
    up, down = np.linspace(0, 3, 20), np.concatenate([np.linspace(0.2, 0.5, 8), np.linspace(0.5, 0.05, 12)])
    assert "over-optimised" in (overoptimised(rounds(up, down), 256) or "")
    assert overoptimised(rounds(up, np.linspace(0.2, 0.8, 20)), 256) is None  # both rise
    assert overoptimised(rounds(down, down), 256) is None  # both fall: no reward is over-optimised
    assert overoptimised(rounds(up[:4], down[:4]), 256) is None  # too early to tell


def test_noise_alone_raises_no_flag():
    """200 runs of 60 rounds whose judge stands still: the largest of many means must not look like a summit."""
    rng = np.random.default_rng(0)
    raised = 0
    for _ in range(200):
        judged = 0.5 + rng.normal(0, 0.5 / np.sqrt(256), 60)
        raised += overoptimised(rounds(np.linspace(0, 1, 60), judged), 256) is not None
    assert raised <= 10
