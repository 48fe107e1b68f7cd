"""Parts of a state that a config turns on and off: the losses' mean of `guard.spike`, and the averaged parameters.

A checkpoint that lacks one that is wanted now is read without it, and the part is started; one that is not wanted any
more is left.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale import config as cfg
from jaxscale.training.average import continued_sum, started_sum
from jaxscale.training.spikes import WINDOW, Spikes, names_spikes, no_spikes, without_spikes
from jaxscale.training.step import TrainState


def as_saved(abstract: TrainState, names: dict[str, str], config: cfg.Config) -> TrainState:
    """The shapes of `abstract`, with the parts that a checkpoint of arrays of these names has, and no others."""
    inner, spikes = without_spikes(config, abstract.opt_state)
    if names_spikes(names):
        like: Any = jax.ShapeDtypeStruct((), jnp.float32, sharding=abstract.step.sharding)
        opt_state = inner, spikes or Spikes(like, like, like)
    else:
        opt_state = inner
    has_ema = any(name.startswith("ema.") for name in names)
    ema = (abstract.ema or abstract.params) if has_ema else None
    return abstract._replace(opt_state=opt_state, ema=ema)


def as_wanted(
    state: TrainState, abstract: TrainState, config: cfg.Config, meta: dict, say: Callable[[str], None]
) -> TrainState:
    """A state as it was read, with the parts of `abstract`, on its devices."""
    step, opt_state, ema = int(state.step), state.opt_state, state.ema
    saved_spikes = names_spikes(names_of(state))
    inner, spikes = opt_state if saved_spikes else (opt_state, None)
    if config.guard.spike and not saved_spikes:
        say(f"guard.spike is on since step {step}: losses are judged after {WINDOW} steps more")
        _, shapes = without_spikes(config, abstract.opt_state)
        spikes = jax.tree.map(placed, no_spikes(), shapes)
    if (decay := config.optimizer.ema) is None:
        ema = None
    elif ema is None:
        say(f"optimizer.ema is on since step {step}: the average starts from the parameters of that step")
        ema = started_sum(state.params, decay, step)
    else:
        ema = continued_sum(ema, state.params, meta["config"]["optimizer"]["ema"] or decay, decay, step)
    return state._replace(opt_state=(inner, spikes) if config.guard.spike else inner, ema=ema)


def names_of(state: Any) -> list[str]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]


def placed(value: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
    """A small array that every process has, in the layout of `like`."""
    array = np.asarray(value, like.dtype)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])
