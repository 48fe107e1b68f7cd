"""What a training step may minimise, by its name in a config (`objective.kind`)."""

from collections.abc import Callable

from jaxscale import config as cfg
from jaxscale.objectives.next_token import next_token
from jaxscale.objectives.objective import Objective

OBJECTIVES: dict[str, Callable[[cfg.Config], Objective]] = {"next_token": next_token}


def make_objective(config: cfg.Config) -> Objective:
    """The objective that a config names."""
    return OBJECTIVES[config.objective.kind](config)
