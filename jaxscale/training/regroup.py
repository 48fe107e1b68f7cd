"""A checkpoint of other replicas than the run has: of more or fewer, of none, or for a run that has none.

What replicas have in common goes on, and all that each has of its own starts from it alike: the outer parameters, and
the means of the optimizers' states. What replicas learnt since their last outer step is left.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.training.replicas import PER_REPLICA, Outer, started
from jaxscale.training.step import TrainState

PyTree = Any
Shape = jax.ShapeDtypeStruct


def saved_replicas(meta: dict[str, Any]) -> int:
    """How many a checkpoint has, told by the shape of its losses' count, `float32[2]`; 0: none."""
    size = meta["state"].get("losses.steps", "").partition("[")[2].rstrip("]")
    return int(size) if size.isdecimal() else 0


def replicas_of(state: TrainState) -> int:
    """How many there are in a state, or in its shapes; 0: none."""
    return state.losses.steps.shape[0] if isinstance(state.outer, Outer) else 0


def shaped_for(abstract: TrainState, count: int) -> TrainState:
    """The shapes of `abstract` with so many replicas, none of which a mesh axis splits; 0: without replicas."""
    if count == replicas_of(abstract):
        return abstract
    fields = {name: getattr(abstract, name) for name in PER_REPLICA}
    if replicas_of(abstract):
        fields = jax.tree.map(without_first_dim, fields)
        abstract = abstract._replace(outer={})
    if count:
        params = jax.tree.map(lambda x: Shape(x.shape, jnp.float32, sharding=x.sharding), fields["params"])
        fields = jax.tree.map(lambda x: with_first_dim(x, count), fields)
        abstract = abstract._replace(outer=Outer(params, params))
    return abstract._replace(**fields)


def without_first_dim(x: Shape) -> Shape:
    layout = jax.P(*x.sharding.spec.partitions[1:])
    return Shape(x.shape[1:], x.dtype, sharding=jax.NamedSharding(x.sharding.mesh, layout))


def with_first_dim(x: Shape, count: int) -> Shape:
    layout = jax.P(None, *x.sharding.spec.partitions)
    return Shape((count, *x.shape), x.dtype, sharding=jax.NamedSharding(x.sharding.mesh, layout))


def regrouped(state: TrainState, wanted: int, saved: dict[str, Any], say: Callable[[str], None]) -> TrainState:
    """A state as it was read, with so many replicas (0: none); what that changes is said.

    Args:
        saved: the checkpoint's config.
    """
    count, step = replicas_of(state), int(state.step)
    if count == wanted:
        return state
    line = f"{count or 'no'} replicas until step {step}, {wanted or 'none'} from there on"
    outer = state.outer
    if isinstance(outer, Outer):
        state = one_copy(state, outer)
        line += ": all start from the outer parameters" if wanted else ": the run goes on from the outer parameters"
        if since := step % saved["outer"]["every"]:
            line += f", and what the replicas learnt in the last {since} step{'s' * (since > 1)} is left"
    say(line)
    if not wanted:
        return state
    state = started(state)
    return state._replace(outer=outer) if isinstance(outer, Outer) else state


def one_copy(state: TrainState, outer: Outer) -> TrainState:
    """Without replicas: the outer parameters, and the means of what else each replica has of its own."""
    params = jax.tree.map(lambda common, param: common.astype(param.dtype), outer.params, state.params)
    means = {name: jax.tree.map(mean, getattr(state, name)) for name in PER_REPLICA if name != "params"}
    return state._replace(params=params, **means, outer={})


def mean(x: jax.Array) -> jax.Array:
    """Over replicas; counts of steps are the same in all of them."""
    return x.mean(0) if jnp.issubdtype(x.dtype, jnp.inexact) else x[0]
