"""Values of each token of a batch by a model, whole on every device and so on every process: one jitted program."""

from collections.abc import Callable

import jax
from flax import nnx

from jaxscale import config as cfg
from jaxscale.objectives.objective import Batch, Sums
from jaxscale.parallel.presets import compiler_options
from jaxscale.parallel.sharding import device
from jaxscale.training.step import Merge, TrainState, over_parts


def whole_values(
    config: cfg.Config, merge: Merge, read: Callable[[nnx.Module, Batch], Sums], *, name: str
) -> Callable[[TrainState, Batch], Sums]:
    """(state, batch [parts, B, T]) -> what `read(model, part)` says of its tokens: arrays [parts, B, T].

    Args:
        name: by which a profile tells the program.
    """

    def whole(model: nnx.Module, part: Batch) -> Sums:
        values: Sums = jax.tree.map(lambda x: jax.reshard(x, jax.P(None, None)), read(model, part))
        return values

    run = over_parts(config, merge, whole)

    def values(state: TrainState, batch: Batch) -> Sums:
        return run(state, batch)

    values.__name__ = name
    return jax.jit(values, compiler_options=compiler_options(device().device_kind, config.runtime) or None)
