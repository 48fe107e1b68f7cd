"""Parts of a state that a config turns on and off: the losses' mean of `guard.spike`, and the averaged parameters.

A checkpoint is read with the parts that it has. One that is wanted now and was not saved is started; one that is not
wanted any more is left.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale import config as cfg
from jaxscale.training.average import missing
from jaxscale.training.identity import shapes
from jaxscale.training.spikes import WINDOW, Spikes, names_spikes, no_spikes, without_spikes
from jaxscale.training.step import TrainState

PyTree = Any


def parts_saved(abstract: TrainState, names: dict[str, str], config: cfg.Config) -> TrainState:
    """The shapes of `abstract`, with the parts that a checkpoint of arrays of these names has, and no others."""
    inner, spikes = without_spikes(config, abstract.opt_state)
    opt_state = inner
    if names_spikes(names):
        like: Any = jax.ShapeDtypeStruct((), jnp.float32, sharding=abstract.step.sharding)
        opt_state = inner, spikes or Spikes(like, like, like)
    ema = None
    if any(name.startswith("ema.") for name in names):
        ema = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding), abstract.params)
    return abstract._replace(opt_state=opt_state, ema=ema)


def parts_wanted(
    state: TrainState, abstract: TrainState, config: cfg.Config, saved: dict[str, Any], say: Callable[[str], None]
) -> TrainState:
    """A state as it was read, with the parts of `abstract`, on its devices.

    Args:
        saved: the checkpoint's config.
    """
    step = int(state.step)
    has_spikes = names_spikes(shapes(state))
    inner, spikes = state.opt_state if has_spikes else (state.opt_state, None)
    if config.guard.spike and not has_spikes:
        say(f"guard.spike is on since step {step}: losses are judged after {WINDOW} steps more")
        _, like = without_spikes(config, abstract.opt_state)
        spikes = jax.tree.map(placed, no_spikes(), like)
    ema = None
    if decay := config.optimizer.ema:
        if state.ema is None:
            say(f"optimizer.ema is on since step {step}: the average starts from the parameters of that step")
        ema = fitting_sum(state, decay, saved.get("optimizer", {}).get("ema"))
    return state._replace(opt_state=(inner, spikes) if config.guard.spike else inner, ema=ema)


def fitting_sum(state: TrainState, decay: float, saved_decay: float | None) -> PyTree:
    """The sum of `training.average` with the weight that it has to have at this step, which follows from the decay.

    One that was kept with another decay is scaled; without one the parameters stand for all steps before.
    """
    held = 1 - missing(decay, state.step)
    if state.ema is None:
        return jax.tree.map(lambda p: held * p.astype(jnp.float32), state.params)
    if saved_decay in (None, decay) or not int(state.step):
        return state.ema
    scale = held / (1 - missing(saved_decay, state.step))
    return jax.tree.map(lambda e: scale * e, state.ema)


def placed(value: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
    """A small array that every process has, in the layout of `like`."""
    array = np.asarray(value, like.dtype)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])
