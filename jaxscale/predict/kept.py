"""Bytes of the activations that a device keeps for the backward pass. No jax. Dims as in `predict.costs`."""

from collections.abc import Callable, Mapping

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.rules import rules_of, schedule
from jaxscale.blueprint.table import Activation, Blueprint, Kept
from jaxscale.predict import costs
from jaxscale.predict.costs import BYTES
from jaxscale.predict.experts import exchange


def kept_bytes(config: cfg.Config, sizes: Mapping[str, int], *, lanes: int = 1) -> float:
    """Activations that wait in HBM for the backward pass, all its layers; head_dim padded to `lanes`.

    Of one microbatch, or of those that a stage of a pipeline has in flight.
    """
    names, model = costs.kept(config), blueprint(config.model)

    def size(name: str) -> float:
        one = model.activation(name)
        last = model.dims[one.letters[-1]].size
        return held_bytes(config, sizes, name) * (-(-last // lanes) * lanes / last if one.padded else 1)

    if names is None:
        rows = (*model.kept, *when_wrapped(config, sizes))
        return sum(kept_size(config, sizes, row, size) for row in rows) + softmax_sums(config, sizes)
    saved = {name for name, action in names.items() if action == "save"} | {model.stream} - set(names)
    known = [a.name for a in model.activations if a.name in saved and a.read]
    with_sums = model.attention is not None and model.attention.result in saved
    of_one = sum(map(size, known)) + (softmax_sums(config, sizes) if with_sums else 0)
    return of_one * schedule(config, sizes).in_flight


def is_of_experts(model: Blueprint, one: Activation) -> bool:
    """Has it a row for each expert of a token?"""
    return model.routed is not None and model.routed.rows in one.letters


def held_bytes(config: cfg.Config, sizes: Mapping[str, int], name: str) -> float:
    """Of an activation of all its layers, as it is held: rows of experts have room for the worst case."""
    model, at = blueprint(config.model), exchange(config, sizes)
    of_experts = at is not None and is_of_experts(model, model.activation(name))
    return costs.activation_bytes(config, sizes, name) * (at.room if at and of_experts else 1.0)


def softmax_sums(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """One number a query and head, float32, all layers; kept with the attention's result."""
    model = blueprint(config.model)
    if model.attention is None:
        return 0.0
    return costs.layers_here(config, sizes) * costs.activation_elements(config, sizes, model.attention.q[:-1]) * 4


def kept_size(config: cfg.Config, sizes: Mapping[str, int], row: Kept, size: Callable[[str], float]) -> float:
    """Of all layers."""
    one, factor = blueprint(config.model).activation(row.activation), 1.0
    if row.at:
        here, there = (costs.activation_elements(config, sizes, one.letters, at) for at in (one.at, row.at))
        factor = there / here
    return size(row.activation) * factor * row.copies * (4 / BYTES[config.step.compute_dtype] if row.float32 else 1)


def when_wrapped(config: cfg.Config, sizes: Mapping[str, int]) -> tuple[Kept, ...]:
    """Where remat wraps the layer though it keeps all, attention's result is kept twice: see `Transformer.remat`."""
    attention = blueprint(config.model).attention
    return (Kept(attention.result, 1),) if attention and gathered_over_tokens(config, sizes) else ()


def gathered_over_tokens(config: cfg.Config, sizes: Mapping[str, int]) -> bool:
    tokens = {a for name in ("batch", "sequence") for a in rules_of(config, sizes).activations[name]}
    split = {a for p in costs.forward_passes(config, sizes) if p.stacked for axes in p.w.stored for a in axes}
    return bool(split & tokens)
