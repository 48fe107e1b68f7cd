"""Is a learned reward being over-optimised? Its value rises, and what it stands for falls. No jax."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

SURE = 3.0  # standard errors
WINDOW = 3  # rounds that are averaged on each side


def overoptimised(rounds: Sequence[Mapping[str, Any]], samples: int) -> str | None:
    """A line where the reward has not fallen since the judge's best rounds, and the judge has; None: all is well.

    Means of 3 rounds are compared, so that one lucky round tells nothing (Gao et al., arXiv:2210.10760: the proxy
    rises with the divergence, the truth turns).

    Args:
        rounds: records of rounds, oldest first, with `reward`, `judge` and `judge_std`.
        samples: of a round.
    """
    known = [r for r in rounds if all(isinstance(r.get(k), float) and math.isfinite(r[k]) for k in ("reward", "judge"))]
    if len(known) < 2 * WINDOW:
        return None
    last = len(known) - WINDOW
    starts = range(last - WINDOW + 1)
    best = max(starts, key=lambda i: mean(known[i : i + WINDOW], "judge"))
    before, now = known[best : best + WINDOW], known[last:]
    spread = max(mean(part, "judge_std") for part in (before, now)) * math.sqrt(2 / (WINDOW * samples))
    fallen = mean(before, "judge") - mean(now, "judge")
    if mean(now, "reward") < mean(before, "reward") or fallen <= SURE * max(spread, 1e-9):
        return None
    return (
        f"over-optimised: since round {int(before[0].get('round', best))} the reward went from "
        f"{mean(before, 'reward'):.3g} to {mean(now, 'reward'):.3g} and the judge from {mean(before, 'judge'):.3g} to "
        f"{mean(now, 'judge'):.3g}; stop, raise objective.kl, or train the reward model on newer samples"
    )


def mean(rounds: Sequence[Mapping[str, Any]], key: str) -> float:
    return sum(float(r.get(key, 0.0)) for r in rounds) / len(rounds)
