"""optax, chosen by config. Parameters come as a nested dict; their logical axes as one of the same shape."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from jaxscale import config as cfg
from jaxscale.optimizers import LEAST_FACTORED, matrix_sides

PyTree = Any


def make_schedule(config: cfg.Optimizer, *, steps: int) -> optax.Schedule:
    """Learning rate by step: a linear warm-up from 0, then the schedule's shape down to `final_fraction`."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if warmup >= steps and warmup > 0:
        raise ValueError(f"optimizer.warmup_steps {warmup} leaves nothing of {steps} steps; make it smaller")
    rest, final = steps - warmup, peak * config.final_fraction
    if config.schedule == "constant":
        main = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, rest, alpha=config.final_fraction)
    elif config.schedule == "linear":
        main = optax.linear_schedule(peak, final, rest)
    else:  # warmup, stable, decay (arXiv:2404.06395)
        decay = max(1, steps // 5) if config.decay_steps is None else config.decay_steps
        if decay > rest:
            raise ValueError(f"optimizer.decay_steps {decay} is more than the {rest} steps after warm-up")
        main = optax.join_schedules(
            [optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)], [rest - decay]
        )
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), main], [warmup]) if warmup else main


def make_optimizer(config: cfg.Optimizer, axes: PyTree, *, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then the optimizer with its decay mask and schedule.

    Args:
        axes: for every parameter the tuple of its dims' logical names (a nested dict, tuples as leaves).
    """
    rate = make_schedule(config, steps=steps)
    mask = decay_mask(axes, config.no_decay)
    if config.name == "adamw":
        main = optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=mask)
    elif config.name == "lion":
        main = optax.lion(rate, config.b1, config.b2, weight_decay=config.weight_decay, mask=mask)
    elif config.name == "adafactor":
        # its decay is not scaled by the learning rate in optax: multiply, so that weight_decay means the same for all
        main = optax.chain(
            optax.adafactor(None, LEAST_FACTORED, momentum=None, multiply_by_parameter_scale=True),
            optax.scale(-1.0),  # adafactor's own sign; the next two add decay and turn it round again
            optax.add_decayed_weights(config.weight_decay, mask),
            optax.scale_by_learning_rate(rate),
        )
    else:
        assert config.name == "muon", config.name
        main = muon(
            rate,
            beta=config.b2,
            weight_decay=config.weight_decay,
            weight_decay_mask=mask,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=0.0,
            muon_weight_dimension_numbers=muon_dims(axes),
            consistent_rms=0.2,
        )
    if config.name in ("adafactor", "muon"):
        main = with_automatic_sharding(main)
    main = in_float32(main)
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    return optax.chain(clip, main)


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same transformation in float32, its state too, whatever the dtypes of gradients and parameters.

    In bfloat16 a second moment with b2 = 0.999 would never fall: 0.999 is rounded to 1.
    """

    def wide(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        new: tuple[PyTree, PyTree] = inner.update(wide(updates), state, wide(params))
        return new

    return optax.GradientTransformation(lambda params: inner.init(wide(params)), update)


def count_from(state: PyTree, step: jax.Array) -> PyTree:
    """The optimizer's state with the schedule's count set to `step`: the learning rate follows one count.

    A skipped update takes the optimizer's own counts back (Adam's correction goes with its moments). The rate goes on,
    so that its decay ends with the run.
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    return jax.tree.map(lambda n: n._replace(count=step) if is_schedule(n) else n, state, is_leaf=is_schedule)


def is_axes(leaf: Any) -> bool:
    return isinstance(leaf, tuple)


def decay_mask(axes: PyTree, no_decay: list[str]) -> PyTree:
    """True where weights decay: no component of the parameter's path is one of `no_decay`, or ends in `_` and it.

    Raises ValueError for a name that no parameter has; the default's are taken in a model without biases too.
    """
    paths = {p: [str(k.key) for k in p] for p, _ in jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes)}
    parts = {part for path in paths.values() for part in path}
    for name in set(no_decay) - set(cfg.NO_DECAY):
        if not any(is_named(part, name) for part in parts):
            endings = {part.rpartition("_")[2] for part in parts}
            raise ValueError(
                f"optimizer.no_decay: no parameter is called {name}{cfg.nearest(name, parts | endings)}; "
                f"their paths are made of {', '.join(sorted(parts))}"
            )

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        return not any(is_named(part, name) for part in paths[path] for name in no_decay)

    return jax.tree_util.tree_map_with_path(decays, axes, is_leaf=is_axes)


def is_named(part: str, name: str) -> bool:
    """`attention_norm` is a `norm`; `unembedding` is no `embedding`."""
    return part == name or part.endswith(f"_{name}")


def muon_dims(axes: PyTree) -> PyTree:
    """Which dims of each weight Muon orthogonalises over; None: AdamW (`optimizers.matrix_sides`)."""

    def dims(names: tuple[str, ...]) -> MuonDimensionNumbers | None:
        sides = matrix_sides(names)
        return sides and MuonDimensionNumbers(*sides)

    return jax.tree.map(dims, axes, is_leaf=is_axes)


def with_automatic_sharding(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same transformation, its sharding left to the compiler; state and updates keep their layouts.

    Muon multiplies a matrix split on both dims by its transpose, and adafactor factors means over split dims: many
    small choices of layout that optax, written for one device, does not make. Elementwise optimizers need none.
    """

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        def layout(x: jax.Array) -> Any:
            return jax.typeof(x).sharding

        out = (jax.tree.map(layout, updates), jax.tree.map(layout, state))
        run = jax.sharding.auto_axes(lambda u, s, p: inner.update(u, s, p), out_sharding=out)
        new: tuple[PyTree, PyTree] = run(updates, state, params)
        return new

    return optax.GradientTransformation(inner.init, update)


def global_norm(tree: PyTree) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)))
