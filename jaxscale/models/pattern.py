"""A loop over layers of several kinds, which repeat: each run of its body is one period of the pattern.

A kind changes the program of a layer, not its parameters, so all layers' parameters are one stack [L, ...], whatever
the pattern is. Layers after the last whole period run after the loop (or before it, in reverse).
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxscale.parallel.sharding import dims_of, to_spec

Carry = Any
Kind = TypeVar("Kind")
Layer = Callable[[Carry, Any, Kind], tuple[Carry, Any]]


def scan(
    layer: Layer[Kind], carry: Carry, xs: Any, kinds: Sequence[Kind], *, reverse: bool = False, unroll: bool = False
) -> tuple[Carry, Any]:
    """`jax.lax.scan` whose body takes the kind of the layer too: layer i is of kind i modulo their number.

    Args:
        xs: arrays [L, ...], as of `jax.lax.scan`.
    """
    period = len(kinds)
    if period == 1:
        return jax.lax.scan(lambda c, x: layer(c, x, kinds[0]), carry, xs, reverse=reverse, unroll=unroll)
    layers = len(jax.tree.leaves(xs)[0])
    whole = layers - layers % period
    looped, after = pieces(xs, [whole, layers - whole])
    loop = jax.tree.map(lambda x: folded(x, period), looped)
    rest = list(zip(single(after, layers - whole), kinds, strict=False))

    def one_period(carry: Carry, xs: Any) -> tuple[Carry, Any]:
        return in_turn(layer, carry, list(zip(single(xs, period), kinds, strict=True)), reverse=reverse)

    outs: list[Any] = []
    if reverse and rest:
        carry, out = in_turn(layer, carry, rest, reverse=True)
        outs = [out]
    if whole:
        carry, out = jax.lax.scan(one_period, carry, loop, reverse=reverse, unroll=unroll)
        outs = [jax.tree.map(unfolded, out), *outs]
    if rest and not reverse:
        carry, out = in_turn(layer, carry, rest, reverse=False)
        outs = [*outs, out]
    return carry, jax.tree.map(lambda *x: jnp.concatenate(x) if len(x) > 1 else x[0], *outs)


def in_turn(layer: Layer[Kind], carry: Carry, each: Sequence[tuple[Any, Kind]], *, reverse: bool) -> tuple[Carry, Any]:
    """One layer after another; their results stacked in the layers' order."""
    outs = []
    for x, kind in reversed(each) if reverse else each:
        carry, out = layer(carry, x, kind)
        outs.append(out)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *(outs[::-1] if reverse else outs))


def pieces(xs: Any, sizes: Sequence[int]) -> list[Any]:
    """Arrays [L, ...] cut along their first dim. By `split`, whose gradient is one concatenation."""
    leaves, tree = jax.tree.flatten(xs)
    cut = [jax.lax.split(x, sizes) for x in leaves]
    return [jax.tree.unflatten(tree, part) for part in zip(*cut, strict=True)]


def single(xs: Any, layers: int) -> list[Any]:
    """Arrays [L, ...] as those of each layer."""
    parts = pieces(xs, [1] * layers) if layers else []
    return [jax.tree.map(lambda x: x[0], part) for part in parts]


def folded(x: jax.Array, period: int) -> jax.Array:
    """[L, ...] as [L / period, period, ...]."""
    layers, *rest = dims_of(x)
    return x.reshape((-1, period, *x.shape[1:]), out_sharding=to_spec([layers, (), *rest]))


def unfolded(x: jax.Array) -> jax.Array:
    """[L / period, period, ...] as [L, ...]."""
    layers, _, *rest = dims_of(x)
    return x.reshape((-1, *x.shape[2:]), out_sharding=to_spec([layers, *rest]))
