"""A round of samples as rows of a batch: advantages, weights, the best of each group. On the host, no jax.

Dims: P prompts of a round, G samples of each, R = P G rows, T tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SMALLEST = 1e-4  # added to a standard deviation, as TRL does


@dataclass(frozen=True, eq=False)
class Round:
    """Samples and what they are worth, the same on every process.

    Attributes:
        number: of the round, from 0.
        prompts: tokens of each row's prompt; G rows in turn have the same.
        tokens, log_probs: [R, max_new] the samples; lengths: [R] how many of each count; stopped: [R] bool.
        rewards: [P, G]; NaN: no reward.
        judged: [P, G] by what the reward is not trained on; None: nobody judges.
    """

    number: int
    prompts: Sequence[Sequence[int]]
    tokens: np.ndarray
    log_probs: np.ndarray
    lengths: np.ndarray
    stopped: np.ndarray
    rewards: np.ndarray
    judged: np.ndarray | None = None


def advantages(rewards: np.ndarray, scale: str) -> np.ndarray:
    """How much better a sample is than its group, [P, G]: (r - mean) / (std + 1e-4), as `scale` says.

    GRPO (arXiv:2402.03300, 4.1); without the division Dr. GRPO (arXiv:2503.20783). A sample without a reward has 0 and
    counts in no mean; a group of equal rewards has exactly 0.

    Args:
        scale: `group` divides by the group's standard deviation (of a sample, ddof 1), `batch` by that of all, `none`
            by nothing.
    """
    known = np.isfinite(rewards)
    values = np.where(known, rewards, 0.0).astype(np.float64)
    count = known.sum(1, keepdims=True)
    centred = np.where(known, values - values.sum(1, keepdims=True) / np.maximum(count, 1), 0)
    lowest = np.where(known, values, np.inf).min(1, keepdims=True)
    highest = np.where(known, values, -np.inf).max(1, keepdims=True)
    centred = np.where(highest > lowest, centred, 0)
    if scale == "group":
        spread = np.sqrt((centred**2).sum(1, keepdims=True) / np.maximum(count - 1, 1))
    elif scale == "batch":
        every = values[known]
        spread = np.full((1, 1), every.std(ddof=1) if every.size > 1 else 0.0)
    else:
        return centred.astype(np.float32)
    return (centred / (spread + SMALLEST)).astype(np.float32)


def rows_of(
    round_: Round,
    chosen: np.ndarray,
    seq_len: int,
    *,
    aggregate: str = "dapo",
    extra: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Columns [rows, T] of some samples, one a row: prompt, sample, padding. -1 in `chosen` is a row of padding.

    The targets that a sample's tokens are have weights: 1, or with `grpo` one over the sample's length, so that their
    sum is the number of samples.

    Args:
        extra: column -> [R], put at each of a sample's targets.
    """
    shape = (len(chosen), seq_len)
    columns = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets")}
    columns |= {name: np.zeros(shape, np.float32) for name in ("weights", "old", *(extra or {}))}
    for row, i in enumerate(chosen):
        if i < 0:
            continue
        prompt, n = round_.prompts[i], int(round_.lengths[i])
        ids = np.concatenate([np.asarray(prompt, np.int32), round_.tokens[i, :n]])
        span = slice(len(prompt) - 1, len(ids) - 1)
        columns["tokens"][row, : len(ids)] = ids
        columns["targets"][row, : len(ids) - 1] = ids[1:]
        columns["weights"][row, span] = 1 / n if aggregate == "grpo" else 1
        columns["old"][row, span] = round_.log_probs[i, :n]
        for name, values in (extra or {}).items():
            columns[name][row, span] = values[i]
    return columns


def winners(rewards: np.ndarray) -> np.ndarray:
    """Row numbers of the best sample of each group, where it is better than the round's mean (RAFT, arXiv:2304.06767).

    Of equal ones the first. A round of equal rewards has none.
    """
    known = np.isfinite(rewards)
    if not known.any():
        return np.zeros(0, np.int64)
    mean = rewards[known].mean()
    best = np.where(known, rewards, -np.inf).argmax(1)
    value = np.where(known, rewards, -np.inf).max(1)
    rows = np.arange(len(rewards)) * rewards.shape[1] + best
    return rows[value > mean]


def numbers(round_: Round) -> dict[str, float]:
    """The metrics of a round.

    `without_signal`: the share of groups whose rewards are all equal or missing; `cut_off`: of samples that no stop
    token ends; `distinct`: of samples that differ from those before them in their group.
    """
    rewards, (P, G) = round_.rewards, round_.rewards.shape
    known = rewards[np.isfinite(rewards)]
    signal = [len(set(row[np.isfinite(row)].tolist())) > 1 for row in rewards]
    texts = [tuple(t[:n].tolist()) for t, n in zip(round_.tokens, round_.lengths, strict=True)]
    distinct = sum(len(set(texts[p * G : (p + 1) * G])) for p in range(P))
    metrics = {
        "reward": float(known.mean()) if known.size else float("nan"),
        "reward_std": float(known.std(ddof=1)) if known.size > 1 else 0.0,
        "best": float(np.mean([row[np.isfinite(row)].max() for row in rewards if np.isfinite(row).any()] or [np.nan])),
        "no_reward": float(rewards.size - known.size),
        "without_signal": 1 - sum(signal) / P,
        "length": float(round_.lengths.mean()),
        "cut_off": float(1 - round_.stopped.mean()),
        "distinct": distinct / (P * G),
    }
    if round_.judged is not None:
        judged = round_.judged[np.isfinite(round_.judged)]
        metrics["judge"] = float(judged.mean()) if judged.size else float("nan")
        metrics["judge_std"] = float(judged.std(ddof=1)) if judged.size > 1 else 0.0
    return metrics


def rows_of_step(best: np.ndarray, update: int, size: int) -> np.ndarray:
    """Of a round's winners those of an update's step, `size` rows in turn; -1 fills up where there are none."""
    if not len(best):
        return np.full(size, -1)
    return best[(np.arange(size) + update * size) % len(best)]
