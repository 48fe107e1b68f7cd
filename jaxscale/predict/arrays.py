"""Bytes of what a device holds at one time: of the loss, of one layer, and of a pipeline's stages. No jax."""

from collections.abc import Mapping

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.passes import Pass
from jaxscale.blueprint.rules import schedule
from jaxscale.blueprint.table import SEQUENCE, Weight
from jaxscale.predict import costs
from jaxscale.predict.costs import BYTES
from jaxscale.predict.kept import is_of_experts


def head_pass(config: cfg.Config, sizes: Mapping[str, int]) -> Pass | None:
    """The matmul that makes the logits."""
    return next((p for p in costs.forward_passes(config, sizes) if not p.stacked), None)


def head_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """The last matrix, gathered."""
    head = head_pass(config, sizes)
    return whole_bytes(config, sizes, head) if head else 0.0


def head_sum_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """The last matrix's gradient, gathered, as it is added up: in float32."""
    return head_bytes(config, sizes) / BYTES[config.step.compute_dtype] * 4


def trains_head(config: cfg.Config) -> bool:
    """Has the last matrix a gradient?"""
    return blueprint(config.model).trains_head


def gathered_weights(config: cfg.Config, sizes: Mapping[str, int]) -> bool:
    """Are weights gathered before they are used?"""
    return any(p.w.stored != p.w.used for p in costs.forward_passes(config, sizes))


def whole_logits(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """How many logits a device has, of all its tokens of a microbatch."""
    head = blueprint(config.model).head
    return costs.activation_elements(config, sizes, head.y) if head else 0.0


def logits_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """Of a chunk (or of all tokens), float32."""
    share = (config.loss.chunk or 0) / config.data.seq_len if config.loss.in_chunks(config.data.seq_len) else 1.0
    return whole_logits(config, sizes) * share * 4


def layer_passes(config: cfg.Config, sizes: Mapping[str, int]) -> list[Pass]:
    """The forward matmuls of a layer."""
    return [p for p in costs.forward_passes(config, sizes) if p.stacked]


def own_bytes(config: cfg.Config, sizes: Mapping[str, int], name: str) -> float:
    """A device's shard of a weight, all layers, as it is kept."""
    weight = blueprint(config.model).weight(name)
    return costs.shard(weight, config, sizes) * BYTES[weight.kept_in(config.step.param_dtype)]


def cast_bytes(config: cfg.Config, sizes: Mapping[str, int], weight: Weight) -> float:
    """A device's shard of a weight in the compute dtype; 0 where it is kept in it, or set by a rule."""
    width = config.step.compute_dtype
    return (
        0.0
        if weight.kept_in(config.step.param_dtype) == width or weight.ruled
        else float(costs.shard(weight, config, sizes) * BYTES[width])
    )


def whole_bytes(config: cfg.Config, sizes: Mapping[str, int], one: Pass) -> float:
    """A weight of one layer as a device multiplies with it, gathered, in the compute dtype."""
    whole = costs.letter_sizes(config, sizes)
    return costs.elements(one.w.letters, one.w.used, whole, sizes) * BYTES[config.step.compute_dtype]


def stream_bytes(config: cfg.Config, sizes: Mapping[str, int], at: str = "") -> float:
    """What a layer begins with, of one layer; `at`: where its sequence lies, if not between the matmuls."""
    model = blueprint(config.model)
    if not model.stream:
        return 0.0
    one = model.activation(model.stream)
    return costs.activation_elements(config, sizes, one.letters, at or one.at) * BYTES[config.step.compute_dtype]


def stream_width(config: cfg.Config) -> int:
    model = blueprint(config.model)
    return model.dims[model.activation(model.stream).letters[-1]].size if model.stream else 0


def stage_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """Of a pipeline: the inputs of a stage's layers, taken from those in flight; and what comes and goes, both ways."""
    if schedule(config, sizes).stages == 1:
        return 0.0
    return (costs.layers_here(config, sizes) + 4) * stream_bytes(config, sizes)


def working_bytes(
    config: cfg.Config, sizes: Mapping[str, int], kind: str, *, widest: float, stream: float, whole: float
) -> float:
    """Alive at one time in the backward pass of a layer of this kind: arrays of the mlp's width, arrays of [tokens, D]
    as they are split between matmuls, and where they are split, whole ones: inputs gathered, gradients not yet summed.
    Rows of experts are apart."""
    model = blueprint(config.model)
    names = [model.widest] if not model.routed else [a.name for a in model.activations if a.only == kind]
    of_tokens = [a for a in map(model.activation, filter(None, names)) if not is_of_experts(model, a)]
    each = (costs.activation_bytes(config, sizes, a.name) / costs.layers_here(config, sizes, a.only) for a in of_tokens)
    wide = max(each, default=0.0)
    here, gathered = stream_bytes(config, sizes), stream_bytes(config, sizes, SEQUENCE)
    return widest * wide + stream * here + (whole * gathered if gathered > here else 0.0)
