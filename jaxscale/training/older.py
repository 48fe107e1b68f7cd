"""What checkpoints of earlier versions hold otherwise than today's, read as what they mean now.

Format 1 (no number in the metadata): moments and the averaged parameters have the parameters' dtype, and the average
began at the initial weights. Format 2: both are float32, and the average is a sum from zero (`training.average`).
Format 3: a field of the state is always there. Before, the losses' statistics stood beside the optimizer's state, only
with `guard.spike`, and `ema` was None without an average. Format 4: there is `outer`, which is empty without replicas.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.checkpoint.identity import shapes
from jaxscale.config.files import renamed
from jaxscale.training.average import missing
from jaxscale.training.regroup import saved_replicas, shaped_for
from jaxscale.training.spikes import LossStatistics, no_losses
from jaxscale.training.step import TrainState

FORMAT = 4


class State2(NamedTuple):
    """The state of formats 1 and 2."""

    step: Any
    params: Any
    opt_state: Any  # the optimizer's; with `guard.spike` a pair of it and the losses' statistics
    ema: Any  # or None
    rng: Any


def renamed_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a checkpoint with the config's keys by their names of today."""
    return meta | {"config": renamed(meta["config"])}


def as_saved(abstract: TrainState, meta: dict[str, Any]) -> TrainState | State2:
    """The shapes of `abstract` in the tree, with the average or without, and in the dtypes that the checkpoint has."""
    form = form_of(abstract, meta)
    leaves, tree = jax.tree.flatten(form)
    wanted = [with_dtype(x, meta["state"].get(name, "")) for x, name in zip(leaves, shapes(form), strict=True)]
    saved: TrainState | State2 = jax.tree.unflatten(tree, wanted)
    return saved


def form_of(abstract: TrainState, meta: dict[str, Any]) -> TrainState | State2:
    ema, abstract = {}, shaped_for(abstract, saved_replicas(meta))
    if any(name.startswith("ema.") for name in meta["state"]):
        ema = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding), abstract.params)
    if meta.get("format", 1) >= 3:
        return abstract._replace(ema=ema)
    opt_state = (abstract.opt_state, abstract.losses) if has_losses(meta) else abstract.opt_state
    return State2(abstract.step, abstract.params, opt_state, ema or None, abstract.rng)


def has_losses(meta: dict[str, Any]) -> bool:
    """Whether a checkpoint of formats 1 and 2 holds the losses' statistics."""
    return {f"opt_state.1.{field}" for field in LossStatistics._fields} <= set(meta["state"])


def with_dtype(x: jax.ShapeDtypeStruct, saved: str) -> jax.ShapeDtypeStruct:
    """`saved`: `bfloat16[8, 16]`; anything else than another width of the same array leaves `x` as it is."""
    dtype, bracket, shape = saved.partition("[")
    widths = ("bfloat16", "float32")
    if str(x.dtype) not in widths or dtype not in widths or bracket + shape != str(list(x.shape)):
        return x
    return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding)


def as_now(state: TrainState | State2, abstract: TrainState, meta: dict[str, Any]) -> TrainState:
    """A state that was read by `as_saved`, as today's step takes it; its average, if any, stays."""
    wanted = form_of(abstract, meta)
    state = jax.tree.map(lambda x, wanted: x if x.dtype == wanted.dtype else x.astype(wanted.dtype), state, wanted)
    if isinstance(state, State2):
        losses = jax.tree.map(placed, no_losses(), shaped_for(abstract, 0).losses)
        opt_state, losses = state.opt_state if has_losses(meta) else (state.opt_state, losses)
        state = TrainState(state.step, state.params, opt_state, losses, state.ema or {}, {}, {}, state.rng, {})
    return state._replace(ema=sum_of(state.ema, meta, int(state.step))) if state.ema else state


def placed(value: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
    """A small array that every process has, in the layout of `like`."""
    array = np.asarray(value, like.dtype)
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def sum_of(ema: Any, meta: dict[str, Any], step: int) -> Any:
    """The average of a checkpoint as a sum from zero: what lacks is the newest parameters' (see `training.average`)."""
    decay = meta["config"]["optimizer"]["ema"]
    if meta.get("format", 1) >= 2 or not decay:
        return ema
    held = 1 - missing(decay, step)
    return jax.tree.map(lambda e: e.astype(jnp.float32) * held, ema)
