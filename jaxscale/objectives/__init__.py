"""What a training step may minimise, by its name in a config (`objective.kind`)."""

from collections.abc import Callable

from jaxscale import config as cfg
from jaxscale.objectives.next_token import next_token
from jaxscale.objectives.objective import Objective
from jaxscale.objectives.policy import policy
from jaxscale.objectives.preference import preference
from jaxscale.objectives.reward import reward

OBJECTIVES: dict[str, Callable[[cfg.Config], Objective]] = {
    "next_token": next_token,
    "sft": next_token,
    "dpo": preference,
    "reward": reward,
    "raft": next_token,
    "grpo": policy,
}


def make_objective(config: cfg.Config) -> Objective:
    """The objective that a config names."""
    return OBJECTIVES[config.objective.kind](config)
