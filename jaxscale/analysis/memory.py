"""HBM of a device predicted from the config alone: the state exactly, temporaries as the larger of two moments. No jax.

Two moments of a step can be its peak: the loss, when the last matrix and its gradient are whole on a device beside a
chunk of logits; and the backward pass of a layer, when the layer's gathered weights and their gradients are. Both
stand on the activations that the forward pass has kept. How far that is from compiled programs: `benchmarks/memory.py`.

Evaluation needs no more: it runs on at most a microbatch's rows at one time, and keeps neither gradients nor
activations. `tests/training/test_evaluation.py` compares the two programs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxscale import config as cfg
from jaxscale.analysis import costs
from jaxscale.analysis.costs import BYTES

LANES = 128  # a TPU's arrays are padded to so many elements in their last dim; of kept ones that is head_dim's
SCRATCH = 5 / 16  # of an array that the SparseCore scatters over three torus dims (libtpu 0.0.52; over two none)
HEADS = ("q", "k", "v", "attention_context")


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes of one device: `state` by part (exact), what each moment needs on top, `host` for offloaded activations."""

    state: dict[str, int]
    loss: dict[str, float]
    backward: dict[str, float]
    host: float

    @property
    def temporaries(self) -> float:
        return max(sum(self.loss.values()), sum(self.backward.values()))

    @property
    def peak(self) -> float:
        return sum(self.state.values()) + self.temporaries


def memory(
    config: cfg.Config, sizes: Mapping[str, int], *, documents: bool = False, platform: str = "tpu"
) -> MemoryForecast:
    """Predict a device's HBM for `config` on a mesh of these sizes.

    Args:
        documents: several documents a row, masked from each other; cuDNN's attention (`platform` gpu) takes that as a
            mask [B, 1, T, T] and copies it once, splash as numbers.
    """
    state = costs.state_bytes(config, sizes) | {"batch": costs.batch_bytes(config, sizes, documents=documents)}
    offloaded = [name for name, action in (costs.kept(config.step) or {}).items() if action == "offload"]
    host = sum(costs.activation_bytes(config, sizes, name) for name in offloaded)
    always = {
        "kept activations": kept_bytes(config, sizes, lanes=1 if platform == "gpu" else LANES),
        "on the way to the host": host / config.model.num_layers,
        "document mask": 2.0 * 2 * costs.microbatch_tokens(config, sizes) * config.data.seq_len
        if documents and platform == "gpu"
        else 0.0,
    }
    moments = gpu_moments if platform == "gpu" else tpu_moments
    loss, backward = moments(config, sizes, float(state["parameters"]))
    return MemoryForecast(state, always | loss, always | backward, host)


Parts = dict[str, float]


def tpu_moments(config: cfg.Config, sizes: Mapping[str, int], own: float) -> tuple[Parts, Parts]:
    """The loss and the backward pass of a layer as libtpu's programs have them.

    It casts the stacked parameters once, before the loop over layers. The last matrix's gradient is scattered before
    the layers' backward pass.
    """
    width, param = BYTES[config.step.compute_dtype], BYTES[config.step.param_dtype]
    wide = costs.activation_bytes(config, sizes, "layer_in") / config.model.num_layers
    always = {
        "gradients": own,
        "parameters in compute dtype": own * width / param if width != param else 0.0,
    }
    layer = sum(whole_bytes(config, sizes, name) for name in layer_matrices(config)) / config.model.num_layers
    loss = tpu_head(config, sizes) | {
        "the last layer's output": 4 * sizes.get("tensor", 1) * wide,
    }
    backward = {
        "gradients of a microbatch": own if config.step.microbatches > 1 else 0.0,
        "a layer's weights, or their gradients": layer,
        "a layer's activations": working_bytes(config, sizes, mlp=5, wide=4, whole=3.5),
    }
    return always | loss, always | backward


def tpu_head(config: cfg.Config, sizes: Mapping[str, int]) -> Parts:
    """Of the loss: see `training.loss`. In chunks, the last matrix's gradient is added up in float32, or the logits'
    gradients of all tokens are kept, in the compute dtype; a chunk's logits are there once."""
    head, logits = head_bytes(config, sizes), logits_bytes(config, sizes)
    if not chunked(config):
        return {"last matrix and its gradient": 2 * head, "logits": logits}
    width = BYTES[config.step.compute_dtype]
    parts = {
        "gradients": 0.0,  # the layers' are not there yet
        "logits": logits,
        "scratch of the matrix's scatter": head * SCRATCH if sizes.get("fsdp", 1) > 1 else 0.0,
    }
    if costs.microbatch_tokens(config, sizes) * width <= config.model.embed_dim * 4:  # as `training.loss` decides
        return parts | {"last matrix": head, "gradient of the logits": whole_logits(config, sizes) * width}
    return parts | {"last matrix and its float32 gradient": head + head / width * 4}


def whole_logits(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """How many logits a device has, of all its tokens of a microbatch."""
    return costs.microbatch_tokens(config, sizes) * config.model.padded_vocab_size / sizes.get("tensor", 1)


def gpu_moments(config: cfg.Config, sizes: Mapping[str, int], own: float) -> tuple[Parts, Parts]:
    """The same as XLA's GPU programs have them, read from their buffer assignments.

    Parameters are cast layer by layer, but those whose last dim fsdp splits are copied whole, turned, before the loops.
    """
    model, step, L = config.model, config.step, config.model.num_layers
    width, param, tensor = BYTES[step.compute_dtype], BYTES[step.param_dtype], sizes.get("tensor", 1)
    wide, rows = costs.activation_bytes(config, sizes, "layer_in") / L, costs.microbatch_rows(config, sizes)
    layers = sum(own_bytes(config, sizes, name) for name in layer_matrices(config))
    turned = ["out", "down"] if step.remat != "none" else []
    if step.microbatches > 1 and model.tie_embeddings:
        turned.append("embedding")
    always = {
        "gradients": layers,
        "gradients of a microbatch": own if step.microbatches > 1 else 0.0,
        "parameters in compute dtype": layers * width / param if step.remat == "none" and width != param else 0.0,
        "copies of parameters, turned": sum(own_bytes(config, sizes, name) for name in turned)
        if sizes.get("fsdp", 1) > 1
        else 0.0,
    }
    loss, waiting = gpu_head(config, sizes, wide * tensor)
    names = costs.kept(step)
    again = names is not None and "mlp_up" not in names
    heads = sum(costs.activation_bytes(config, sizes, name) for name in HEADS) / L
    backward = {
        "a layer's weights": sum(whole_bytes(config, sizes, w) for w in layer_matrices(config, "gate", "up", "out"))
        / L,
        "a layer's activations": working_bytes(config, sizes, mlp=4 if again else 3, wide=5, whole=7) + heads,
        # [B, T, D] of all layers, gathered over tensor along T, turned from the order in which it arrived
        "inputs, turned": tensor * wide * L if step.remat == "none" and tensor > 1 and rows > 1 else 0.0,
    }
    return always | loss, always | waiting | backward


def gpu_head(config: cfg.Config, sizes: Mapping[str, int], output: float) -> tuple[Parts, Parts]:
    """Of the loss: while it is computed, and what of it waits for the end of the backward pass.

    That is the last matrix's gradient, whole. In a loss that is not cut in chunks it is the logits' gradient, in the
    array that the logits were in, where the matrix's gradient will be scattered over fsdp.
    """
    head, logits, fsdp = head_bytes(config, sizes), logits_bytes(config, sizes), sizes.get("fsdp", 1)
    last = {"the last layer's output": 3 * output}
    if chunked(config):
        early = {"gradients": 0.0, "logits": logits}  # the layers' gradients are not there yet
        summed = {"last matrix and its float32 gradient": head + head / BYTES[config.step.compute_dtype] * 4}
        return early | summed | last, {"last matrix's gradient": head}
    if fsdp > 1:
        return {"last matrix": head, "logits": logits} | last, {"gradient of the logits": logits + output}
    return {"last matrix and its gradient": 2 * head, "logits": logits} | last, {}


def chunked(config: cfg.Config) -> bool:
    return config.loss.chunk is not None and config.loss.chunk < config.data.seq_len


def head_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """The last matrix, gathered."""
    return whole_bytes(config, sizes, "embedding" if config.model.tie_embeddings else "unembedding")


def logits_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """Of a chunk (or of all tokens), float32."""
    share = (config.loss.chunk or 0) / config.data.seq_len if chunked(config) else 1.0
    return whole_logits(config, sizes) * share * 4


def layer_matrices(config: cfg.Config, *names: str) -> list[str]:
    """Names of a layer's matrices, all or of these."""
    return [w.name for w in costs.weights(config.model) if w.name in (names or costs.MATRICES)]


def own_bytes(config: cfg.Config, sizes: Mapping[str, int], name: str) -> float:
    """A device's shard of a weight, all layers, as it is kept."""
    weight = next(w for w in costs.weights(config.model) if w.name == name)
    return weight.shard(sizes, costs.parameter_table(config, sizes)) * BYTES[config.step.param_dtype]


def whole_bytes(config: cfg.Config, sizes: Mapping[str, int], name: str) -> float:
    """A weight as a device multiplies with it: gathered over fsdp, in the compute dtype."""
    shard = own_bytes(config, sizes, name) / BYTES[config.step.param_dtype]
    return shard * sizes.get("fsdp", 1) * BYTES[config.step.compute_dtype]


def kept_bytes(config: cfg.Config, sizes: Mapping[str, int], *, lanes: int = 1) -> float:
    """Activations that wait in HBM for the backward pass, all layers, one microbatch; head_dim padded to `lanes`."""
    names, model = costs.kept(config.step), config.model
    padding = -(-model.head_size // lanes) * lanes / model.head_size

    def size(name: str) -> float:
        return costs.activation_bytes(config, sizes, name) * (padding if name in HEADS else 1)

    sums = model.num_layers * costs.microbatch_tokens(config, sizes) * model.num_heads / sizes.get("tensor", 1) * 4
    if names is None:
        return everything_bytes(config, sizes, size) + sums
    saved = {name for name, action in names.items() if action == "save"} - {"mlp_out"}  # nothing reads it again
    if "layer_in" not in names:
        saved.add("layer_in")
    if model.mlp != "swiglu":
        saved.discard("mlp_gate")
    # with the context, the softmax's sums, float32
    return sum(map(size, saved)) + (sums if "attention_context" in saved else 0)


def everything_bytes(config: cfg.Config, sizes: Mapping[str, int], size: Callable[[str], float]) -> float:
    """What remat `none` keeps of the layers: all that jax's rules of differentiation ask for, float32 inside norms."""
    model, tensor, float32 = config.model, sizes.get("tensor", 1), 4 / BYTES[config.step.compute_dtype]
    wide, heads, context = size("layer_in"), size("q") + size("k"), size("attention_context")
    total = 2 * 2 * float32 * wide  # in each of two norms: its input (or that centred), and the same normalised
    total += 2 * wide * tensor  # what the matmuls read, gathered over tensor
    total += heads + size("v")  # turned to their positions
    total += 2 * context if sizes.get("fsdp", 1) > 1 else context  # twice where remat wraps the layer: see `remat`
    total += 2 * float32 * heads if model.qk_norm else 0.0
    return total + 6 * size("mlp_up")


def working_bytes(config: cfg.Config, sizes: Mapping[str, int], *, mlp: float, wide: float, whole: float) -> float:
    """Alive at one time in a layer's backward pass: arrays of the mlp's width, arrays of [tokens, D] as they are split
    between matmuls, and with tensor parallelism whole ones: inputs gathered, gradients not yet summed."""
    F, D = (costs.activation_bytes(config, sizes, name) for name in ("mlp_up", "layer_in"))
    tensor = sizes.get("tensor", 1)
    return (mlp * F + wide * D + (whole * D * tensor if tensor > 1 else 0.0)) / config.model.num_layers
