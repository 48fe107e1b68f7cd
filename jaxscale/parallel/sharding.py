"""Where a matmul meets the mesh: logical axis names, two small tables, and one `einsum`.

A parameter or an activation says what its dims *mean* (`embed`, `heads`, `batch`); the two tables of `Rules`
say which mesh axes split that meaning. Nothing else in jaxscale names a mesh axis, and this module knows
nothing of transformers.

Notation in comments is the scaling book's: `w[D_fsdp, F_tensor]` is split over fsdp along D, tensor along F.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import flax.core.spmd
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from jaxscale import config as cfg
from jaxscale.blueprint.cases import Axes, aligned, partial_over, without
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.rules import (
    DEFAULT_RULES,
    Rules,
    check_divides,
    count,
    few_kept_whole,
    present,
)
from jaxscale.blueprint.rules import make_rules as make_rules
from jaxscale.blueprint.sequence import in_zigzag, order
from jaxscale.parallel.local import mapped_axes, on_each_device
from jaxscale.parallel.on_cpu import flat_matmul, float32_sums, is_matmul

PyTree = Any


_current_rules: contextvars.ContextVar[Rules] = contextvars.ContextVar("rules", default=DEFAULT_RULES)
_current_mesh: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


def fit_rules(rules: Rules, sizes: Mapping[str, int], config: cfg.Config) -> Rules:
    """The rules on a mesh of these sizes, few kv heads kept whole.

    Raises ValueError with the numbers that do not fit.
    """
    check_divides(rules, sizes, config)
    return replace(few_kept_whole(rules, sizes, blueprint(config.model)), zigzag=in_zigzag(config))


# --- the context: which mesh, which rules ---------------------------------------------------------------------


@contextlib.contextmanager
def on_mesh(mesh: Mesh | AbstractMesh, rules: Rules = DEFAULT_RULES) -> Iterator[None]:
    """Inside, parameters are born sharded by `rules` and `shard`/`einsum` know the mesh."""
    table = [(name, present(axes, mesh.axis_names) or None) for name, axes in rules.parameters.items()]
    rules_token = _current_rules.set(rules)
    mesh_token = _current_mesh.set(mesh if isinstance(mesh, Mesh) else None)
    set_mesh = jax.set_mesh(mesh) if isinstance(mesh, Mesh) else jax.sharding.use_abstract_mesh(mesh)
    try:
        with set_mesh, flax.core.spmd.logical_axis_rules(table):
            yield
    finally:
        _current_rules.reset(rules_token)
        _current_mesh.reset(mesh_token)


def current_mesh() -> AbstractMesh:
    """The mesh of the surrounding `on_mesh` (or `jax.set_mesh`)."""
    return jax.sharding.get_abstract_mesh()


def device() -> jax.Device:
    """The first of those that are compiled for: of the mesh (which may not be here), or else of JAX's default."""
    mesh = _current_mesh.get()
    return jax.devices()[0] if mesh is None else mesh.devices.flat[0]


def platform() -> str:
    """The platform that is compiled for."""
    name: str = device().platform
    return name


def mesh_here() -> Mesh | AbstractMesh:
    """The mesh of the surrounding `on_mesh`, with its devices where it has any."""
    return _current_mesh.get() or current_mesh()


def on_devices(abstract: PyTree) -> PyTree:
    """Shapes as `jax.eval_shape` gives them, with their layouts on this mesh's devices where it has any."""
    mesh = _current_mesh.get()
    if mesh is None:
        return abstract

    def place(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        layout = x.sharding.spec if x.sharding is not None else PartitionSpec()  # keys come without
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(mesh, layout))

    return jax.tree.map(place, abstract)


def axes_of(name: str | None) -> Axes:
    """The mesh axes, present here, that split an activation's logical axis; inside `over_axis` not the mapped ones."""
    if name is None:
        return ()
    return without(present(_current_rules.get().activations[name], current_mesh().axis_names), mapped_axes())


def nought() -> jax.Array:
    """0, on the mesh in context: a scan from `jnp.zeros(())`, which is on none, does not lower mapped over replicas."""
    zero: jax.Array = jnp.zeros((), out_sharding=jax.P())
    return zero


def stage_axes() -> Axes:
    """The mesh axes, present here, that split the layers into a pipeline's stages."""
    return present(_current_rules.get().parameters["layers"], current_mesh().axis_names)


def shard_count(name: str) -> int:
    """Into how many parts the mesh cuts an activation's logical axis."""
    return count(axes_of(name), current_mesh().shape)


def reading_order(tokens: int) -> jax.Array:
    """Which token, in reading order, stands at each place of a row of this mesh's batches: [tokens], int32."""
    shards = shard_count("sequence")
    return jnp.arange(tokens) if shards == 1 else jnp.asarray(order(tokens, shards, zigzag=in_zigzag_here()))


def in_zigzag_here() -> bool:
    """Do tokens of a split sequence lie in zigzag order under the rules in context?"""
    return _current_rules.get().zigzag


def spec(*names: str | None) -> PartitionSpec:
    """PartitionSpec of an activation whose dims have these logical names."""
    return to_spec([axes_of(name) for name in names])


def to_spec(dims: list[Axes], **marks: set[str]) -> PartitionSpec:
    entries = [d[0] if len(d) == 1 else (d or None) for d in dims]
    return PartitionSpec(*entries, **{k: v for k, v in marks.items() if v})


def dims_of(x: jax.Array) -> list[Axes]:
    """The mesh axes that split each dim of `x`, read from its type."""
    return dims_of_type(jax.typeof(x))


def dims_of_type(kind: Any) -> list[Axes]:
    entries = tuple(kind.sharding.spec.partitions)
    entries += (None,) * (kind.ndim - len(entries))
    return [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in entries]


def reduced_of(x: jax.Array) -> frozenset[str]:
    return frozenset(jax.typeof(x).sharding.spec.reduced)


# --- moving and multiplying -----------------------------------------------------------------------------------


def shard(x: jax.Array, *names: str | None) -> jax.Array:
    """Move `x` to the layout of its dims' logical names. Already there: nothing is sent."""
    moved: jax.Array = jax.reshard(x, spec(*names))
    return moved


def gather(x: jax.Array, *names: str | None, over: str) -> jax.Array:
    """Move `x` to the layout of `names` for several matmuls whose outputs are split over `over`.

    # x[B_data, T_tensor, D] -> x[B_data, T, D]   all-gather over tensor

    Each of those matmuls sends back a partial sum of x's gradient. The mark `reduced` on x's type lets them be
    added on the device first and sent once: one reduce-scatter instead of one all-reduce a matmul.
    """
    with jax.named_scope(f"gather_for_{over}"):
        return move(x, [axes_of(n) for n in names], set(axes_of(over)))


@jax.custom_vjp
def gradient_first(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x and a parameter as they are; in the backward pass w's gradient is whole, scattered and done before x's goes on.

    Without it a gradient waits as large as it was gathered, until the compiler finds time to scatter it.
    """
    return x, w


gradient_first.defvjp(lambda x, w: ((x, w), None), lambda _, gradients: jax.lax.optimization_barrier(gradients))


def with_vectors(run: Callable[..., jax.Array], x: jax.Array, *vectors: jax.Array) -> jax.Array:
    """An elementwise `run(x, *vectors)` in x's dtype; the vectors' gradients cross the mesh in their own.

    A vector may have several dims: they are x's last ones, and split as these.

    shard_map, because outside one a vector is widened first, and its gradient would be summed over the mesh as wide.
    """
    dims = dims_of(x)
    if current_mesh().size == 1:
        return run(x, *(v.astype(x.dtype) for v in vectors))

    def everywhere(v: jax.Array) -> jax.Array:
        others = tuple(a for dim in dims[: x.ndim - v.ndim] for a in dim)
        varying: jax.Array = jax.lax.pcast(v, others, to="varying")
        return varying

    def local(x: jax.Array, *vectors: jax.Array) -> jax.Array:
        return run(x, *(everywhere(v).astype(x.dtype) for v in vectors))

    here, vector_specs = to_spec(dims), [to_spec(dims[x.ndim - v.ndim :]) for v in vectors]
    body = on_each_device(local, (here, *vector_specs), here)
    with jax.named_scope("norm"):
        result: jax.Array = body(x, *(jax.reshard(v, s) for v, s in zip(vectors, vector_specs, strict=True)))
        return result


def einsum(
    formula: str,
    x: jax.Array,
    w: jax.Array,
    *,
    out: tuple[str | None, ...],
    dtype: jnp.dtype | None = None,
    name: str = "",
) -> jax.Array:
    """`jnp.einsum` of two operands on the mesh; `out` names the result's dims and so its layout.

    What is sent follows from the operands' types and `out`, by the scaling book's four cases, letter by letter:

    1. no contracted dim is split: nothing is sent.
    2. one operand's contracted dim is split, or split over an axis that the result uses elsewhere (a parameter's
       fsdp axis, which also splits the batch): that operand is all-gathered over that axis first, and its gradient
       reduce-scattered back.
    3. both contracted dims are split alike: partial sums, then reduce-scatter (where `out` is split over that axis)
       or all-reduce.
    4. both operands' other dims are split over one axis: the one that `out` does not want split is gathered.

    Args:
        formula: like `"btd,df->btf"`; letters only, no ellipsis.
        out: logical activation names of the result's dims.
        dtype: of the accumulator and the result (`preferred_element_type`).
        name: of the matmul and what it sends, in profiles, compiled programs and `explain`.
    """
    with jax.named_scope(name or "einsum"):
        if current_mesh().size == 1 and is_matmul(formula):
            return jax.named_scope(formula)(flat_matmul)(formula, x, w, layout=spec(*out), dtype=dtype)
        x, w, result, contracted = align(formula, x, w, out=out)
        multiply = float32_sums if platform() == "cpu" else jnp.einsum
        if not contracted:
            return multiply(formula, x, w, out_sharding=to_spec(result), preferred_element_type=dtype)
        whole = to_spec([tuple(a for a in axes if a not in contracted) for axes in result], unreduced=contracted)
        partial = multiply(formula, x, w, out_sharding=whole, preferred_element_type=dtype)
        summed: jax.Array = jax.reshard(partial, to_spec(result))
        return summed


def align(
    formula: str, x: jax.Array, w: jax.Array, *, out: tuple[str | None, ...]
) -> tuple[jax.Array, jax.Array, list[Axes], set[str]]:
    """The first half of `einsum`: both operands moved to where the matmul wants them.

    Use it by itself to gather a weight once, outside a loop of einsums.

    Returns:
        x and w as the matmul takes them, the mesh axes of each dim of the result, and the axes over which the
        contracted dims are split (over these the local products are partial sums).
    """
    inputs, out_letters = formula.split("->")
    x_letters, w_letters = inputs.split(",")
    result = dict(zip(out_letters, (axes_of(name) for name in out), strict=True))
    split_x, split_w = dict(zip(x_letters, dims_of(x), strict=False)), dict(zip(w_letters, dims_of(w), strict=False))
    keep_x, keep_w = aligned(split_x, split_w, result)
    x = move(x, list(keep_x.values()), set(partial_over(keep_w, keep_x)))
    w = move(w, list(keep_w.values()), set(partial_over(keep_x, keep_w)))
    contracted = {a for c in x_letters if c not in result for a in keep_x[c]}
    return x, w, list(result.values()), contracted


def move(x: jax.Array, dims: list[Axes], reduced: set[str]) -> jax.Array:
    """Gather `x` to `dims`, marked so that its gradient is reduced over `reduced` in two steps.

    # w[D_fsdp, F_tensor] -> w[D, F_tensor]   all-gather over fsdp; back: reduce-scatter over fsdp, all-reduce over data

    The mark comes in two steps because their transposes are the two collectives wanted: in one step the gradient
    would be all-reduced whole over data and fsdp together, and then sliced.
    """
    mine = {a for axes in dims_of(x) for a in axes}
    reduced = reduced | reduced_of(x)
    first = reduced - mine
    if first - reduced_of(x):
        x = jax.reshard(x, to_spec(dims_of(x), reduced=first))
    if dims_of(x) != dims or reduced_of(x) != reduced:
        x = jax.reshard(x, to_spec(dims, reduced=reduced))
    return x
