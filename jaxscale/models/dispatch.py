"""Rows to the experts that they are for, wherever these lie, and back: what one device does. No row is dropped.

A route follows from the chosen experts. Along it `to_experts` and `to_tokens` are linear, and each is the other's
transpose: that is their derivative. Both are made of gathers and exchanges alone, as adding up where rows collide would
depend on an order.

Dims: S tokens of a device, K experts of a token, D embed, E experts, R rows that a device has place for, X shards of
the experts. Rows past a route's `sizes` belong to nobody and may hold anything; nothing of them comes back.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxscale.blueprint.experts import most_rows
from jaxscale.kernels.grouped_cpu import varying_zeros

Axes = tuple[str, ...]


class Way(NamedTuple):
    """How rows go.

    Attributes:
        how: `all_to_all`, `gather` or `none` over `axes`, which split the experts; see `blueprint.experts.way`.
        platform: that is compiled for; `shards`: X; `tokens`: S.
    """

    how: str
    axes: Axes
    platform: str
    shards: int
    num_experts: int
    tokens: int
    top_k: int

    @property
    def local_experts(self) -> int:
        return self.num_experts // self.shards

    @property
    def rows(self) -> int:
        """R."""
        return most_rows(self.tokens, self.shards, self.top_k, self.local_experts)


class Route(NamedTuple):
    """Where rows go, made by `route` on each device: integers.

    Attributes:
        order: pairs of token and choice, sorted by expert, [SK]; of all shards' pairs those for this device, [R], where
            tokens are gathered. `inverse`: where each of these pairs stands then, [SK] or [XSK].
        sizes: [E/X] rows of each expert of this device.
        between: [X, X] rows that shard i sends to shard j; `arrival`: [R] what arrives there, sorted by expert;
            `departure`: its inverse. None where rows are not exchanged one by one.
    """

    order: jax.Array
    inverse: jax.Array
    sizes: jax.Array
    between: jax.Array | None = None
    arrival: jax.Array | None = None
    departure: jax.Array | None = None


def route(index_SK: jax.Array, way: Way) -> Route:
    """The route of these tokens to the experts that they chose, numbered over all shards."""
    pairs, shards, local = index_SK.reshape(-1), way.shards, way.local_experts
    if way.how == "gather":
        return _gathered_route(pairs, way)
    order = _order(pairs)
    sizes = _counts(pairs, way.num_experts)
    if way.how == "none":
        return Route(order, _inverse(order), sizes)
    every = lax.all_gather(sizes, way.axes)  # [X, E]
    mine = lax.dynamic_slice_in_dim(every, lax.axis_index(way.axes) * local, local, 1)  # [X, E/X]: rows that arrive
    # what arrives lies by shard, then by expert
    label = jnp.repeat(jnp.tile(jnp.arange(local), shards), mine.reshape(-1), total_repeat_length=way.rows)
    arrival = _order(jnp.where(jnp.arange(way.rows) < mine.sum(), label, local))
    between = every.reshape(shards, shards, local).sum(-1)
    return Route(order, _inverse(order), mine.sum(0), between, arrival, _inverse(arrival))


def _gathered_route(pairs: jax.Array, way: Way) -> Route:
    """Of all shards' pairs, those for this device's experts, first in the order."""
    local = way.local_experts
    label = lax.all_gather(pairs, way.axes, tiled=True) - lax.axis_index(way.axes) * local
    label = jnp.where((label >= 0) & (label < local), label, local)
    order = _order(label)
    return Route(order[: way.rows], _inverse(order), _counts(label, local))


def _counts(labels: jax.Array, number: int) -> jax.Array:
    """How often each of the first numbers is there."""
    return (labels[:, None] == jnp.arange(number)).sum(0, dtype=jnp.int32)


def _order(labels: jax.Array) -> jax.Array:
    """A stable argsort, typed as differing where its labels do: jax types it as the iota that it sorts along."""
    order = jnp.argsort(labels, stable=True)
    missing = tuple(jax.typeof(labels).mat.varying - jax.typeof(order).mat.varying)
    return lax.pcast(order, missing, to="varying") if missing else order


def _inverse(order: jax.Array) -> jax.Array:
    places = jnp.arange(len(order), dtype=order.dtype)
    return jnp.zeros_like(order).at[order].set(places, unique_indices=True)


# --- tokens ---------------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def to_experts(x_SD: jax.Array, way: Way, route: Route) -> jax.Array:
    """Each token to each of its experts: [R, D], by expert."""
    if way.how == "gather":
        x_SD = lax.all_gather(x_SD, way.axes, tiled=True)
    return _sent(x_SD[route.order // way.top_k], way, route)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def to_tokens(y_RD: jax.Array, way: Way, route: Route) -> jax.Array:
    """For each token the sum of what it has at its experts: [S, D]. A device adds in float32."""
    pairs = _pairs(y_RD, way, route)
    sums = pairs.reshape(-1, way.top_k, pairs.shape[1]).sum(1, dtype=jnp.float32).astype(y_RD.dtype)
    return lax.psum_scatter(sums, way.axes, scatter_dimension=0, tiled=True) if way.how == "gather" else sums


to_experts.defvjp(
    lambda x, way, route: (to_experts(x, way, route), route),
    lambda way, route, gradient: (to_tokens(gradient, way, route), None),
)
to_tokens.defvjp(
    lambda y, way, route: (to_tokens(y, way, route), route),
    lambda way, route, gradient: (to_experts(gradient, way, route), None),
)


def _pairs(y_RD: jax.Array, way: Way, route: Route) -> jax.Array:
    """What each pair of token and choice has, 0 where its expert is on another device."""
    if way.how != "gather":
        return _returned(y_RD, way, route)[route.inverse]
    there = route.inverse < route.sizes.sum()
    return jnp.where(there[:, None], y_RD[jnp.where(there, route.inverse, 0)], 0)


# --- a number of each pair ------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def numbers_to_experts(w_SK: jax.Array, way: Way, route: Route) -> jax.Array:
    """A number of each pair of token and choice, where its row is: [R]."""
    if way.how == "gather":
        w_SK = lax.all_gather(w_SK, way.axes, tiled=True)
    return _sent(w_SK.reshape(-1, 1)[route.order], way, route)[:, 0]


def _numbers_back(way: Way, route: Route, w_R: jax.Array) -> tuple[jax.Array, None]:
    pairs = _pairs(w_R[:, None], way, route)[:, 0]
    if way.how == "gather":
        pairs = lax.psum_scatter(pairs, way.axes, scatter_dimension=0, tiled=True)
    return pairs.reshape(way.tokens, way.top_k), None


numbers_to_experts.defvjp(lambda w, way, route: (numbers_to_experts(w, way, route), route), _numbers_back)


# --- rows that are exchanged ----------------------------------------------------------------------------------


def _sent(rows: jax.Array, way: Way, route: Route) -> jax.Array:
    """Rows sorted by expert, to the devices of these, sorted by expert there."""
    if route.between is None:
        return rows
    return exchange(rows, route.between, way.rows, way)[route.arrival]


def _returned(rows: jax.Array, way: Way, route: Route) -> jax.Array:
    """The way back."""
    if route.between is None:
        return rows
    return exchange(rows[route.departure], route.between.T, len(route.order), way)


def exchange(rows: jax.Array, between: jax.Array, place: int, way: Way) -> jax.Array:
    """Rows that lie by the shard that they are for, to those shards: [place, D] there, by the shard they are of.

    XLA's CPU backend has no ragged all-to-all: there parts of the largest size are exchanged, which gives the same.

    Args:
        between: [X, X] rows that shard i sends to shard j.
    """
    me = lax.axis_index(way.axes)
    send, receive = between[me], between[:, me]
    begin = jnp.cumsum(send) - send
    if way.platform != "cpu":
        out = varying_zeros((place, rows.shape[1]), rows.dtype, rows)
        theirs = (jnp.cumsum(between, 0) - between)[me]
        numbers = (a.astype(jnp.int32) for a in (begin, send, theirs, receive))
        arrived: jax.Array = lax.ragged_all_to_all(rows, out, *numbers, axis_name=way.axes)
        return arrived
    most = min(len(rows), place)
    slot = jnp.arange(most)
    packed = jnp.where(slot < send[:, None], begin[:, None] + slot, len(rows)).reshape(-1)
    got = lax.all_to_all(_filled(rows, packed).reshape(way.shards, most, -1), way.axes, 0, 0, tiled=True)
    at = jnp.arange(place)
    source = jnp.clip(jnp.searchsorted(jnp.cumsum(receive), at, side="right"), 0, way.shards - 1)
    first = (jnp.cumsum(receive) - receive)[source]
    index = jnp.where(at < receive.sum(), source * most + at - first, way.shards * most)
    return _filled(got.reshape(way.shards * most, -1), index)


def _filled(rows: jax.Array, index: jax.Array) -> jax.Array:
    """rows[index], 0 where there is no such row."""
    return jnp.take(rows, index, axis=0, mode="fill", fill_value=0)
