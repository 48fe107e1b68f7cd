"""HBM of a device predicted from the config alone: the state exactly, temporaries as the larger of two moments. No jax.

Two moments of a step can be its peak: the loss, when the last matrix and its gradient are whole on a device beside a
chunk of logits; and the backward pass of a layer, when the layer's gathered weights and their gradients are. Both
stand on the activations that the forward pass has kept. How far that is from compiled programs: `benchmarks/memory.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxscale import config as cfg
from jaxscale.analysis import costs
from jaxscale.analysis.costs import BYTES


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
    """Predict a device's HBM for `config` on a mesh of these sizes. Raises ValueError as `costs.state_bytes`.

    Args:
        documents: several documents a row, masked from each other; cuDNN's attention (`platform` gpu) takes that as a
            mask [B, 1, T, T] and copies it once.
    """
    state = costs.state_bytes(config, sizes) | {"batch": costs.batch_bytes(config, sizes, documents=documents)}
    kept = kept_bytes(config, sizes)
    own = state["parameters"]
    width, param = BYTES[config.step.compute_dtype], BYTES[config.step.param_dtype]
    offloaded = [name for name, action in (costs.kept(config.step) or {}).items() if action == "offload"]
    host = sum(costs.activation_bytes(config, sizes, name) for name in offloaded)
    tokens = costs.microbatch_tokens(config, sizes)
    always = {
        "kept activations": kept,
        "on the way to the host": host / config.model.num_layers,
        "document mask": 2 * 2 * costs.microbatch_tokens(config, sizes) * config.data.seq_len
        if documents and platform == "gpu"
        else 0.0,
        "gradients": float(own),
        "parameters in compute dtype": own * width / param if width != param else 0.0,
    }
    head = whole_bytes(config, sizes, "unembedding" if not config.model.tie_embeddings else "embedding")
    chunk = min(config.loss.chunk or config.data.seq_len, config.data.seq_len) / config.data.seq_len
    logits = tokens * chunk * config.model.padded_vocab_size / sizes.get("tensor", 1) * 4
    logits *= 2 if chunk < 1 else 1  # in chunks, a chunk's gradient stands beside it
    head *= 3 if config.model.tie_embeddings else 2  # its gradient; tied, a transposed copy too
    layer = sum(whole_bytes(config, sizes, name) for name in layer_matrices(config)) / config.model.num_layers
    return MemoryForecast(
        state,
        always
        | {
            "last matrix and its gradient": head,
            "logits": logits,
            "the last layer's output": 4 * tokens * config.model.embed_dim * width,
        },
        always
        | {"gradients of a microbatch": own if config.step.microbatches > 1 else 0.0}
        | {"a layer's weights and gradients": 2 * layer, "a layer's activations": working_bytes(config, sizes)},
        host,
    )  # fmt: skip


def layer_matrices(config: cfg.Config) -> list[str]:
    return [w.name for w in costs.weights(config.model) if w.name in costs.MATRICES]


def whole_bytes(config: cfg.Config, sizes: Mapping[str, int], name: str) -> float:
    """A weight as a device multiplies with it: gathered over fsdp, in the compute dtype."""
    weight = next(w for w in costs.weights(config.model) if w.name == name)
    shard = weight.shard(sizes, costs.parameter_table(config, sizes))
    return shard * sizes.get("fsdp", 1) * BYTES[config.step.compute_dtype]


def kept_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """Activations that wait in HBM for the backward pass, all layers, one microbatch."""
    names = costs.kept(config.step)
    if names is None:
        return everything_bytes(config, sizes)
    saved = {name for name, action in names.items() if action == "save"} - {"mlp_out"}  # nothing reads it again
    if "layer_in" not in names:
        saved.add("layer_in")
    if config.model.mlp != "swiglu":
        saved.discard("mlp_gate")
    total = sum(costs.activation_bytes(config, sizes, name) for name in saved)
    if "attention_context" in saved:  # with it, the softmax's sums, float32
        total += (
            config.model.num_layers
            * costs.microbatch_tokens(config, sizes)
            * config.model.num_heads
            / sizes.get("tensor", 1)
            * 4
        )
    return total


def everything_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """What remat `none` keeps of the layers: all that jax's rules of differentiation ask for, float32 inside norms."""

    def size(name: str) -> float:
        return costs.activation_bytes(config, sizes, name)

    model, tensor, float32 = config.model, sizes.get("tensor", 1), 4 / BYTES[config.step.compute_dtype]
    wide, heads = size("layer_in"), size("q") + size("k")
    arrays = 3 if model.norm == "layernorm" else 2  # of float32 in a norm: centred, normalised, scaled
    total = 2 * (arrays * float32 + 1) * wide + 2 * wide  # two norms; the residual twice
    total += 2 * wide * tensor if tensor > 1 else 0.0  # inputs gathered over tensor
    total += 2 * heads + size("v") + size("attention_context")  # queries and keys before and after they are turned
    total += 2 * float32 * heads if model.qk_norm else 0.0
    return total + (6 if model.mlp == "swiglu" else 5) * size("mlp_up")


def working_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> float:
    """Alive at one time in a layer's backward pass: the mlp's arrays and their gradients, a few of [tokens, D] as they
    are split between matmuls, and with tensor parallelism whole ones: inputs gathered, gradients not yet summed."""
    mlp, wide = (costs.activation_bytes(config, sizes, name) for name in ("mlp_up", "layer_in"))
    tensor = sizes.get("tensor", 1)
    whole = 3.5 * wide * tensor if tensor > 1 else 0.0
    return (5 * mlp + 4 * wide + whole) / config.model.num_layers
