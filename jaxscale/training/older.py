"""What checkpoints of earlier versions hold otherwise than today's, read as what they mean now.

Format 1 (no number in the metadata): moments and the averaged parameters have the parameters' dtype, and the average
began at the initial weights. Format 2: both are float32, and the average is a sum from zero (`training.average`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.config_files import renamed
from jaxscale.training.average import missing
from jaxscale.training.identity import shapes

FORMAT = 2


def renamed_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a checkpoint with the config's keys by their names of today."""
    return meta | {"config": renamed(meta["config"])}


def as_saved(abstract: Any, meta: dict) -> Any:
    """`abstract` with the dtypes that the checkpoint's floating-point arrays have."""
    leaves, tree = jax.tree.flatten(abstract)
    wanted = [with_dtype(x, meta["state"].get(name, "")) for x, name in zip(leaves, shapes(abstract), strict=True)]
    return jax.tree.unflatten(tree, wanted)


def with_dtype(x: jax.ShapeDtypeStruct, saved: str) -> jax.ShapeDtypeStruct:
    """`saved`: `bfloat16[8, 16]`; anything else than another width of the same array leaves `x` as it is."""
    dtype, bracket, shape = saved.partition("[")
    widths = ("bfloat16", "float32")
    if str(x.dtype) not in widths or dtype not in widths or bracket + shape != str(list(x.shape)):
        return x
    return jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding)


def as_now(state: Any, abstract: Any, meta: dict) -> Any:
    """A state that was read by `as_saved`, as today's step takes it."""
    state = jax.tree.map(lambda x, wanted: x if x.dtype == wanted.dtype else x.astype(wanted.dtype), state, abstract)
    if state.ema is not None:
        state = state._replace(ema=sum_of(state.ema, meta, int(state.step)))
    return state


def sum_of(ema: Any, meta: dict, step: int) -> Any:
    """The average of a checkpoint as a sum from zero: what lacks is the newest parameters' (see `training.average`)."""
    decay = meta["config"]["optimizer"]["ema"]
    if meta.get("format", 1) >= 2 or not decay:
        return ema
    held = 1 - missing(decay, step)
    return jax.tree.map(lambda e: e.astype(jnp.float32) * held, ema)
