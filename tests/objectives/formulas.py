"""Each objective as a plain formula over given log-probabilities, in float64; no model, no mesh, no gradient.

`log_p`, `old` and `reference` are [rows, T]: the log-probability of each target. `mask` is true where one is trained.
TRL 1.16.0 computes the same; where it has two conventions, or another than the paper, the formula says so.
"""

from collections.abc import Mapping

import numpy as np

Array = np.ndarray
MEANS = ("ipo", "simpo", "orpo")  # of means over tokens, not of sums


def sft(log_p: Array, mask: Array) -> float:
    """Mean over all trained tokens of the batch: a long completion counts more."""
    return float(-log_p[mask].mean())


# --- preferences ------------------------------------------------------------------------------------------------


def preference(
    chosen: Mapping[str, Array],
    rejected: Mapping[str, Array],
    *,
    loss: str = "sigmoid",
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    sft: float = 0.0,
    gamma: float = 0.0,
) -> float:
    """Mean over pairs of a loss of h = (log p - log p_ref of chosen) - (the same of rejected), sums over completions.

        sigmoid  -(1 - s) log sig(beta h) - s log sig(-beta h)               DPO, with s smoothed labels (cDPO)
        robust   (-(1 - s) log sig(beta h) + s log sig(-beta h)) / (1 - 2 s) rDPO
        hinge    max(0, 1 - beta h)
        ipo      (h' - 1/(2 beta))^2                                         h' of means over tokens, not of sums
        simpo    -log sig(beta h' - gamma)                                   h' without a reference
        orpo     nll - beta log sig(log odds of chosen - log odds of rejected)

    Each of `chosen` and `rejected` has `log_p` and `mask`, and `reference` where there is one; `nll` is of all chosen
    tokens of the batch, so a long completion counts more. In TRL's orpo the prompt's tokens count in it too
    (`nll_mask`). `sft` adds its weight times the nll.
    """
    score = {side: ratio(rows, mean=loss in MEANS) for side, rows in both(chosen, rejected)}
    h = score["chosen"] - score["rejected"]
    right, wrong = (1 - label_smoothing) * log_sigmoid(beta * h), label_smoothing * log_sigmoid(-beta * h)
    if loss == "sigmoid":
        each = -right - wrong
    elif loss == "robust":
        each = (-right + wrong) / (1 - 2 * label_smoothing)
    elif loss == "hinge":
        each = np.maximum(0, 1 - beta * h)
    elif loss == "ipo":
        each = (h - 1 / (2 * beta)) ** 2
    elif loss == "simpo":
        each = -log_sigmoid(beta * h - gamma)
    else:
        odds = {side: x - np.log1p(-np.exp(x)) for side, x in score.items()}
        each, sft = -beta * log_sigmoid(odds["chosen"] - odds["rejected"]), 1.0
    nll = -chosen["log_p"][chosen.get("nll_mask", chosen["mask"])].mean()
    return float(each.mean() + sft * nll)


def preference_metrics(chosen: Mapping[str, Array], rejected: Mapping[str, Array], *, beta: float) -> dict[str, float]:
    """Rewards are beta times the sums of log p - log p_ref, for every loss with a reference, ipo too."""
    rewards = {side: beta * ratio(rows, mean=False) for side, rows in both(chosen, rejected)}
    margin = rewards["chosen"] - rewards["rejected"]
    return {
        "accuracy": float((margin > 0).mean()),
        "margin": float(margin.mean()),
        "chosen_reward": float(rewards["chosen"].mean()),
    }


def both(chosen: Mapping[str, Array], rejected: Mapping[str, Array]) -> list[tuple[str, Mapping[str, Array]]]:
    return [("chosen", chosen), ("rejected", rejected)]


def ratio(rows: Mapping[str, Array], *, mean: bool) -> Array:
    """Sum or mean over a row's trained tokens of log p - log p_ref."""
    difference = (rows["log_p"] - rows.get("reference", 0.0)) * rows["mask"]
    return difference.sum(1) / (rows["mask"].sum(1) if mean else 1)


def reward(chosen: Array, rejected: Array, *, centre: float = 0.0) -> float:
    """Bradley-Terry, and the mean square of the pair's *sum*, which is no mean of two squares."""
    return float(-log_sigmoid(chosen - rejected).mean() + centre * ((chosen + rejected) ** 2).mean())


def log_sigmoid(x: Array) -> Array:
    return -np.logaddexp(0, -x)


# --- policy gradients -------------------------------------------------------------------------------------------


def policy(
    log_p: Array,
    mask: Array,
    advantages: Array,
    *,
    old: Array,
    clip: tuple[float, float],
    reference: Array | None = None,
    kl: float = 0.0,
    kl_times_ratio: bool = False,
    sequence: bool = False,
    aggregate: str = "dapo",
    max_completion: int,
) -> float:
    """-min(r A, clip(r, 1 - low, 1 + high) A) + kl k3 of each token, r = exp(log p - old); PPO's, GRPO's, GSPO's.

    Args:
        kl_times_ratio: TRL's default: k3 is multiplied by r, through which the gradient goes too.
        sequence: r of the mean log-ratio of a row (GSPO).
        aggregate: grpo: mean of rows' means; bnpo, dapo: mean over all tokens; dr_grpo: sum over rows times
            max_completion, a constant of the config.
    """
    r = ratios(log_p, old, mask, sequence=sequence)
    advantages = advantages[:, None]
    each = -np.minimum(r * advantages, np.clip(r, 1 - clip[0], 1 + clip[1]) * advantages)
    if kl:
        each = each + kl * k3(log_p, reference) * (r if kl_times_ratio else 1)
    each = each * mask
    if aggregate == "grpo":
        return float((each.sum(1) / mask.sum(1)).mean())
    return float(each.sum() / {"dr_grpo": len(mask) * max_completion}.get(aggregate, mask.sum()))


def policy_metrics(
    log_p: Array,
    mask: Array,
    advantages: Array,
    *,
    old: Array,
    clip: tuple[float, float],
    entropy: Array,
    reference: Array | None = None,
    sequence: bool = False,
    kl_times_ratio: bool = False,
) -> dict[str, float]:
    """Means over all trained tokens of the batch, whatever aggregates the loss; GSPO's clip shares are of rows.

    A ratio beyond a clip counts only where the clip bites: below with a negative advantage, above with a positive one.
    """
    r, A = ratios(log_p, old, mask, sequence=sequence), advantages[:, None]

    def mean(x: Array) -> float:
        return float(x.mean() if x.shape[1] == 1 else x[mask].mean())

    found = {"low": mean((r < 1 - clip[0]) & (A < 0)), "high": mean((r > 1 + clip[1]) & (A > 0))}
    found["entropy"] = mean(entropy)
    if reference is not None:
        found["kl"] = mean(k3(log_p, reference) * (r if kl_times_ratio else 1))
    return found


def ratios(log_p: Array, old: Array, mask: Array, *, sequence: bool) -> Array:
    """[rows, T], or [rows, 1] of sequences."""
    difference = (log_p - old) * mask
    return np.exp(difference.sum(1, keepdims=True) / mask.sum(1, keepdims=True) if sequence else difference)


def k3(log_p: Array, reference: Array) -> Array:
    """exp(ref - log p) - (ref - log p) - 1: what it costs where the reference would not have said this."""
    difference = reference - log_p
    return np.exp(difference) - difference - 1
