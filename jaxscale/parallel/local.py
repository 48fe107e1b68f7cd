"""The door to `jax.shard_map`, the program of one device, also under a vmap over an axis of the mesh.

Pipeline stages, and replicas that seldom talk, are a leading dim split over a mesh axis and a vmap over it. jax's own
vmap of a shard_map leaves that axis out of the manual ones. Then jax 0.10 gathers the dim in silence, psum_scatter and
the gradient of all_gather do not lower, and kernels with batching rules of their own lose the axis. Inside `over_axis`
the door therefore puts the dim into the specs, and the body sees the slice of its device.

`jax.custom_batching.custom_vmap` gives a function its own rule for vmap, but it has no reverse mode. So each pass is a
shard_map with such a rule, `jax.custom_vjp` joins the two, and what the forward pass keeps is among its results.
Remat then sees no names inside the body. A function cannot ask whether it is under a vmap, so `over_axis` tells it.
Everywhere else the door is `jax.shard_map` itself: the same program, the same derivatives, the same names for remat.
"""

import contextvars
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import PartitionSpec

Axes = tuple[str, ...]
R = TypeVar("R")

_over: contextvars.ContextVar[Axes] = contextvars.ContextVar("over", default=())  # vmapped mesh axes, outermost first


def over_axis(run: Callable[..., Any], axis: str, in_axes: Any = 0) -> Callable[..., Any]:
    """`jax.vmap(run, in_axes)` over a dim that mesh axis `axis` splits, one slice a device along it.

    `run` may take gradients, rematerialise and contain another `over_axis`, and all of it may have a gradient. Forward
    mode is not supported.
    """
    # by the name a function traced in here differs, for jax's caches, from the same one elsewhere
    mapped = jax.vmap(run, in_axes=in_axes, axis_name=_name(axis))

    def call(*args: Any) -> Any:
        token = _over.set((*_over.get(), axis))
        try:
            return mapped(*args)
        finally:
            _over.reset(token)

    return call


def mapped_axes() -> Axes:
    """The mesh axes of the surrounding `over_axis`: inside it they split no dim."""
    return _over.get()


def on_each_device(
    run: Callable[..., R], in_specs: Sequence[PartitionSpec], out_specs: Any, *, check_vma: bool = True
) -> Callable[..., R]:
    """`jax.shard_map` of `run` on the mesh in context, which may stand inside `over_axis`.

    Args:
        run: from local arrays to one local array or a tuple of them. It closes over no arrays.
        in_specs: one for each positional argument, an array. Integers have no gradient.
        out_specs: one for the result, or a tuple with one for each result.
        check_vma: as in `jax.shard_map`; False for kernels whose results have no types.
    """
    if _over.get():
        return lambda *args: _InSlices(run, in_specs, out_specs, check_vma)(*args)  # one for each call: it keeps types
    return jax.shard_map(run, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=check_vma)


# --- under a vmap ---------------------------------------------------------------------------------------------


class _InSlices:
    """A shard_map inside `over_axis`: `first_pass` and `second_pass` are its forward and backward pass.

    What is kept between them is results of the first: each device's own arrays, the leaves of its backward function.
    jax traces `forward` twice, for types and for the program, and both times it notes the tree of these leaves.
    """

    def __init__(self, run: Callable[..., Any], in_specs: Sequence[PartitionSpec], out_specs: Any, check_vma: bool):
        self.run, self.check_vma, self.over = run, check_vma, _over.get()
        self.in_specs = [*in_specs, PartitionSpec()]  # of the index too
        self.out_specs, self.out_tree = jax.tree.flatten(out_specs)
        sizes = jax.sharding.get_abstract_mesh().shape
        self.sizes = {a: n for a, n in sizes.items() if a not in self.over}  # of the mesh that one slice has
        self.floats: dict[int, jax.ShapeDtypeStruct] = {}  # the arguments that have gradients, by place
        self.kept_specs: list[PartitionSpec] = []
        self.tree: Any = None  # of the backward function, whose leaves are what is kept

    def __call__(self, *args: jax.Array) -> Any:
        # an index along the vmapped axes, so that jax batches both passes even where no other argument is batched
        index = jax.reshard(sum(jax.lax.axis_index(_name(a)) for a in self.over), PartitionSpec())
        self.floats = {i: jax.ShapeDtypeStruct(x.shape, x.dtype) for i, x in enumerate(args) if _is_float(x)}
        both = jax.custom_vjp(self.without_gradients)
        both.defvjp(self.first_pass, self.second_pass)
        return jax.tree.unflatten(self.out_tree, both(*args, index))

    # --- on arrays of the whole mesh ---

    def without_gradients(self, *args: jax.Array) -> list[jax.Array]:
        types = self.types(self.results, self.out_specs, args)
        results: list[jax.Array] = self.batched(self.results, self.in_specs, self.out_specs, types)(*args)
        return results

    def first_pass(self, *args: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        of_results, kept = self.types(self.forward, (self.out_specs, PartitionSpec(tuple(self.sizes))), args)
        types = of_results, [self.stacked(x, s) for x, s in zip(kept, self.kept_specs, strict=True)]
        results, kept = self.batched(self.forward, self.in_specs, (self.out_specs, self.kept_specs), types)(*args)
        return results, kept

    def second_pass(self, kept: list[jax.Array], gradients: list[jax.Array]) -> tuple[jax.Array | None, ...]:
        sent = [i for i, g in enumerate(gradients) if _is_float(g)]
        sent_specs = [_of_gradient(self.out_specs[i]) for i in sent]
        in_specs, out_specs = [*sent_specs, *self.kept_specs], [_of_gradient(self.in_specs[i]) for i in self.floats]
        run = self.batched(partial(self.backward, sent_specs), in_specs, out_specs, list(self.floats.values()))
        by_place = dict(zip(self.floats, run(*(gradients[i] for i in sent), *kept), strict=True))
        return tuple(by_place.get(i) for i in range(len(self.in_specs)))

    def batched(self, body: Callable[..., Any], in_specs: list[PartitionSpec], out_specs: Any, types: Any) -> Any:
        return _batched(body, in_specs, out_specs, types, self.check_vma, self.over)

    def types(self, body: Callable[..., Any], out_specs: Any, args: Sequence[jax.Array]) -> Any:
        """Shapes and dtypes of the results of a shard_map of `body`.

        On a mesh whose vmapped axes have other names: from one with these jax leaves them out, and refuses marks then.
        """
        sizes = jax.sharding.get_abstract_mesh().shape
        names = tuple(f"outside: {a}" if a in self.over else a for a in sizes)
        explicit = (jax.sharding.AxisType.Explicit,) * len(sizes)
        mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), names, axis_types=explicit)
        given = [
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, spec))
            for x, spec in zip(args, self.in_specs, strict=True)
        ]
        with jax.sharding.use_abstract_mesh(mesh):
            run = jax.shard_map(body, in_specs=tuple(self.in_specs), out_specs=out_specs, check_vma=self.check_vma)
            return jax.eval_shape(run, *given)

    # --- on the arrays of one device ---

    def results(self, *args: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(self.run(*args[:-1]))

    def forward(self, *args: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """The results, and what the backward function keeps of each device, with one more dim to stack it by."""

        def differentiable(floats: dict[int, jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
            results = self.results(*(floats.get(i, x) for i, x in enumerate(args)))
            return [x for x in results if _is_float(x)], results

        _, pull, results = jax.vjp(differentiable, {i: args[i] for i in self.floats}, has_aux=True)
        # with the index, so that the second pass is batched too, and after the first, whatever else is kept
        leaves, self.tree = jax.tree.flatten((pull, args[-1]))
        kept = [jnp.asarray(x)[None] for x in leaves]
        self.kept_specs = [self.kept_spec(x) for x in kept]
        return results, kept

    def backward(self, sent: list[PartitionSpec], *args: jax.Array) -> list[jax.Array]:
        """The arguments' gradients from those of the results, laid out by `sent`, and what `forward` kept."""
        gradients, kept = args[: len(sent)], args[len(sent) :]
        pull, _ = jax.tree.unflatten(self.tree, [x[0] for x in kept])
        if self.check_vma:
            (by_place,) = pull(list(gradients))
            return list(by_place.values())
        # No types say what is the same on several devices. As in jax, each takes a share, and what comes back is added.
        shares = [g / math.prod(self.sizes[a] for a in self.unsplit(s)) for g, s in zip(gradients, sent, strict=True)]
        (by_place,) = pull(shares)
        return [jax.lax.psum(x, self.unsplit(self.in_specs[i])) for i, x in by_place.items()]

    def kept_spec(self, x: jax.Array) -> PartitionSpec:
        """Layout of the devices' own `x` as one array: stacked along the axes over which they differ."""
        kind = jax.typeof(x).mat
        axes = tuple(a for a in self.sizes if a in kind.varying or not self.check_vma)
        return PartitionSpec(axes, reduced=kind.reduced, unreduced=kind.unreduced)

    def stacked(self, x: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        """The type of a kept array with as many parts as devices that differ in it."""
        (split,) = spec.partitions
        axes = (split,) if isinstance(split, str) else split or ()
        return jax.ShapeDtypeStruct((math.prod(self.sizes[a] for a in axes), *x.shape[1:]), x.dtype)

    def unsplit(self, spec: PartitionSpec) -> Axes:
        """The axes along which all devices hold the same of an array of this spec."""
        split = {a for e in spec.partitions if e for a in ((e,) if isinstance(e, str) else e)}
        return tuple(a for a in self.sizes if a not in split | spec.unreduced)


def _batched(
    body: Callable[..., Any], in_specs: list[PartitionSpec], out_specs: Any, types: Any, check_vma: bool, over: Axes
) -> Callable[..., Any]:
    """shard_map of `body` once `over_axis` has batched it over all of `over`, innermost first; its results by `types`.

    Until then it has types only: of a program that leaves axes out, jax refuses marks (`reduced`) and psum_scatter.
    """
    if not over:
        return jax.shard_map(body, in_specs=tuple(in_specs), out_specs=out_specs, check_vma=check_vma)
    *outer, axis = over
    call = custom_vmap(lambda *args: jax.tree.map(_never_computed, types, out_specs))

    @call.def_vmap
    def rule(size: int, batched: Sequence[bool], *args: jax.Array) -> tuple[Any, Any]:
        for x, b in zip(args, batched, strict=True):
            if b:
                _check_slices(x, axis)

        def sliced(*args: jax.Array) -> Any:
            # what all slices share is marked as differing, so that each slice has a gradient of its own
            slices = [x[0] if b else jax.lax.pcast(x, axis, to="varying") for x, b in zip(args, batched, strict=True)]
            return jax.tree.map(lambda x: x[None], body(*slices))

        wide_specs = [_wide(s, axis) if b else s for s, b in zip(in_specs, batched, strict=True)]
        wide_out = jax.tree.map(partial(_wide, axis=axis), out_specs)
        wide_types = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), types)
        results = _batched(sliced, wide_specs, wide_out, wide_types, check_vma, tuple(outer))(*args)
        return results, jax.tree.map(lambda _: True, results)

    return call


def _never_computed(kind: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.Array:
    """NaN or -1 of this type, to be noticed."""
    value = jnp.nan if _is_float(kind) else -1
    blank: jax.Array = jnp.full(kind.shape, value, kind.dtype, out_sharding=PartitionSpec(*spec.partitions))
    marked: jax.Array = jax.reshard(blank, spec)
    return marked


def _check_slices(x: jax.Array, axis: str) -> None:
    """Raise ValueError unless the first dim has one slice for each device along `axis`."""
    partitions = jax.typeof(x).sharding.spec.partitions
    split = partitions[0] if partitions else None
    if split not in (axis, (axis,)) or x.shape[0] != jax.sharding.get_abstract_mesh().shape[axis]:
        raise ValueError(
            f"on_each_device meets a vmap over a dim of {x.shape[0]}, split over {split}; with over_axis all its vmaps "
            f"are over_axis, and each is over a dim as long as its mesh axis and split over it alone"
        )


def _wide(spec: PartitionSpec, axis: str) -> PartitionSpec:
    return PartitionSpec(axis, *spec.partitions, reduced=spec.reduced, unreduced=spec.unreduced)


def _of_gradient(spec: PartitionSpec) -> PartitionSpec:
    """The spec of a gradient: an array that is reduced over an axis has partial sums as gradient, and vice versa."""
    return PartitionSpec(*spec.partitions, reduced=spec.unreduced, unreduced=spec.reduced)


def _is_float(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def _name(axis: str) -> str:
    """The name of a vmap over a mesh axis."""
    return f"over {axis}"
