"""The one door to `jax.shard_map`, the program of one device, also under a vmap over an axis of the mesh.

A pipeline's stages and the replicas of a model are a leading dim that is split over a mesh axis, and a `jax.vmap` over
it. jax's own vmap of a shard_map leaves that axis out of the manual ones: jax 0.10 gathers the dim without a word,
psum_scatter and the gradient of all_gather do not lower, and kernels with rules of their own lose the axis. So
`over_axis` is the vmap to use, and inside it `on_each_device` puts the dim into the specs instead.

`jax.custom_batching.custom_vmap` is what gives a function a rule for vmap, and it has no reverse mode. So both passes
are a shard_map with such a rule, joined by `jax.custom_vjp`; what the first keeps for the second is among its results.
Everywhere else the door is `jax.shard_map` itself: its own derivatives, names for remat inside the body, and program.
`over_axis` says which of the two it is, because a function cannot ask whether it is under a vmap.
"""

import contextvars
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import PartitionSpec

Axes = tuple[str, ...]

_over: contextvars.ContextVar[Axes] = contextvars.ContextVar("over", default=())  # outermost first


def over_axis(run: Callable[..., Any], axis: str, in_axes: Any = 0) -> Callable[..., Any]:
    """`jax.vmap(run, in_axes)` over a dim that is split over mesh axis `axis`, one slice a device along it.

    `run` may differentiate (a vjp inside), rematerialise and contain another `over_axis`. A gradient of the whole, and
    forward mode, are not supported.
    """
    mapped = jax.vmap(run, in_axes=in_axes)

    def call(*args: Any) -> Any:
        token = _over.set((*_over.get(), axis))
        try:
            return mapped(*args)
        finally:
            _over.reset(token)

    return call


def on_each_device(
    run: Callable[..., Any], in_specs: Sequence[PartitionSpec], out_specs: Any, *, check_vma: bool = True
) -> Callable[..., Any]:
    """`jax.shard_map` of `run` over all axes of the mesh in context, which `over_axis` may surround.

    Args:
        run: from local arrays to one local array or a tuple of them. It closes over no arrays.
        in_specs: one for each positional argument, an array. Integers are welcome and have no gradient.
        out_specs: one for the result, or a tuple of one for each result.
        check_vma: as `jax.shard_map` has it; False for kernels whose results have no types.
    """
    if not _over.get():
        return jax.shard_map(run, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=check_vma)
    return _UnderVmap(run, in_specs, out_specs, check_vma)


class _UnderVmap:
    """A shard_map under `over_axis`: two passes, each with a rule for vmap, joined by `jax.custom_vjp`.

    `along`: the vmapped axes along which a body already has its own slice. jax traces every body without any, for
    types, and again in each rule. What is kept between the passes has types that depend on it, and so has its tree.
    """

    def __init__(self, run: Callable[..., Any], in_specs: Sequence[PartitionSpec], out_specs: Any, check_vma: bool):
        self.run, self.in_specs, self.check_vma, self.over = run, list(in_specs), check_vma, _over.get()
        self.out_specs, self.out_tree = jax.tree.flatten(out_specs)
        self.sizes = {a: n for a, n in jax.sharding.get_abstract_mesh().shape.items() if a not in self.over}
        self.kept_specs: list[PartitionSpec] = []
        self.local: list[Any] = []  # shapes and dtypes of the arguments in a body
        self.kept: dict[Axes, tuple[Any, list[int | None]]] = {}  # by `along`: the tree of pull, and each leaf's source

    def __call__(self, *args: jax.Array) -> Any:
        both = jax.custom_vjp(self.either_way)
        both.defvjp(self.first_pass, self.second_pass)
        return jax.tree.unflatten(self.out_tree, both(*args))

    # --- on arrays of the mesh ---

    def either_way(self, *args: jax.Array) -> list[jax.Array]:
        results: list[jax.Array] = self.door(self.results, self.in_specs, self.out_specs)(*args)
        return results

    def first_pass(self, *args: jax.Array) -> tuple[list[jax.Array], Any]:
        # once for the types, from which follows what is kept and how it is laid out
        everywhere = self.out_specs, PartitionSpec(tuple(self.sizes))
        jax.eval_shape(shard_map(self.forward, self.in_specs, everywhere, self.check_vma), *args)
        results, kept = self.door(self.forward, self.in_specs, (self.out_specs, self.kept_specs))(*args)
        _, sources = self.kept[()]
        return results, ({i: args[i] for i in sources if i is not None}, kept)

    def second_pass(self, saved: Any, gradients: list[jax.Array]) -> tuple[jax.Array | None, ...]:
        given, kept = saved
        wanted = [i for i, x in enumerate(self.local) if is_float(x)]
        sent = [g for g in gradients if is_float(g)]
        in_specs = [of_gradient(s) for g, s in zip(gradients, self.out_specs, strict=True) if is_float(g)]
        in_specs += [self.in_specs[i] for i in given] + self.kept_specs
        out_specs = [of_gradient(self.in_specs[i]) for i in wanted]
        body = partial(self.backward, in_specs[: len(sent)], list(given))
        found = self.door(body, in_specs, out_specs)(*sent, *given.values(), *kept)
        by_place = dict(zip(wanted, found, strict=True))
        return tuple(by_place.get(i) for i in range(len(self.in_specs)))

    def door(self, body: Callable[..., Any], in_specs: list[PartitionSpec], out_specs: Any) -> Callable[..., Any]:
        return with_rule(body, in_specs, out_specs, self.check_vma, self.over)

    # --- on the arrays of one device ---

    def results(self, *args: jax.Array, along: Axes) -> list[jax.Array]:
        results: list[jax.Array] = self.out_tree.flatten_up_to(self.run(*args))
        return results

    def forward(self, *args: jax.Array, along: Axes) -> tuple[list[jax.Array], list[jax.Array]]:
        """The results, and what their backward function holds besides arguments."""

        def differentiable(floats: dict[int, jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
            results = self.results(*(floats.get(i, x) for i, x in enumerate(args)), along=along)
            return [x for x in results if is_float(x)], results

        _, pull, results = jax.vjp(differentiable, {i: x for i, x in enumerate(args) if is_float(x)}, has_aux=True)
        leaves, tree = jax.tree.flatten(pull)
        sources = [next((i for i, x in enumerate(args) if x is leaf), None) for leaf in leaves]
        self.local = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in args]
        self.kept[along] = tree, sources
        kept = [jnp.asarray(x)[None] for x, i in zip(leaves, sources, strict=True) if i is None]
        if not along:
            self.kept_specs = [self.kept_spec(x) for x in kept]
        return results, kept

    def backward(self, specs: list[PartitionSpec], given: list[int], *args: jax.Array, along: Axes) -> list[jax.Array]:
        """The arguments' gradients from those of the results, laid out by `specs`, and what `forward` kept."""
        if along not in self.kept:  # no argument is vmapped and yet the gradients are: only the types are wanted
            jax.eval_shape(lambda: self.forward(*self.blanks(along), along=along))
        tree, sources = self.kept[along]
        gradients, rest = args[: len(specs)], args[len(specs) :]
        by_place, kept = dict(zip(given, rest, strict=False)), iter(rest[len(given) :])
        pull = jax.tree.unflatten(tree, [next(kept)[0] if i is None else by_place[i] for i in sources])
        if self.check_vma:
            (found,) = pull(list(gradients))
            return list(found.values())
        # no types say what is the same on several devices, so as jax: split the gradients there, and add up again
        (found,) = pull(
            [g / math.prod(map(self.sizes.get, self.unsplit(s))) for g, s in zip(gradients, specs, strict=True)]
        )
        return [jax.lax.psum(x, self.unsplit(self.in_specs[i])) for i, x in found.items()]

    def kept_spec(self, x: jax.Array) -> PartitionSpec:
        """Layout of the devices' own parts of `x`, stacked: along the axes over which they differ."""
        kind = jax.typeof(x).mat
        axes = tuple(a for a in self.sizes if a in kind.varying or not self.check_vma)
        return PartitionSpec(axes, reduced=kind.reduced, unreduced=kind.unreduced)

    def blanks(self, along: Axes) -> list[jax.Array]:
        """Arrays of the types that the arguments have in a body."""
        blanks = [jnp.zeros(x.shape, x.dtype) for x in self.local]
        axes = [(*axes_in(spec), *along) for spec in self.in_specs]
        return [jax.lax.pcast(x, a, to="varying") if a else x for x, a in zip(blanks, axes, strict=True)]

    def unsplit(self, spec: PartitionSpec) -> Axes:
        """The axes along which all devices have the same of an array of this spec."""
        return tuple(a for a in self.sizes if a not in axes_in(spec) and a not in spec.unreduced)


def shard_map(
    body: Callable[..., Any], in_specs: list[PartitionSpec], out_specs: Any, check_vma: bool
) -> Callable[..., Any]:
    return jax.shard_map(partial(body, along=()), in_specs=tuple(in_specs), out_specs=out_specs, check_vma=check_vma)


def with_rule(
    body: Callable[..., Any], in_specs: list[PartitionSpec], out_specs: Any, check_vma: bool, over: Axes
) -> Callable[..., Any]:
    """shard_map of a `body(*args, along=...)` with a rule for vmap over the last axis of `over`, and so on outwards."""

    @custom_vmap
    def call(*args: jax.Array) -> Any:
        return shard_map(body, in_specs, out_specs, check_vma)(*args)

    @call.def_vmap
    def rule(size: int, batched: Sequence[bool], *args: jax.Array) -> tuple[Any, Any]:
        if not over:
            raise ValueError(
                "a function of each device is under a jax.vmap inside over_axis; use over_axis for all of them"
            )
        *outer, axis = over

        def sliced(*args: jax.Array, along: Axes) -> Any:
            mine = [x[0] if b else jax.lax.pcast(x, axis, to="varying") for x, b in zip(args, batched, strict=True)]
            return jax.tree.map(lambda x: x[None], body(*mine, along=(axis, *along)))

        def wide(spec: PartitionSpec) -> PartitionSpec:
            return PartitionSpec(axis, *spec.partitions, reduced=spec.reduced, unreduced=spec.unreduced)

        ins = [wide(s) if b else s for s, b in zip(in_specs, batched, strict=True)]
        results = with_rule(sliced, ins, jax.tree.map(wide, out_specs), check_vma, tuple(outer))(*args)
        return results, jax.tree.map(lambda _: True, results)

    return call


def axes_in(spec: PartitionSpec) -> Axes:
    return tuple(a for e in spec.partitions if e for a in ((e,) if isinstance(e, str) else e))


def is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def of_gradient(spec: PartitionSpec) -> PartitionSpec:
    """The spec of the gradient of an array of this spec: what is reduced for the one is partial sums of the other."""
    return PartitionSpec(*spec.partitions, reduced=spec.unreduced, unreduced=spec.reduced)
