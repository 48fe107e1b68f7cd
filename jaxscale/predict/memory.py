"""HBM of a device predicted from the config alone: the state exactly, temporaries as the largest moment's. No jax.

Two moments of a step can be its peak: the loss, when the last matrix and its gradient are whole on a device beside a
chunk of logits; and the backward pass of a layer, when the layer's gathered weights and their gradients are. Both
stand on the activations that the forward pass has kept. How far that is from compiled programs: `benchmarks/memory.py`.

Evaluation needs no more: it runs on at most a microbatch's rows at one time, and keeps neither gradients nor
activations. `tests/training/test_evaluation.py` compares the two programs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.passes import Pass
from jaxscale.blueprint.rules import count, rules_of, schedule
from jaxscale.blueprint.table import SEQUENCE
from jaxscale.hardware.chip import Chip
from jaxscale.predict import costs
from jaxscale.predict.arrays import (
    cast_bytes,
    gathered_weights,
    head_bytes,
    head_pass,
    head_sum_bytes,
    layer_passes,
    logits_bytes,
    own_bytes,
    stage_bytes,
    stream_bytes,
    stream_width,
    trains_head,
    whole_bytes,
    whole_logits,
    working_bytes,
)
from jaxscale.predict.attention import heads_bytes, split_ways
from jaxscale.predict.batch import batch_bytes
from jaxscale.predict.costs import BYTES
from jaxscale.predict.experts import exchange
from jaxscale.predict.kept import held_bytes, kept_bytes
from jaxscale.predict.rollouts import reference_bytes, sampling_bytes
from jaxscale.predict.timing import LANES

IN_TRANSFER = (
    2  # layers: the backward pass computes one while the next arrives; the loss begins while the last one leaves
)
SCRATCH = 5 / 16  # of an array that the SparseCore scatters over three torus dims (libtpu 0.0.52; over two none)


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes of one device: `state` by part (exact), what each moment needs on top, `host` for offloaded activations.

    `sampling`: a moment of runs that train on samples of their model.
    """

    state: dict[str, int]
    loss: dict[str, float]
    backward: dict[str, float]
    host: float
    sampling: dict[str, float] = field(default_factory=dict)

    @property
    def temporaries(self) -> float:
        return max(sum(moment.values()) for moment in (self.loss, self.backward, self.sampling))

    @property
    def peak(self) -> float:
        return sum(self.state.values()) + self.temporaries


def memory(
    config: cfg.Config,
    sizes: Mapping[str, int],
    *,
    documents: bool = False,
    chip: Chip | None = None,
) -> MemoryForecast:
    """Predict a device's HBM for `config` on a mesh of these sizes.

    Args:
        documents: several documents a row, masked from each other; cuDNN's attention takes that as a
            mask [B, 1, T, T] and copies it once, splash as numbers.
        chip: whose compiler it is; None: a TPU's.
    """
    gpu = chip is not None and chip.platform == "gpu"
    state = costs.state_bytes(config, sizes) | {"batch": batch_bytes(config, sizes, documents=documents)}
    if kept := reference_bytes(config, sizes):
        state["parameters of the reference"] = kept
    offloaded = [name for name, action in (costs.kept(config) or {}).items() if action == "offload"]
    host = sum(held_bytes(config, sizes, name) for name in offloaded)
    always = {
        "kept activations": kept_bytes(config, sizes, lanes=1 if gpu else LANES),
        "between stages": stage_bytes(config, sizes),
        "on the way to the host": IN_TRANSFER * host / costs.layers_here(config, sizes),
        "document mask": 2.0 * 2 * costs.microbatch_tokens(config, sizes) * config.data.seq_len
        if documents and gpu
        else 0.0,
    }
    moments = gpu_moments if gpu else tpu_moments
    loss, backward = moments(config, sizes, float(state["parameters"]))
    if chip and chip.late_scatter and adds_head_gradient(config, sizes):
        backward |= {"last matrix's float32 gradient": head_sum_bytes(config, sizes)}
    samples = sampling_bytes(config, sizes) if config.objective.samples else {}
    return MemoryForecast(state, always | loss, always | backward, host, samples)


Parts = dict[str, float]


def tpu_moments(config: cfg.Config, sizes: Mapping[str, int], parameter_bytes: float) -> tuple[Parts, Parts]:
    """The loss and the backward pass of a layer as libtpu's programs have them.

    It casts the stacked parameters once, before the loop over layers. The last matrix's gradient is scattered before
    the layers' backward pass.
    """
    always = {
        "gradients": parameter_bytes,
        "parameters in compute dtype": sum(cast_bytes(config, sizes, w) for w in blueprint(config.model).weights),
    }
    loss = tpu_head(config, sizes) | {"the last layer's output": 4 * stream_bytes(config, sizes, SEQUENCE)}
    worst: Parts = max([tpu_layer(config, sizes, kind) for kind in kinds_of(config)], key=total)
    backward = {
        "gradients of a microbatch": parameter_bytes if config.step.microbatches > 1 else 0.0,
        **worst,
    }
    return always | loss, always | backward


def tpu_layer(config: cfg.Config, sizes: Mapping[str, int], kind: str) -> Parts:
    """Of the backward pass of a layer of this kind."""
    layer = [p for p in layer_passes(config, sizes) if p.only in ("", kind)]
    activations = max(
        working_bytes(config, sizes, kind, widest=5, stream=4, whole=3.5), split_attention_bytes(config, sizes)
    )
    rows, heads = expert_bytes(config, sizes, kind), heads_bytes(config, sizes)
    if heads > activations + rows:  # attention's backward pass comes after that of the MLP
        activations, rows = heads, 0.0
    parts = {
        "a layer's weights, or their gradients": sum(whole_bytes(config, sizes, p) for p in layer),
        "a layer's activations": activations,
    }
    return parts | ({"rows of experts": rows} if rows else {})


def total(parts: Parts) -> float:
    return sum(parts.values())


# Arrays of all rows in the backward pass of experts, of D and of an expert's mlp, read from libtpu's programs: rows,
# their gradients both ways, and one that is on its way; gate, up, and the gradients of these and of their product
ROWS, SENT_ROWS, WIDE_ROWS = 3, 4, 5


def expert_bytes(config: cfg.Config, sizes: Mapping[str, int], kind: str) -> float:
    """Rows of a layer's experts that are there at one time in its backward pass; 0 in a layer without."""
    at, model = exchange(config, sizes), blueprint(config.model)
    if at is None or model.routed is None or model.routed.layers != kind:
        return 0.0
    split = rules_of(config, sizes).activations[model.dims[model.routed.mlp].axis]
    mlp = model.dims[model.routed.mlp].size / count(split, sizes)
    rows = (SENT_ROWS if at.how == "all_to_all" else ROWS) * at.width + WIDE_ROWS * mlp
    return at.place * rows * BYTES[config.step.compute_dtype]


def kinds_of(config: cfg.Config) -> tuple[str, ...]:
    """Kinds of layers that the model has."""
    return tuple(kind for kind, layers in blueprint(config.model).kinds.items() if layers) or ("",)


QUERIES = 16  # arrays of the queries' size in the backward pass of split attention: read from 1M tokens on 64 v5p


def split_attention_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """In the backward pass of attention where sequences are split: all keys and values if they are gathered, and their
    gradients, beside arrays of the queries' size."""
    model, width = blueprint(config.model), BYTES[config.step.compute_dtype]
    shards = count(rules_of(config, sizes).activations["sequence"], sizes)
    if model.attention is None or shards == 1:
        return 0.0
    both = (costs.activation_elements(config, sizes, x) for x in (model.attention.k, model.attention.values))
    keys = sum(both) * shards
    gathered = 2 * keys if "gather" in split_ways(config, "tpu").values() else 0.0
    return (gathered + QUERIES * costs.activation_elements(config, sizes, model.attention.q)) * width


def tpu_head(config: cfg.Config, sizes: Mapping[str, int]) -> Parts:
    """Of the loss: see `objectives.token_sums`. In chunks, the last matrix's gradient is added up in float32, or the
    logits' gradients of all tokens are kept, in the compute dtype; a chunk's logits are there once."""
    head, logits = head_bytes(config, sizes), logits_bytes(config, sizes)
    if not config.loss.in_chunks(config.data.seq_len):
        return {"last matrix and its gradient": (1 + trains_head(config)) * head, "logits": logits}
    width = BYTES[config.step.compute_dtype]
    parts = {
        **({"gradients": 0.0} if schedule(config, sizes).stages == 1 else {}),  # the layers' are not there yet
        "logits": logits,
        "scratch of the matrix's scatter": head * SCRATCH if gathered_weights(config, sizes) else 0.0,
    }
    if not trains_head(config):
        return parts | {"last matrix": head}
    if adds_head_gradient(config, sizes):
        return parts | {"last matrix and its float32 gradient": head + head_sum_bytes(config, sizes)}
    return parts | {"last matrix": head, "gradient of the logits": whole_logits(config, sizes) * width}


def adds_head_gradient(config: cfg.Config, sizes: Mapping[str, int]) -> bool:
    """Is the last matrix's gradient added up chunk by chunk, in float32, on a TPU? See `objectives.token_sums`."""
    tokens, width = costs.microbatch_tokens(config, sizes), BYTES[config.step.compute_dtype]
    many = tokens * width > stream_width(config) * 4
    return bool(many and trains_head(config) and config.loss.in_chunks(config.data.seq_len))


def gpu_moments(config: cfg.Config, sizes: Mapping[str, int], parameter_bytes: float) -> tuple[Parts, Parts]:
    """The same as XLA's GPU programs have them, read from their buffer assignments.

    Parameters are cast layer by layer, but those whose last dim fsdp splits are copied whole, turned, before the loops.
    """
    step, layer = config.step, layer_passes(config, sizes)
    model = blueprint(config.model)
    cast = sum(cast_bytes(config, sizes, model.weight(p.weight)) for p in layer)
    always = {
        "gradients": sum(own_bytes(config, sizes, p.weight) for p in layer if model.weight(p.weight).trained),
        "gradients of a microbatch": parameter_bytes if step.microbatches > 1 else 0.0,
        "parameters in compute dtype": cast if step.remat == "none" else 0.0,
        "copies of parameters, turned": sum(own_bytes(config, sizes, name) for name in turned(config, sizes)),
    }
    output = stream_bytes(config, sizes, SEQUENCE)
    loss, waiting = gpu_head(config, sizes, output)
    again = bool(model.widest) and recomputes(config, model.widest)
    heads = sum(costs.activation_bytes(config, sizes, a.name) for a in model.activations if a.padded)
    # [B, T, D] of all layers, gathered along T, turned from the order in which it arrived
    arrived = step.remat == "none" and output > stream_bytes(config, sizes) and rows_of(config, sizes) > 1
    backward = {
        "a layer's weights": max(
            sum(whole_bytes(config, sizes, p) for p in layer if model.op(p.name).whole and p.only in ("", kind))
            for kind in kinds_of(config)
        ),
        "a layer's activations": max(
            working_bytes(config, sizes, kind, widest=3 + again, stream=5, whole=7) + expert_bytes(config, sizes, kind)
            for kind in kinds_of(config)
        )
        + heads / costs.layers_here(config, sizes),
        "inputs, turned": output * costs.layers_here(config, sizes) if arrived else 0.0,
    }
    return always | loss, always | waiting | backward


def recomputes(config: cfg.Config, activation: str) -> bool:
    names = costs.kept(config)
    return names is not None and activation not in names


def turned(config: cfg.Config, sizes: Mapping[str, int]) -> list[str]:
    """Weights whose last dim is gathered: the program copies them whole, turned, before its loops."""
    step, head = config.step, head_pass(config, sizes)
    layers = [p for p in layer_passes(config, sizes) if step.remat != "none" and gathers_last(p)]
    last = [head] if head and step.microbatches > 1 and gathers_last(head) else []
    return [p.weight for p in (*layers, *last)]


def gathers_last(one: Pass) -> bool:
    return one.w.stored[-1] != one.w.used[-1]


def rows_of(config: cfg.Config, sizes: Mapping[str, int]) -> int:
    return costs.rows_and_tokens(config, sizes, costs.batch_shape(config)[0])[0]


def gpu_head(config: cfg.Config, sizes: Mapping[str, int], output: float) -> tuple[Parts, Parts]:
    """Of the loss: while it is computed, and what of it waits for the end of the backward pass.

    That is the last matrix's gradient, whole. In a loss that is not cut in chunks it is the logits' gradient, in the
    array that the logits were in, where the matrix's gradient will be scattered over fsdp.
    """
    head, logits = head_bytes(config, sizes), logits_bytes(config, sizes)
    last = {"the last layer's output": 3 * output}
    if not trains_head(config):
        return {"last matrix": head, "logits": logits} | last, {}
    if config.loss.in_chunks(config.data.seq_len):
        early = {"gradients": 0.0, "logits": logits}  # the layers' gradients are not there yet
        summed = {"last matrix and its float32 gradient": head + head_sum_bytes(config, sizes)}
        return early | summed | last, {"last matrix's gradient": head}
    if gathered_weights(config, sizes):
        return {"last matrix": head, "logits": logits} | last, {"gradient of the logits": logits + output}
    return {"last matrix and its gradient": 2 * head, "logits": logits} | last, {}
