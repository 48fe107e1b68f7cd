"""A step whose layers lie in stages along a mesh axis: 1F1B in lock-step, in one program.

`blueprint.stages` has the ticks, and `training.stages` the stages.

A stage keeps the inputs of its layers for the microbatches in flight, in a ring of 2S - 1 places, and computes a layer
again just before its gradient. The memory does not grow with the number of microbatches.

Dims as in `training.stages`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale import config as cfg
from jaxscale.blueprint.stages import Schedule
from jaxscale.objectives import make_objective
from jaxscale.objectives.objective import Batch, Objective, Sums
from jaxscale.parallel.local import over_axis
from jaxscale.parallel.sharding import nought, stage_axes
from jaxscale.training.stages import PIECES, Inputs, Merge, PyTree, Stages, add, taken

Metrics = dict[str, jax.Array]


def require_pieces(model: Any, objective: Objective) -> None:
    """Raise ValueError for a model that cannot be cut into stages, or an objective that a pipeline has not."""
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


def gradients(config: cfg.Config, merge: Merge, params: PyTree, batch: Batch, rng: jax.Array) -> tuple[PyTree, Metrics]:
    """As `training.step.gradients`, on a mesh whose layers are in stages."""
    objective = make_objective(config)
    count = objective.count(batch)
    step = _Step(Stages(config, merge, params), objective, batch, jnp.maximum(count, 1), rng)
    ticks = step.ticks

    def first(carry: PyTree, t: jax.Array) -> tuple[PyTree, None]:
        y, ring = carry
        return step.forward(y, ring, t), None

    def both(carry: PyTree, t: jax.Array) -> tuple[PyTree, None]:
        (y, ring), dx, (of_outer, of_blocks), total = carry
        y, ring = step.forward(y, ring, t)
        d_outer, dy, metrics = step.loss(y, t)
        dx, grads = step.backward(dx, dy, ring, (add(of_outer, d_outer), of_blocks), t)
        return ((y, ring), dx, grads, add(total, metrics)), None

    def last(carry: PyTree, t: jax.Array) -> tuple[PyTree, None]:
        ring, dx, grads = carry
        return (ring, *step.backward(dx, None, ring, grads, t)), None

    rows = batch["tokens"].shape[1]  # of a microbatch, and of one replica
    nothing, ring = step.stages.stream(rows), step.stages.ring(ticks.in_flight, rows)
    here, _ = jax.lax.scan(first, (nothing, ring), jnp.arange(ticks.ramp))
    zeros = {name: nought() for name, of in objective.means.items() if of not in step.dsums}
    steady = jnp.arange(ticks.ramp, ticks.ticks)
    ((_, ring), dx, grads, metrics), _ = jax.lax.scan(both, (here, nothing, step.stages.zeros(), zeros), steady)
    rest = jnp.arange(ticks.ticks, ticks.ticks + ticks.ramp)
    (_, _, (of_outer, (of_blocks, sums))), _ = jax.lax.scan(last, (ring, dx, grads), rest)
    metrics |= {name: step.of_layers(sums[of]) for name, of in objective.means.items() if of in sums}
    return step.stages.joined(of_outer, of_blocks), metrics | {objective.unit: count}


def evaluated(config: cfg.Config, merge: Merge, params: PyTree, parts: Batch, read: Callable[..., Sums]) -> Sums:
    """`read(model, part)` of each of the parts [n, B, T], stacked: the ticks of a pipeline that only runs forward.

    The layers are not gathered: a device would hold those of all stages.
    """
    stages = Stages(config, merge, params)
    ticks = Schedule(stages.count, len(parts["tokens"]))

    def first(y: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
        return stages.forward(y, parts, t)[0], None

    def both(y: jax.Array, t: jax.Array) -> tuple[jax.Array, Sums]:
        y, _ = stages.forward(y, parts, t)
        return y, read(stages.finished(stages.outer, stages.of_last(y)), taken(parts, t - ticks.ramp))

    y, _ = jax.lax.scan(first, stages.stream(parts["tokens"].shape[1]), jnp.arange(ticks.ramp))
    sums: Sums = jax.lax.scan(both, y, jnp.arange(ticks.ramp, ticks.ticks))[1]
    return sums


def outputs(config: cfg.Config, merge: Merge, params: PyTree, batch: Batch) -> jax.Array:
    """What the stages give when the first microbatch has passed the last of them: [S, B, T, D], each its own."""
    stages = Stages(config, merge, params)
    nothing = stages.stream(batch["tokens"].shape[1])
    y, _ = jax.lax.scan(lambda y, t: (stages.forward(y, batch, t)[0], None), nothing, jnp.arange(stages.count))
    return y


# --- one step -------------------------------------------------------------------------------------------------


class _Step:
    """The three things that happen in a tick."""

    def __init__(self, stages: Stages, objective: Objective, batch: Batch, divisor: jax.Array, rng: jax.Array):
        self.stages, self.objective, self.batch, self.divisor, self.rng = stages, objective, batch, divisor, rng
        self.ticks = Schedule(stages.count, stages.config.step.microbatches)
        of_layers = objective.of_layers
        # the objective is linear in the sums
        self.dsums = stages.of_sums(lambda sums: jax.grad(of_layers)(sums, divisor) if of_layers else sums)

    def of_layers(self, x: jax.Array) -> jax.Array:
        """The mean of what layers summed up, [S, L/S, ...] -> [L, ...], on all devices."""
        mean: jax.Array = jax.reshard(self.stages.whole(x), jax.P()) / self.divisor
        return mean

    def forward(self, y: jax.Array, ring: Inputs, t: jax.Array) -> tuple[jax.Array, Inputs]:
        """Each stage's output of the tick before to the next stage, and through it; its layers' inputs to the ring."""
        y, inputs = self.stages.forward(y, self.batch, t)
        put = jax.lax.dynamic_update_index_in_dim
        return y, {name: put(x, inputs[name], t % self.ticks.in_flight, 0) for name, x in ring.items()}

    def loss(self, y: jax.Array, t: jax.Array) -> tuple[PyTree, jax.Array, Metrics]:
        """Of the microbatch that has passed the last stage: gradients of the head and of y, and the metrics."""
        i = t - (self.stages.count - 1)
        part, rng = taken(self.batch, i), jax.random.fold_in(self.rng, i)

        def objective(outer: PyTree, x: jax.Array) -> tuple[jax.Array, Metrics]:
            model = self.stages.finished(outer, x)
            sums = self.objective.sums(model, part, divisor=self.divisor, rng=rng)
            means = {name: of for name, of in self.objective.means.items() if of not in self.dsums}
            return sums["objective"], {name: sums[of] / self.divisor for name, of in means.items()}

        grad = jax.grad(objective, (0, 1), has_aux=True)
        (d_outer, dy), metrics = grad(self.stages.outer, self.stages.of_last(y))
        return d_outer, dy, metrics

    def backward(
        self, dx: jax.Array, dy: jax.Array | None, ring: Inputs, grads: tuple[PyTree, PyTree], t: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, PyTree]]:
        """Each stage's gradient of the tick before to the stage before it, and through it.

        Args:
            dy: what the last stage takes; None: nothing. Where a stage has no microbatch its gradient is zero, and so
                is all that follows from it.
        """
        stages, last, of_outer = self.stages, self.stages.count - 1, grads[0]
        dy = stages.moved(dx, dy, back=True)
        documents = stages.microbatch(self.batch, lambda s, t: t - 2 * last + s, t, counted=bool(self.dsums))
        inputs = stages.of_ring(ring, lambda s, t: (t - 2 * (last - s)) % self.ticks.in_flight, t)
        of_stages = over_axis(stages.pull, stages.axis)
        dx, of_blocks = of_stages(stages.blocks, inputs, dy, documents, self.dsums, grads[1])
        part = taken(self.batch, t - 2 * last)
        _, pull = jax.vjp(lambda outer: stages.embedded(outer, part), stages.outer)
        return dx, (add(of_outer, pull(stages.of_first(dx))[0]), of_blocks)
