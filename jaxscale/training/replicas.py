"""Replicas that seldom talk (DiLoCo, arXiv:2311.08105): each trains its own copy of the model on its own rows.

What a replica has of its own is stacked along a first dim, which the replicas' mesh axis splits. The step of all of
them is the usual one, mapped over that dim, and sends nothing between them. Now and then a second program takes the
outer step: the mean of what the replicas learnt is the gradient of a step with Nesterov's momentum, from whose result
all of them go on. It sends four bytes a parameter. The optimizer's state stays with each replica.

A run is evaluated and used by the outer parameters.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxscale import config as cfg
from jaxscale.blueprint.rules import REPLICA_AXES, present
from jaxscale.parallel.local import over_axis
from jaxscale.parallel.sharding import current_mesh, dims_of, to_spec
from jaxscale.training.optimizer import global_norm

PyTree = Any
State = Any  # a TrainState
Metrics = dict[str, jax.Array]
PER_REPLICA = ("params", "opt_state", "losses", "router_bias")  # fields of the state that every replica has of its own


class Outer(NamedTuple):
    """What replicas have in common, in float32: the parameters that all started from, and the outer step's momentum."""

    params: PyTree
    momentum: PyTree


def replica_axis() -> str | None:
    """The axis of the mesh in context that splits the replicas; None: there are none."""
    return next(iter(present(REPLICA_AXES, current_mesh().axis_names)), None)


def started(state: State) -> State:
    """The state of one copy of the model as that of all replicas, which start alike from it."""
    fields = {name: jax.tree.map(copies, getattr(state, name)) for name in PER_REPLICA}
    params = jax.tree.map(lambda p: p.astype(jnp.float32), state.params)
    return state._replace(**fields, outer=Outer(params, jax.tree.map(jnp.zeros_like, params)))


def copies(x: jax.Array) -> jax.Array:
    """x[...] -> [R, ...], one for each replica."""
    axis = replica_axis()
    assert axis is not None
    layout = to_spec([(axis,), *dims_of(x)])
    return jnp.broadcast_to(x, (current_mesh().shape[axis], *x.shape), out_sharding=layout)


def alone(step: Callable[[State, PyTree], tuple[State, Metrics]]) -> Callable[[State, PyTree], tuple[State, Metrics]]:
    """The step of every replica by itself, on its rows of the batch; each metric is [R].

    Args:
        step: of one copy of the model.
    """
    axis = replica_axis()
    assert axis is not None

    def steps(state: State, batch: PyTree) -> tuple[State, Metrics]:
        def of_one(fields: dict[str, PyTree], number: jax.Array, rows: PyTree) -> tuple[dict[str, PyTree], Metrics]:
            rng = jax.random.fold_in(state.rng, number)
            after, metrics = step(state._replace(**fields, rng=rng, outer={}), rows)
            return {name: getattr(after, name) for name in PER_REPLICA}, metrics

        numbers = jax.lax.broadcasted_iota(jnp.int32, (current_mesh().shape[axis],), 0, out_sharding=jax.P(axis))
        fields = {name: getattr(state, name) for name in PER_REPLICA}
        results = over_axis(of_one, axis)(fields, numbers, jax.tree.map(by_replica, batch))
        fields, metrics = jax.tree.map(split_between, results)
        return state._replace(**fields, step=state.step + 1), metrics

    return steps


def split_between(x: jax.Array) -> jax.Array:
    """x[R, ...] with each replica's where it is used, also of constants, such as a learning rate without a schedule."""
    moved: jax.Array = jax.reshard(x, to_spec([REPLICA_AXES, *dims_of(x)[1:]]))
    return moved


def by_replica(x: jax.Array) -> jax.Array:
    """Rows of a batch [M, B, T] as [R, M, B/R, T]: where they lie, as the replicas' axis splits the rows first."""
    parts, rows, *rest = dims_of(x)
    assert rows[:1] == REPLICA_AXES
    count = current_mesh().shape[rows[0]]
    layout = to_spec([parts, rows[:1], rows[1:], *rest])
    split = x.reshape((x.shape[0], count, x.shape[1] // count, *x.shape[2:]), out_sharding=layout)
    return jnp.moveaxis(split, 1, 0)


def outer_step(outer: cfg.Outer) -> Callable[[State], tuple[State, Metrics]]:
    """The step that replicas take together. With g the mean over them of (where they started - where they are):

    momentum' = mu momentum + g;  outer' = outer - learning_rate (mu momentum' + g);  every replica goes on from outer',
    and from the mean of the routers' biases.
    """
    rate, mu = outer.learning_rate, outer.momentum

    def step(state: State) -> tuple[State, Metrics]:
        grads = jax.tree.map(moved, state.outer.params, state.params)
        momentum = jax.tree.map(lambda m, g: mu * m + g, state.outer.momentum, grads)
        params = jax.tree.map(lambda p, m, g: p - rate * (mu * m + g), state.outer.params, momentum, grads)
        copied = jax.tree.map(lambda p, old: copies(p.astype(old.dtype)), params, state.params)
        bias = jax.tree.map(lambda b: copies(mean(b)), state.router_bias)
        after = state._replace(params=copied, router_bias=bias, outer=Outer(params, momentum))
        return after, {"grad_norm": global_norm(grads)}

    return step


def mean(x: jax.Array) -> jax.Array:
    """Over the replicas: [R, ...] -> [...]."""
    average: jax.Array = jax.reshard(x, to_spec([(), *dims_of(x)[1:]])).mean(0)
    return average


def moved(start: jax.Array, now: jax.Array) -> jax.Array:
    """How far replicas came from `start`, against the gradient: the mean over them, float32.

    They began at `start` rounded to their dtype. So what rounding took is no part of it, and is not lost in `start`.
    """
    rounded = start.astype(now.dtype).astype(jnp.float32)
    return (rounded - now.astype(jnp.float32)).sum(0) / now.shape[0]


def combined(metrics: Metrics, *, means: Iterable[str], unit: str) -> Metrics:
    """The metrics of all replicas as those of one step: a program of its own, which sends these few numbers.

    Args:
        means: those that are means over what `unit` counts: of all replicas' tokens, wherever padding falls. Counts are
            added up; one replica with a spike is a spike; the others are means over the replicas.
    """
    names = list(metrics)
    table = jax.reshard(jnp.stack([metrics[name].astype(jnp.float32) for name in names]), jax.P())
    each = dict(zip(names, table, strict=True))
    counts = each[unit]
    merged = {name: values.mean() for name, values in each.items()}
    logged = [name for name in means if name in each]  # those of a model's layers are other figures by now
    merged |= {name: (each[name] * counts).sum() / jnp.maximum(counts.sum(), 1) for name in logged}
    merged |= {unit: counts.sum()} | ({"spike": each["spike"].max()} if "spike" in each else {})
    return merged
