"""A loop over layers of several kinds, which repeat: each run of its body is one period of the pattern.

Layers whose parameters have the same shapes are one stack [L, ...], whatever the pattern is. A model with two kinds of
parameters has two stacks, and each period takes its layers from both. Layers after the last whole period run after the
loop (or before it, in reverse).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxscale.parallel.sharding import dims_of, to_spec

Carry = Any
Kind = TypeVar("Kind")
Layer = Callable[[Carry, Any, Kind], tuple[Carry, Any]]
Stacks = Mapping[str, Any]  # name of a stack -> its arrays [L, ...], L its own layers
Period = Sequence[tuple[str, Kind]]  # of each layer: the name of its stack, and its kind


def scan_runs(
    layer: Layer[Kind],
    carry: Carry,
    stacks: Stacks,
    runs: Sequence[tuple[Period[Kind], int]],
    *,
    reverse: bool = False,
    unroll: bool = False,
) -> tuple[Carry, dict[str, Any]]:
    """`jax.lax.scan` whose body takes the kind of the layer too. Each run of layers is a loop over its periods.

    Args:
        stacks: arrays [L, ...], as of `jax.lax.scan`, of each stack's own layers.
        runs: of each run of layers, one period of its kinds and the number of its layers.

    Returns:
        The carry, and what the layers of each stack return, stacked [L, ...].
    """
    numbers = [Counter(name for name, _ in repeated(period, layers)) for period, layers in runs]
    parts = {name: pieces(xs, [number[name] for number in numbers]) for name, xs in stacks.items()}
    outs: list[dict[str, Any]] = []
    each = [(run, {name: parts[name][i] for name in numbers[i]}) for i, run in enumerate(runs)]
    for (period, layers), run_stacks in reversed(each) if reverse else each:
        carry, out = scan_run(layer, carry, run_stacks, period, layers, reverse=reverse, unroll=unroll)
        outs.append(out)
    return carry, joined(outs[::-1] if reverse else outs)


def scan_run(
    layer: Layer[Kind], carry: Carry, stacks: Stacks, period: Period[Kind], layers: int, *, reverse: bool, unroll: bool
) -> tuple[Carry, dict[str, Any]]:
    """The loop over the whole periods of a run, and the layers after them."""
    if len(period) == 1:
        ((name, kind),) = period
        carry, out = jax.lax.scan(lambda c, x: layer(c, x, kind), carry, stacks[name], reverse=reverse, unroll=unroll)
        return carry, {name: out}
    loops, rest = divmod(layers, len(period))
    inside, after = (Counter(name for name, _ in part) for part in (period, period[:rest]))
    cut = {name: pieces(xs, [loops * inside[name], after[name]]) for name, xs in stacks.items()}
    looped = {name: jax.tree.map(lambda x, n=inside[name]: folded(x, n), both[0]) for name, both in cut.items()}
    last = {name: single(both[1], after[name]) for name, both in cut.items()}

    def one_period(carry: Carry, xs: Stacks) -> tuple[Carry, dict[str, Any]]:
        arrays = {name: single(x, inside[name]) for name, x in xs.items()}
        return in_turn(layer, carry, arrays, period, reverse=reverse)

    outs: list[dict[str, Any]] = []
    if reverse and rest:
        carry, out = in_turn(layer, carry, last, period[:rest], reverse=True)
        outs = [out]
    if loops:
        carry, out = jax.lax.scan(one_period, carry, looped, reverse=reverse, unroll=unroll)
        outs = [jax.tree.map(unfolded, out), *outs]
    if rest and not reverse:
        carry, out = in_turn(layer, carry, last, period[:rest], reverse=False)
        outs = [*outs, out]
    return carry, joined(outs)


def repeated(period: Period[Kind], layers: int) -> Period[Kind]:
    """The period's kinds for each of so many layers."""
    return [period[i % len(period)] for i in range(layers)]


def in_turn(
    layer: Layer[Kind], carry: Carry, arrays: Mapping[str, list[Any]], kinds: Period[Kind], *, reverse: bool
) -> tuple[Carry, dict[str, Any]]:
    """One layer after another; their results by stack, in the layers' order.

    Args:
        arrays: those of each stack's layers.
    """
    waiting = {name: iter(layers) for name, layers in arrays.items()}
    each = [(name, next(waiting[name]), kind) for name, kind in kinds]
    outs: dict[str, list[Any]] = {name: [] for name, _ in kinds}
    for name, x, kind in reversed(each) if reverse else each:
        carry, out = layer(carry, x, kind)
        outs[name].append(out)
    ordered = {name: stack_outs[::-1] if reverse else stack_outs for name, stack_outs in outs.items()}
    return carry, {name: jax.tree.map(lambda *x: jnp.stack(x), *stack_outs) for name, stack_outs in ordered.items()}


def joined(outs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results of several runs of layers, one after another, by stack."""
    each = {name: [out[name] for out in outs if name in out] for out in outs for name in out}
    return {
        name: parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        for name, parts in each.items()
    }


def pieces(xs: Any, sizes: Sequence[int]) -> list[Any]:
    """Arrays [L, ...] cut along their first dim. By `split`, whose gradient is one concatenation."""
    if sum(n > 0 for n in sizes) == 1:
        return [xs if n else None for n in sizes]
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
