"""A step whose layers lie in stages along a mesh axis: 1F1B in lock-step, in one program.

`blueprint.stages` has the ticks. All stages do the same in a tick: what they hold has a leading dim of stages, split
over the axis, and `over_axis` maps over it. So nothing of the model changes, and every other axis works inside a stage.

Not staged are the embedding and the head. Their vocabulary is split over the stages, so each computes its share for the
first stage and of the last stage's logits: no stage waits for another's head, and a tied table lies as any other.

A stage keeps the inputs of its layers for the microbatches in flight, in a ring of 2S - 1 places, and computes a layer
again just before its gradient. The memory does not grow with the number of microbatches.

Dims: S stages, L layers, M microbatches, R places of the ring, B, T, D as everywhere.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxscale import config as cfg
from jaxscale.blueprint.stages import Schedule
from jaxscale.data.columns import DOCUMENTS
from jaxscale.objectives import make_objective
from jaxscale.objectives.objective import Batch, Objective, Sums
from jaxscale.parallel.local import on_each_device, over_axis
from jaxscale.parallel.sharding import axes_of, current_mesh, dims_of, spec, stage_axes, to_spec

PyTree = Any
Merge = Callable[[PyTree], nnx.Module]
Metrics = dict[str, jax.Array]

LAYERS = "layers"  # the model's field that is cut into stages
PIECES = ("embed", LAYERS, "layer", "final_norm", "head", "unembed")  # of a model, as `models.transformer` has them
STREAM = ("batch", "residual_sequence", "embed")  # what goes from stage to stage: [B, T, D]


def has_stages() -> bool:
    """Does the mesh in context split the layers?"""
    return bool(stage_axes())


def require_pieces(model: Any, objective: Objective) -> None:
    """Raise ValueError for a model that cannot be cut into stages, or an objective that trains a part of it."""
    if lacks := [name for name in PIECES if not hasattr(model, name)]:
        raise ValueError(
            f"{type(model).__name__} has no {', '.join(lacks)}: a pipeline takes the pieces of models.transformer; "
            f"set mesh.{stage_axes()[0]}=1"
        )
    if objective.frozen:
        raise ValueError(
            f"the objective trains all but {', '.join(objective.frozen)}, and a pipeline trains all parameters; "
            f"set mesh.{stage_axes()[0]}=1"
        )


def gradients(
    config: cfg.Config, merge: Merge, params: PyTree, batch: Batch, rng: jax.Array
) -> tuple[PyTree, Metrics]:
    """As `training.step.gradients`, on a mesh whose layers are in stages."""
    objective = make_objective(config)
    count = objective.count(batch)
    step = _Step(_Stages(config, merge, params), objective, batch, jnp.maximum(count, 1), rng)
    ticks = Schedule(step.stages.count, config.step.microbatches)

    def first(carry: PyTree, t: jax.Array) -> tuple[PyTree, None]:
        return step.forward(*carry, t), None

    def both(carry: PyTree, t: jax.Array) -> tuple[PyTree, None]:
        (y, ring), dx, (of_outer, of_blocks), total = carry
        y, ring = step.forward(y, ring, t)
        d_outer, dy, metrics = step.loss(y, t)
        dx, grads = step.backward(dx, dy, ring, (add(of_outer, d_outer), of_blocks), t)
        return ((y, ring), dx, grads, add(total, metrics)), None

    def last(carry: PyTree, t: jax.Array) -> tuple[PyTree, None]:
        ring, dx, grads = carry
        return (ring, *step.backward(dx, None, ring, grads, t)), None

    nothing = step.stages.stream()
    here, _ = jax.lax.scan(first, (nothing, step.stages.ring(ticks.in_flight)), jnp.arange(ticks.ramp))
    zeros = {name: jnp.zeros(()) for name in objective.means}
    steady = jnp.arange(ticks.ramp, ticks.ticks)
    ((_, ring), dx, grads, metrics), _ = jax.lax.scan(both, (here, nothing, step.stages.zeros(), zeros), steady)
    rest = jnp.arange(ticks.ticks, ticks.ticks + ticks.ramp)
    (_, _, grads), _ = jax.lax.scan(last, (ring, dx, grads), rest)
    return step.stages.joined(*grads), metrics | {objective.unit: count}


def evaluated(config: cfg.Config, merge: Merge, params: PyTree, parts: Batch, sums: Callable[..., Sums]) -> Sums:
    """`sums(model, part)`, added up over parts [n, B, T]: the ticks of a pipeline that only runs forward.

    Gathering the layers instead would put the whole model on each device, one stage after another.
    """
    stages = _Stages(config, merge, params)
    ticks = Schedule(stages.count, len(parts["tokens"]))

    def first(y: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
        return stages.forward(y, parts, t)[0], None

    def both(y: jax.Array, t: jax.Array) -> tuple[jax.Array, Sums]:
        y, _ = stages.forward(y, parts, t)
        return y, sums(stages.finished(stages.outer, stages.of_last(y)), taken(parts, t - ticks.ramp))

    y, _ = jax.lax.scan(first, stages.stream(parts["tokens"].shape[1]), jnp.arange(ticks.ramp))
    _, found = jax.lax.scan(both, y, jnp.arange(ticks.ramp, ticks.ticks))
    totals: Sums = jax.tree.map(jnp.sum, found)
    return totals


def outputs(config: cfg.Config, merge: Merge, params: PyTree, batch: Batch) -> jax.Array:
    """What the stages give when the first microbatch has passed the last of them: [S, B, T, D], each its own."""
    stages = _Stages(config, merge, params)
    y, _ = jax.lax.scan(lambda y, t: (stages.forward(y, batch, t)[0], None), stages.stream(), jnp.arange(stages.count))
    return y


def add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def taken(batch: Batch, i: jax.Array) -> Batch:
    """Microbatch i: [B, T] each. Beyond the last one, the last."""
    found: Batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False), batch)
    return found


# --- one step -------------------------------------------------------------------------------------------------


class _Step:
    """The three things that happen in a tick."""

    def __init__(self, stages: "_Stages", objective: Objective, batch: Batch, divisor: jax.Array, rng: jax.Array):
        self.stages, self.objective, self.batch, self.divisor, self.rng = stages, objective, batch, divisor, rng

    def forward(self, y: jax.Array, ring: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Each stage's output of the tick before to the next stage, and through it; its layers' inputs to the ring."""
        y, inputs = self.stages.forward(y, self.batch, t)
        return y, jax.lax.dynamic_update_index_in_dim(ring, inputs, t % len(ring), 0)

    def loss(self, y: jax.Array, t: jax.Array) -> tuple[PyTree, jax.Array, Metrics]:
        """Of the microbatch that has passed the last stage: gradients of the head and of y, and the metrics."""
        i = t - (self.stages.count - 1)
        part, rng = taken(self.batch, i), jax.random.fold_in(self.rng, i)

        def objective(outer: PyTree, x: jax.Array) -> tuple[jax.Array, Metrics]:
            model = self.stages.finished(outer, x)
            sums = self.objective.sums(model, part, divisor=self.divisor, rng=rng)
            return sums["objective"], {name: sums[of] / self.divisor for name, of in self.objective.means.items()}

        grad = jax.grad(objective, (0, 1), has_aux=True)
        (d_outer, dy), metrics = grad(self.stages.outer, self.stages.of_last(y))
        return d_outer, dy, metrics

    def backward(
        self, dx: jax.Array, dy: jax.Array | None, ring: jax.Array, grads: tuple[PyTree, PyTree], t: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, PyTree]]:
        """Each stage's gradient of the tick before to the stage before it, and through it.

        Args:
            dy: what the last stage takes; None: nothing. Where a stage has no microbatch its gradient is zero, and so
                is all that follows from it.
        """
        stages, last, of_outer = self.stages, self.stages.count - 1, grads[0]
        dy = stages.moved(dx, dy, back=True)
        documents = stages.microbatch(self.batch, lambda s, t: t - 2 * last + s, t)
        inputs = stages.of_ring(ring, lambda s, t: (t - 2 * (last - s)) % len(ring), t)
        dx, of_blocks = over_axis(stages.pull, stages.axis)(stages.blocks, inputs, dy, documents, grads[1])
        part = taken(self.batch, t - 2 * last)
        _, pull = jax.vjp(lambda outer: stages.embedded(outer, part), stages.outer)
        return dx, (add(of_outer, pull(stages.of_first(dx))[0]), of_blocks)


# --- the stages -----------------------------------------------------------------------------------------------


class _Stages:
    """A model in stages.

    Attributes:
        axis: the mesh axis along which they lie; `count`: S.
        outer: parameters that are in no stage.
        blocks: those of the layers, [S, L/S, ...].
    """

    def __init__(self, config: cfg.Config, merge: Merge, params: PyTree):
        (self.axis,) = stage_axes()
        self.count = current_mesh().shape[self.axis]
        self.config, self.merge = config, merge
        self.outer = {name: values for name, values in params.items() if name != LAYERS}
        self.layers = params[LAYERS]
        self.model: Any = merge(params)
        self.blocks = jax.tree.map(self.staged, nnx.split(self.model.layers)[1])
        self.spec = to_spec([(self.axis,), *map(axes_of, STREAM)])  # of an array [S, B, T, D]
        self.ring_spec = to_spec([(), (self.axis,), (), *map(axes_of, STREAM)])

    def staged(self, x: jax.Array) -> jax.Array:
        """[L, ...] as [S, L/S, ...]: nothing is sent."""
        layers, *rest = dims_of(x)
        return x.reshape((self.count, -1, *x.shape[1:]), out_sharding=to_spec([layers, (), *rest]))

    def joined(self, of_outer: PyTree, of_blocks: PyTree) -> PyTree:
        """Gradients in the shape of the parameters."""

        def whole(x: jax.Array) -> jax.Array:
            stages, _, *rest = dims_of(x)
            return x.reshape((-1, *x.shape[2:]), out_sharding=to_spec([stages, *rest]))

        return {**of_outer, LAYERS: nnx.to_pure_dict(jax.tree.map(whole, of_blocks))}

    # --- zeros to begin with

    def stream(self, rows: int | None = None) -> jax.Array:
        """What stages hand on: [S, B, T, D]."""
        rows = rows or self.config.data.batch_size // self.config.step.microbatches
        shape = (self.count, rows, self.config.data.seq_len, self.config.model.embed_dim)
        return jnp.zeros(shape, self.model.dtype, out_sharding=self.spec)

    def ring(self, places: int) -> jax.Array:
        """Inputs of all layers: [R, S, L/S, B, T, D]."""
        stages, *rest = self.stream().shape
        layers = self.config.model.num_layers // stages
        return jnp.zeros((places, stages, layers, *rest), self.model.dtype, out_sharding=self.ring_spec)

    def zeros(self) -> tuple[PyTree, PyTree]:
        """Gradients, float32."""
        outer, blocks = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), (self.outer, self.blocks))
        return outer, blocks

    # --- the model's pieces

    def embedded(self, outer: PyTree, part: Batch) -> jax.Array:
        """What the first stage reads; on all of them."""
        model: Any = self.merge({**outer, LAYERS: self.layers})
        x: jax.Array = model.embed(part["tokens"], part.get("positions"))
        return x

    def finished(self, outer: PyTree, x: jax.Array) -> Any:
        """The model as an objective takes it, its layers done."""
        return _Finished(self.merge({**outer, LAYERS: self.layers}), x)

    def forward(self, y: jax.Array, batch: Batch, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The forward pass of tick t: outputs [S, B, T, D], and inputs of the layers [S, L/S, B, T, D]."""
        x = self.moved(y, self.embedded(self.outer, taken(batch, t)))
        documents = self.microbatch(batch, lambda s, t: t - s, t)
        both: tuple[jax.Array, jax.Array] = over_axis(self.run, self.axis)(self.blocks, x, documents)
        return both

    def run(self, blocks: PyTree, x: jax.Array, documents: Batch) -> tuple[jax.Array, jax.Array]:
        """One stage forward: its output, and the inputs of its layers [L/S, B, T, D]."""
        layer = self.layer(x.shape, documents)
        y, inputs = jax.lax.scan(lambda x, block: (layer(block, x), x), x, blocks, unroll=self.model.unroll)
        return y, inputs

    def pull(
        self, blocks: PyTree, inputs: jax.Array, dy: jax.Array, documents: Batch, total: PyTree
    ) -> tuple[jax.Array, PyTree]:
        """One stage backward: the gradient of its input, and its parameters' gradients added to `total`."""
        layer = self.layer(dy.shape, documents)

        def back(dy: jax.Array, at: tuple[PyTree, jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
            block, x, total = at
            d_block, dx = jax.vjp(layer, block, x)[1](dy)
            return dx, add(total, d_block)

        return jax.lax.scan(back, dy, (blocks, inputs, total), reverse=True, unroll=self.model.unroll)

    def layer(self, shape: tuple[int, ...], documents: Batch) -> Callable[[PyTree, jax.Array], jax.Array]:
        run = self.model.layer(shape[:2], *(documents.get(name) for name in DOCUMENTS))

        def without_sums(block: PyTree, x: jax.Array) -> jax.Array:
            y, sums = run(x, block)
            if sums:
                raise ValueError(
                    f"layers with sums of their own ({', '.join(sums)}) have no place in a pipeline yet; "
                    f"set mesh.{self.axis}=1"
                )
            found: jax.Array = y
            return found

        return without_sums

    # --- between stages

    def moved(self, y: jax.Array, end: jax.Array | None, *, back: bool = False) -> jax.Array:
        """Each stage's array to the next stage, or `back` to the one before. The stage at the end takes `end`."""
        count, axis = self.count, self.axis
        pairs = [(i + 1, i) if back else (i, i + 1) for i in range(count - 1)]
        takes = count - 1 if back else 0

        def local(y: jax.Array, *end: jax.Array) -> jax.Array:
            found = jax.lax.ppermute(y, axis, pairs)
            return jnp.where(jax.lax.axis_index(axis) == takes, end[0][None], found) if end else found

        given = (y,) if end is None else (y, end)
        with jax.named_scope("stages"):
            return on_each_device(local, (self.spec, spec(*STREAM))[: len(given)], self.spec)(*given)

    def of_first(self, x: jax.Array) -> jax.Array:
        return self.of_stage(x, 0)

    def of_last(self, x: jax.Array) -> jax.Array:
        return self.of_stage(x, self.count - 1)

    def of_stage(self, x: jax.Array, stage: int) -> jax.Array:
        """One stage's array, to all of them: [S, B, T, D] -> [B, T, D]."""

        def local(x: jax.Array) -> jax.Array:
            own = jnp.where(jax.lax.axis_index(self.axis) == stage, x[0], 0)
            found: jax.Array = jax.lax.psum(own, self.axis)
            return found

        with jax.named_scope("stages"):
            return on_each_device(local, (self.spec,), spec(*STREAM))(x)

    # --- each stage its own

    def microbatch(self, batch: Batch, which: Callable[[Any, Any], Any], t: jax.Array) -> Batch:
        """Documents of the microbatch which(stage, t), each stage its own: [M, B, T] -> [S, B, T]."""
        columns = {name: batch[name] for name in DOCUMENTS if name in batch}
        here, there = spec(None, "batch", "sequence"), to_spec([(self.axis,), axes_of("batch"), axes_of("sequence")])
        pick = partial(self.picked, which=which, layouts=(here, there))
        return {name: pick(x, t) for name, x in columns.items()}

    def of_ring(self, ring: jax.Array, which: Callable[[Any, Any], Any], t: jax.Array) -> jax.Array:
        """The ring's place which(stage, t), each stage its own: [R, S, L/S, B, T, D] -> [S, L/S, B, T, D]."""
        there = to_spec([(self.axis,), (), *map(axes_of, STREAM)])
        return self.picked(ring, t, which=which, layouts=(self.ring_spec, there))

    def picked(self, x: jax.Array, t: jax.Array, *, which: Callable[[Any, Any], Any], layouts: Any) -> jax.Array:
        def local(x: jax.Array, t: jax.Array) -> jax.Array:
            place = which(jax.lax.axis_index(self.axis), t)
            found: jax.Array = jax.lax.dynamic_index_in_dim(x, place, 0, keepdims=x.ndim == 3)
            return found

        return on_each_device(local, (layouts[0], jax.P()), layouts[1])(x, t)


class _Finished:
    """A model whose layers are done: an objective reads its hidden states, head and matmul."""

    def __init__(self, model: Any, x_BTD: jax.Array):
        self._model, self._x_BTD = model, x_BTD

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(
        self, tokens_BT: jax.Array, *, positions: jax.Array | None = None, segments: jax.Array | None = None
    ) -> jax.Array:
        """Hidden states, whatever is asked: the tokens have been read."""
        return self.hidden_and_sums(tokens_BT)[0]

    def hidden_and_sums(self, tokens_BT: jax.Array, **_: Any) -> tuple[jax.Array, Sums]:
        hidden: jax.Array = self._model.final_norm(self._x_BTD)
        return hidden, {}
