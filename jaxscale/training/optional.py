"""What a config turns on and off in a state: judging losses, replicas, and the averaged parameters.

A checkpoint is read with the average that it has. One that is wanted now and was not saved is started; one that is not
wanted any more is left.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale import config as cfg
from jaxscale.training.average import missing
from jaxscale.training.regroup import regrouped
from jaxscale.training.spikes import WINDOW
from jaxscale.training.step import TrainState

PyTree = Any


def parts_wanted(
    state: TrainState, config: cfg.Config, saved: dict[str, Any], say: Callable[[str], None]
) -> TrainState:
    """A state as it was read, with the replicas and the average that the config asks for. What is turned on is said.

    Args:
        saved: the checkpoint's config.
    """
    step = int(state.step)
    state = regrouped(state, config.mesh.replicas if config.outer.every else 0, saved, say)
    if config.guard.spike and not saved.get("guard", {}).get("spike"):
        more = max(0, WINDOW - int(state.losses.steps.min()))
        when = f"after {more} steps more" if more else "at once"
        say(f"guard.spike is on since step {step}: losses are judged {when}")
    decay = config.optimizer.ema
    if not decay:
        return state._replace(ema={})
    if not state.ema:
        say(f"optimizer.ema is on since step {step}: the average starts from the parameters of that step")
    return state._replace(ema=fitting_sum(state, decay, saved.get("optimizer", {}).get("ema")))


def fitting_sum(state: TrainState, decay: float, saved_decay: float | None) -> PyTree:
    """The sum of `training.average` with the weight that it has to have at this step, which follows from the decay.

    One that was kept with another decay is scaled; without one the parameters stand for all steps before.
    """
    held = 1 - missing(decay, state.step)
    if not state.ema:
        return jax.tree.map(lambda p: held * p.astype(jnp.float32), state.params)
    if saved_decay in (None, decay) or not int(state.step):
        return state.ema
    scale = held / (1 - missing(saved_decay, state.step))
    return jax.tree.map(lambda e: scale * e, state.ema)
