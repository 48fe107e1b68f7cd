"""The training step: one jitted, donated program from state and batch to state and metrics.

This step is the one that trains, is benchmarked, is compiled ahead of time and is explained. It knows nothing of
files, clocks or consoles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxscale import config as cfg
from jaxscale.blame import blaming_layouts
from jaxscale.blueprint.described import blueprint
from jaxscale.data import columns
from jaxscale.models.transformer import Transformer
from jaxscale.objectives import make_objective
from jaxscale.objectives.objective import Batch
from jaxscale.objectives.routers import LOAD, logged, moved
from jaxscale.parallel.presets import compiler_options
from jaxscale.parallel.sharding import device, mesh_here, on_devices, spec
from jaxscale.training import pipeline
from jaxscale.training.average import add_to_sum, average, empty_sum
from jaxscale.training.cut import in_parts
from jaxscale.training.frozen import divided, split, whole
from jaxscale.training.optimizer import count_from, global_norm, make_optimizer, make_schedule
from jaxscale.training.replicas import Outer, alone, combined, mean, outer_step, replica_axis, started
from jaxscale.training.spikes import LossStatistics, judge, no_losses
from jaxscale.training.stages import has_stages

PyTree = Any
ModelFactory = Callable[[nnx.Rngs], nnx.Module]
Merge = Callable[[PyTree], nnx.Module]  # a dict of parameters -> the module that holds them
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that a step reads and changes. Parameters and their moments are nested dicts of arrays, split over the mesh.

    Every field is always there. One that a run has no use for is an empty dict: an average that nobody asked for would
    take as much memory as the parameters in float32. With replicas, what each has of its own has a first dim for them
    (`replicas.PER_REPLICA`).
    """

    step: jax.Array  # int32, steps done
    params: PyTree  # those that are trained
    opt_state: PyTree
    losses: LossStatistics
    ema: PyTree  # float32, or {}; see `training.average`
    router_bias: PyTree  # parameters that no gradient moves: of the choice of experts; {} in a model without
    frozen: PyTree  # parameters that the objective or LoRA does not train, or {}
    rng: jax.Array  # typed key; a step folds its number in
    outer: Outer | dict[str, Any]  # of replicas, or {}


@dataclass(frozen=True)
class Program:
    """What a config and a model mean on the mesh in context, before any memory is touched.

    Attributes:
        init: () -> TrainState; jitted, born sharded.
        step: (state, batch) -> (state, metrics); jitted, the state donated.
        outer: state -> (state, metrics), the step that replicas take together; jitted, the state donated. None: without
            replicas.
        combine: a step's metrics -> scalars; jitted. Replicas' metrics are [R]; without replicas nothing changes.
        evaluate: (state, batch) -> metrics; jitted.
        abstract: the TrainState as shapes, dtypes and shardings.
        axes: nested dict like `params` with each trained parameter's logical axes.
        merge: all parameters, trained and frozen -> module.
    """

    init: Callable[[], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    outer: Callable[[TrainState], tuple[TrainState, Metrics]] | None
    combine: Callable[[Metrics], Metrics]
    evaluate: Callable[[TrainState, Batch], Metrics]
    abstract: TrainState
    axes: PyTree
    merge: Callable[[PyTree], nnx.Module]


def make_program(config: cfg.Config, model: ModelFactory | None = None) -> Program:
    """Build the step of `config`, to be called inside `on_mesh(mesh, rules)`."""
    factory = model or decoder(config)
    layouts = config.sharding.model_dump()
    with blaming_layouts(layouts):
        params, axes, merge = abstract_model(factory)
    objective, replicas = make_objective(config), replica_axis() is not None
    biases = () if model else tuple(w.name for w in blueprint(config.model).weights if w.ruled)
    if has_stages():
        pipeline.require_pieces(merge(params), objective)
    apart = partial(divided, lora=config.model.lora is not None, names=objective.frozen)
    axes, _ = apart(split(axes, biases)[0])
    optimizer = make_optimizer(config.optimizer, axes, steps=config.steps)

    def init() -> TrainState:
        key = jax.random.key(config.seed)
        module = factory(nnx.Rngs(params=jax.random.fold_in(key, 0)))
        params, router_bias = split(nnx.to_pure_dict(nnx.split(module, nnx.Param, ...)[1]), biases)
        params, frozen = apart(params)
        state = TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=optimizer.init(params),
            losses=no_losses(),
            ema=empty_sum(params) if config.optimizer.ema else {},
            router_bias=router_bias,
            frozen=frozen,
            rng=jax.random.fold_in(key, 1),
            outer={},
        )
        return started(state) if replicas else state

    step = make_step(config, optimizer, merge)
    step = alone(step) if replicas else step
    with blaming_layouts(layouts) as overridden:
        abstract = on_devices(jax.eval_shape(init))
        if overridden:
            jax.eval_shape(step, abstract, abstract_batch(config, mesh_here(), documents=False))
    options = compiler_options(device().device_kind, config.runtime)
    jitted = jax.jit(step, donate_argnums=0, compiler_options=options or None)
    outer = jax.jit(outer_step(config.outer), donate_argnums=0, compiler_options=options or None) if replicas else None
    combine = jax.jit(partial(combined, means=tuple(objective.means), unit=objective.unit)) if replicas else unchanged
    evaluate = jax.jit(make_evaluate(config, merge), compiler_options=options or None)
    return Program(jax.jit(init), jitted, outer, combine, evaluate, abstract, axes, merge)


def unchanged(metrics: Metrics) -> Metrics:
    return metrics


def decoder(config: cfg.Config) -> ModelFactory:
    return lambda rngs: Transformer(config.model, config.step, rngs=rngs)


def abstract_model(factory: ModelFactory) -> tuple[PyTree, PyTree, Merge]:
    """Shapes and shardings of the parameters, their logical axes, and how to make a module of a dict of them."""
    module = nnx.eval_shape(lambda: factory(nnx.Rngs(params=0)))
    graph, state, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
    if jax.tree.leaves(rest):
        names = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(rest)][:3]
        raise ValueError(f"the model has state that is not nnx.Param ({', '.join(names)}); only parameters are trained")
    is_variable = lambda x: isinstance(x, nnx.Variable)  # noqa: E731
    for path, variable in nnx.to_flat_state(state):
        if logical_axes(variable) is None:
            name = ".".join(map(str, path))
            raise ValueError(f"parameter {name} has no logical axes; make it with nnx.Param(value, out_sharding=(...))")
    axes = nnx.to_pure_dict(jax.tree.map(lambda v: v.replace(logical_axes(v)), state, is_leaf=is_variable))
    params = nnx.to_pure_dict(state)

    def merge(params: PyTree) -> nnx.Module:
        filled = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(filled, params)
        module: nnx.Module = nnx.merge(graph, filled, rest)
        return module

    return params, axes, merge


def logical_axes(variable: nnx.Variable[Any]) -> tuple[str, ...] | None:
    names = variable.get_metadata().get("out_sharding")
    return None if names is None else tuple(names)


def make_step(
    config: cfg.Config, optimizer: optax.GradientTransformation, merge: Merge
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    schedule, finish = make_schedule(config.optimizer, steps=config.steps), make_objective(config).finish

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(state.rng, state.step)
        merged = lambda p: merge(all_parameters(state, p))  # noqa: E731
        grads, metrics = gradients(config, merged, state.params, batch, rng)
        metrics = finish(metrics) if finish else metrics
        load, metrics = metrics.get(LOAD), logged(metrics)
        old_opt_state = count_from(state.opt_state, state.step)
        updates, opt_state = jax.named_scope("optimizer")(optimizer.update)(grads, old_opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "grad_norm": jax.named_scope("grad_norm")(global_norm)(grads),
            "learning_rate": schedule(state.step),
        }
        bias = jax.tree.map(lambda b: moved(b, load, config.loss.bias_rate), state.router_bias)
        good, losses, metrics = judge(config, metrics, state.losses)
        if good is not None:
            new, old = (params, opt_state, bias), (state.params, old_opt_state, state.router_bias)
            params, opt_state, bias = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
        ema = add_to_sum(state.ema, params, config.optimizer.ema) if config.optimizer.ema else state.ema
        changed = {"params": params, "opt_state": opt_state, "losses": losses, "ema": ema, "router_bias": bias}
        return state._replace(step=state.step + 1, **changed), metrics

    return train_step


def gradients(config: cfg.Config, merge: Merge, params: PyTree, batch: Batch, rng: jax.Array) -> tuple[PyTree, Metrics]:
    """Gradient and metrics of an objective over the global batch, whose arrays are [microbatches, B, T].

    Microbatches come one after another; each divides by the count of the whole batch, so that their sum is the
    gradient of one large batch, however padding falls. The sum is in float32, whatever the parameters' dtype. Where the
    mesh splits the layers, microbatches are in several stages at one time: see `training.pipeline`.
    """
    if has_stages():
        return pipeline.gradients(config, merge, params, batch, rng)
    objective = make_objective(config)
    count = objective.count(batch)
    divisor = jnp.maximum(count, 1)

    def loss(params: PyTree, part: Batch, rng: jax.Array) -> tuple[jax.Array, Metrics]:
        sums = objective.sums(merge(params), part, divisor=divisor, rng=rng)
        return sums["objective"], {name: sums[of] / divisor for name, of in objective.means.items()}

    grad = jax.grad(loss, has_aux=True)
    if config.step.microbatches == 1:
        grads, metrics = grad(params, jax.tree.map(lambda x: x[0], batch), rng)
    else:

        def add(total: PyTree, inputs: tuple[Batch, jax.Array]) -> tuple[PyTree, None]:
            part, i = inputs
            return jax.tree.map(jnp.add, total, grad(params, part, jax.random.fold_in(rng, i))), None

        shapes = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], batch), rng)[1]
        zeros = (
            jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params),
            # batched where it is mapped: see `parallel.local`
            {name: jnp.zeros(of.shape, of.dtype) + 0.0 * divisor for name, of in shapes.items()},
        )
        (grads, metrics), _ = jax.lax.scan(add, zeros, (batch, jnp.arange(config.step.microbatches)))
    return grads, metrics | {objective.unit: count}


def used_parameters(config: cfg.Config, state: TrainState) -> PyTree:
    """What a run is judged and used by: all its parameters, the trained ones averaged where it keeps an average.

    Of replicas, the outer parameters: where their last outer step left them.
    """
    params = state.outer.params if isinstance(state.outer, Outer) else state.params
    if state.ema and config.optimizer.ema:
        params = average(state.ema, params, config.optimizer.ema, state.step)
    return all_parameters(state, params)


def state_of(params: PyTree) -> TrainState:
    """What an evaluation reads of a state: all parameters, averaged already where they are."""
    step, losses, rng = jax.jit(lambda: (jnp.int32(0), no_losses(), jax.random.key(0)))()  # on all processes
    return TrainState(step, params, {}, losses, {}, {}, {}, rng, {})


def all_parameters(state: TrainState, trained: PyTree) -> PyTree:
    """The trained parameters with those that no gradient moves; of replicas' biases the mean."""
    bias = state.router_bias
    if isinstance(state.outer, Outer):
        bias = jax.tree.map(mean, bias)
    return whole(whole(trained, state.frozen), bias)


def make_evaluate(config: cfg.Config, merge: Merge) -> Callable[[TrainState, Batch], Metrics]:
    """The objective's sums and count over a batch [parts, B, T]."""
    objective = make_objective(config)

    def sums_of(model: nnx.Module, part: Batch) -> Metrics:
        every = objective.sums(model, part)
        wanted = (objective.means[name] for name in objective.validated)
        return {name: every[name] for name in wanted} | {objective.unit: objective.count(part)}

    run = over_parts(config, merge, sums_of)
    return lambda state, batch: jax.tree.map(jnp.sum, run(state, batch))


def over_parts(
    config: cfg.Config, merge: Merge, read: Callable[[nnx.Module, Batch], Metrics]
) -> Callable[[TrainState, Batch], Metrics]:
    """`read(model, part)` of each part of a batch [parts, B, T], stacked, with averaged parameters if there are any.

    However the batch is cut, at most a microbatch's rows are computed at one time: so an evaluation fits where the
    step does.
    """
    most = config.data.batch_size // config.step.microbatches

    def run(state: TrainState, batch: Batch) -> Metrics:
        params = used_parameters(config, state)
        model = merge(params)
        model.eval()
        parts = jax.tree.map(lambda x: in_parts(x, most), batch)
        if has_stages():
            return pipeline.evaluated(config, merge, params, parts, read)
        if len(parts["tokens"]) == 1:
            only = read(model, jax.tree.map(lambda x: x[0], parts))
            return {name: jnp.expand_dims(x, 0) for name, x in only.items()}
        stacked: Metrics = jax.lax.scan(lambda _, part: (None, read(model, part)), None, parts)[1]
        return stacked

    return run


def abstract_batch(
    config: cfg.Config, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, *, documents: bool
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and layouts of the arrays of a batch as `training.feed` places them; inside `on_mesh`.

    Args:
        documents: several documents a row, with their masks and positions.
    """
    rows = config.data.batch_size // config.step.microbatches
    shape, layout = (config.step.microbatches, rows, config.data.seq_len), batch_sharding(mesh)
    names = make_objective(config).reads(documents=documents)
    return {name: jax.ShapeDtypeStruct(shape, columns.DTYPES[name], sharding=layout) for name in names}


def batch_sharding(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> jax.NamedSharding:
    """Layout of a batch's arrays [microbatches, B, T]: rows over the batch axes."""
    return jax.NamedSharding(mesh, spec(None, "batch", "sequence"))
