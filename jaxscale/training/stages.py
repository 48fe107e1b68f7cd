"""A model whose layers lie in stages along a mesh axis.

All stages do the same at the same time: what they hold has a leading dim of stages, split over the axis, and
`over_axis` maps over it. So nothing of the model changes, and every other axis works inside a stage.

Not staged are the embedding and the head. Their vocabulary is split over the stages, so each computes its share for the
first stage and of the last stage's logits: no stage waits for another's head, and a tied table lies as any other.

Dims: S stages, L layers, M microbatches, R places of the ring, B, T, D as everywhere.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxscale import config as cfg
from jaxscale.blueprint.decoder import LAYERS
from jaxscale.data.columns import DOCUMENTS
from jaxscale.models import pattern
from jaxscale.objectives.objective import Batch, Sums
from jaxscale.objectives.token_sums import counted as counted_tokens
from jaxscale.parallel.local import on_each_device, over_axis
from jaxscale.parallel.sharding import axes_of, current_mesh, dims_of, spec, stage_axes, to_spec
from jaxscale.training.frozen import by_path, nested

PyTree = Any
Merge = Callable[[PyTree], Any]  # parameters -> the module that holds them
OfStage = Callable[[Any, Any], Any]  # (stage, tick) -> a place
Inputs = dict[str, jax.Array]  # of layers, by stack

COUNTED = "counted"  # what a token counts in the layers' sums
# of a model, as `models.transformer` has them
PIECES = ("embed", "stacks", "states", "stack_of", "layer", "final_norm", "head", "unembed")
STREAM = ("batch", "residual_sequence", "embed")  # what goes from stage to stage: [B, T, D]


def has_stages() -> bool:
    """Does the mesh in context split the layers?"""
    return bool(stage_axes())


def add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def taken(batch: Batch, i: jax.Array) -> Batch:
    """Microbatch i: [B, T] each. Where there is none it is another one, which nobody reads."""
    microbatch: Batch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False), batch)
    return microbatch


class Stages:
    """A model in stages, on the mesh in context: its pieces, and what goes between them.

    Attributes:
        axis: the mesh axis along which they lie; `count`: S.
        outer: parameters that are in no stage.
        blocks: those of the layers, by stack: [S, L/S, ...], L the layers of the stack.
    """

    def __init__(self, config: cfg.Config, merge: Merge, params: PyTree):
        (self.axis,) = stage_axes()
        self.count = current_mesh().shape[self.axis]
        self.config, self.merge = config, merge
        self.model: Any = merge(params)
        self.layers = {name: params[name] for name in self.model.stacks}
        self.outer = {name: values for name, values in params.items() if name not in self.layers}
        self.blocks: PyTree = jax.tree.map(self.staged, self.model.states)
        self.spec = to_spec([(self.axis,), *map(axes_of, STREAM)])  # of an array [S, B, T, D]
        self.ring_spec = to_spec([(), (self.axis,), (), *map(axes_of, STREAM)])

    def staged(self, x: jax.Array) -> jax.Array:
        """[L, ...] as [S, L/S, ...]: nothing is sent."""
        layers, *rest = dims_of(x)
        return x.reshape((self.count, -1, *x.shape[1:]), out_sharding=to_spec([layers, (), *rest]))

    def joined(self, of_outer: PyTree, of_blocks: PyTree) -> PyTree:
        """Gradients in the shape of the trained parameters."""
        pure = {name: nnx.to_pure_dict(jax.tree.map(self.whole, state)) for name, state in of_blocks.items()}
        gradients = by_path(pure)
        return {**of_outer, **nested({path: gradients[path] for path in by_path(self.layers)})}

    def whole(self, x: jax.Array) -> jax.Array:
        """[S, L/S, ...] as [L, ...]: nothing is sent."""
        stages, _, *rest = dims_of(x)
        return x.reshape((-1, *x.shape[2:]), out_sharding=to_spec([stages, *rest]))

    # --- zeros to begin with

    def stream(self, rows: int) -> jax.Array:
        """What stages hand on: [S, B, T, D], of so many rows."""
        shape = (self.count, rows, self.config.data.seq_len, self.config.model.embed_dim)
        return jnp.zeros(shape, self.model.dtype, out_sharding=self.spec)

    def ring(self, places: int, rows: int) -> Inputs:
        """Inputs of all layers: [R, S, L/S, B, T, D] for each stack."""
        stages, *rest = self.stream(rows).shape
        layers = {name: jax.tree.leaves(blocks)[0].shape[1] for name, blocks in self.blocks.items()}
        zeros = partial(jnp.zeros, dtype=self.model.dtype, out_sharding=self.ring_spec)
        return {name: zeros((places, stages, n, *rest)) for name, n in layers.items()}

    def zeros(self) -> tuple[PyTree, tuple[PyTree, Sums]]:
        """Gradients, float32: those in no stage, and those of the layers beside the layers' sums [S, L/S, ...]."""
        outer, blocks = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), (self.outer, self.blocks))
        return outer, (blocks, self.of_sums(lambda sums: sums))

    def of_sums(self, run: Callable[[Sums], Sums]) -> Sums:
        """What `run` makes of the layers' sums at 0, [L, ...] each, as [S, L/S, ...]."""
        shapes: dict[str, tuple[int, ...]] = getattr(self.model, "sums_of_layers", {})
        sums = run({name: jnp.zeros(shape) for name, shape in shapes.items()})
        return {name: self.staged(jax.reshard(x, jax.P(self.axis))) for name, x in sums.items()}

    # --- the model's pieces

    def embedded(self, outer: PyTree, part: Batch) -> jax.Array:
        """What the first stage reads; on all of them."""
        model: Any = self.merge({**outer, **self.layers})
        x: jax.Array = model.embed(part["tokens"], part.get("positions"))
        return x

    def finished(self, outer: PyTree, x: jax.Array) -> Any:
        """The model as an objective takes it, its layers done."""
        return Finished(self.merge({**outer, **self.layers}), x)

    def forward(self, y: jax.Array, batch: Batch, t: jax.Array) -> tuple[jax.Array, Inputs]:
        """The forward pass of tick t: outputs [S, B, T, D], and inputs of the layers [S, L/S, B, T, D]."""
        x = self.moved(y, self.embedded(self.outer, taken(batch, t)))
        documents = self.microbatch(batch, lambda s, t: t - s, t)
        both: tuple[jax.Array, Inputs] = over_axis(self.run, self.axis)(self.blocks, x, documents)
        return both

    def run(self, blocks: PyTree, x: jax.Array, documents: Batch) -> tuple[jax.Array, Inputs]:
        """One stage forward: its output, and the inputs of its layers [L/S, B, T, D]."""
        layer = self.layer(x.shape, documents)
        both: tuple[jax.Array, Inputs] = pattern.scan_runs(
            lambda x, block, kind: (layer(block, x, kind)[0], x), x, blocks, self.runs, unroll=self.model.unroll
        )
        return both

    def pull(
        self,
        blocks: PyTree,
        inputs: Inputs,
        dy: jax.Array,
        documents: Batch,
        dsums: Sums,
        total: tuple[PyTree, Sums],
    ) -> tuple[jax.Array, tuple[PyTree, Sums]]:
        """One stage backward: the gradient of its input, and its parameters' gradients and layers' sums added to
        `total`.

        Args:
            dsums: the gradient of the sums [L/S, ...], whatever they are.
        """
        layer = self.layer(dy.shape, documents)

        def back(
            dy: jax.Array, at: tuple[PyTree, jax.Array, Sums, PyTree], kind: cfg.LayerKind
        ) -> tuple[jax.Array, PyTree]:
            block, x, dsums, total = at
            (_, sums), pull = jax.vjp(lambda block, x: layer(block, x, kind), block, x)
            d_block, dx = pull((dy, dsums))
            return dx, add(total, (d_block, sums))

        xs: PyTree = {name: (blocks[name], inputs[name], {}, (total[0][name], {})) for name in blocks}  # without sums
        xs[LAYERS] = blocks[LAYERS], inputs[LAYERS], dsums, (total[0][LAYERS], total[1])
        dx, by_stack = pattern.scan_runs(back, dy, xs, self.runs, reverse=True, unroll=self.model.unroll)
        return dx, ({name: both[0] for name, both in by_stack.items()}, by_stack[LAYERS][1])

    def layer(
        self, shape: tuple[int, ...], documents: Batch
    ) -> Callable[[PyTree, jax.Array, cfg.LayerKind], tuple[jax.Array, Sums]]:
        """(parameters of a layer, its input, its kind) -> its output and sums, for inputs of this shape [B, T, D]."""
        run = self.model.layer(shape[:2], *(documents.get(name) for name in (*DOCUMENTS, COUNTED)))
        return lambda block, x, kind: run(x, block, kind)

    @property
    def runs(self) -> list[tuple[list[tuple[str, cfg.LayerKind]], int]]:
        """Of a stage's layers: each stage begins with the first kind (`blueprint.rules.check_stages`)."""
        model = self.config.model
        return [([(self.model.stack_of(kind), kind) for kind in model.kinds], model.num_layers // self.count)]

    # --- between stages

    def moved(self, y: jax.Array, end: jax.Array | None, *, back: bool = False) -> jax.Array:
        """Each stage's array to the next stage, or `back` to the one before. The stage at the end takes `end`."""
        count, axis = self.count, self.axis
        pairs = [(i + 1, i) if back else (i, i + 1) for i in range(count - 1)]
        takes = count - 1 if back else 0

        def local(y: jax.Array, *end: jax.Array) -> jax.Array:
            received = jax.lax.ppermute(y, axis, pairs)
            return jnp.where(jax.lax.axis_index(axis) == takes, end[0][None], received) if end else received

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
            masked = jnp.where(jax.lax.axis_index(self.axis) == stage, x[0], 0)
            summed: jax.Array = jax.lax.psum(masked, self.axis)
            return summed

        with jax.named_scope("stages"):
            return on_each_device(local, (self.spec,), spec(*STREAM))(x)

    # --- each stage its own

    def microbatch(self, batch: Batch, which: OfStage, t: jax.Array, *, counted: bool = False) -> Batch:
        """Documents of the microbatch which(stage, t), each stage its own: [M, B, T] -> [S, B, T].

        Args:
            counted: what each token counts too, in the layers' sums: nothing where there is no such microbatch.
        """
        columns = {name: batch[name] for name in DOCUMENTS if name in batch}
        here, there = spec(None, "batch", "sequence"), to_spec([(self.axis,), axes_of("batch"), axes_of("sequence")])
        picked = partial(self.picked, t=t, which=which, layouts=(here, there))
        documents = {name: picked(x) for name, x in columns.items()}
        if counted and "weights" in batch:
            documents[COUNTED] = picked(counted_tokens(batch), empty=True)
        return documents

    def of_ring(self, ring: Inputs, which: OfStage, t: jax.Array) -> Inputs:
        """The ring's place which(stage, t), each stage its own: [R, S, L/S, B, T, D] -> [S, L/S, B, T, D]."""
        there = to_spec([(self.axis,), (), *map(axes_of, STREAM)])
        return {name: self.picked(x, t, which=which, layouts=(self.ring_spec, there)) for name, x in ring.items()}

    def picked(self, x: jax.Array, t: jax.Array, *, which: OfStage, layouts: Any, empty: bool = False) -> jax.Array:
        """Each stage's own place of dim 0; `layouts` of x and of the result; `empty`: 0 for a place that is not there.

        Otherwise it is another one.
        """

        def local(x: jax.Array, t: jax.Array) -> jax.Array:
            place = which(jax.lax.axis_index(self.axis), t)
            entry: jax.Array = jax.lax.dynamic_index_in_dim(x, place, 0, keepdims=x.ndim == 3)
            return jnp.where((place >= 0) & (place < len(x)), entry, 0) if empty else entry

        return on_each_device(local, (layouts[0], jax.P()), layouts[1])(x, t)


class Finished:
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
