"""What a step should cost, by arithmetic alone: parameters, state, FLOPs. No jax here: it answers at once.

Figures "of a device" are of one JAX device and one step. Dims: B batch, T sequence, D embed, N query heads, K kv heads,
H head dim, F mlp, V vocab (padded), L layers.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxscale import config as cfg
from jaxscale.optimizers import OPTIMIZERS, Slot
from jaxscale.parallel.rules import ACTIVATIONS, PARAMETERS, count

CONVENTIONS = {
    "causal": "matmuls 6 FLOPs a parameter and token, attention over the tokens that the causal mask shows",
    "palm": "matmuls 6 FLOPs a parameter and token, attention over the whole sequence (PaLM, arXiv:2204.02311, app. B)",
}
BYTES = {"bfloat16": 2, "float32": 4}


# --- parameters -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weight:
    """One parameter: its dims with their logical axes; `part` is its line in tables, `matmul` a matrix of a layer."""

    name: str
    part: str
    dims: tuple[int, ...]
    axes: tuple[str, ...]

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    def shard(self, sizes: Mapping[str, int], table: Mapping[str, tuple[str, ...]] = PARAMETERS) -> int:
        """Elements of it that one device holds."""
        return shard(self.dims, self.axes, sizes, table)


def shard(
    dims: tuple[int, ...], axes: tuple[str, ...], sizes: Mapping[str, int], table: Mapping[str, tuple[str, ...]]
) -> int:
    """Elements that one device holds of an array with these logical axes."""
    return math.prod(n // count(table[a], sizes) for n, a in zip(dims, axes, strict=True))


@functools.cache
def weights(model: cfg.Model) -> tuple[Weight, ...]:
    """Every parameter of the decoder (`models/transformer.py`), in the order in which it is used."""
    D, F, N, K, H, V = (model.embed_dim, model.mlp_dim, model.num_heads, model.kv_heads, model.head_size,
                        model.padded_vocab_size)  # fmt: skip
    found = [Weight("embedding", "embedding", (V, D), ("vocab", "embed"))]
    if model.position == "learned":
        found.append(Weight("position", "position_embedding", (model.max_seq_len, D), ("positions", "embed")))

    def layer(name: str, part: str, dims: tuple[int, ...], axes: tuple[str, ...]) -> None:
        found.append(Weight(name, part, (model.num_layers, *dims), ("layers", *axes)))

    def norm(name: str, size: int, axis: str, kind: str = model.norm) -> None:
        for suffix in ("scale", "bias")[: 2 if kind == "layernorm" else 1]:
            layer(f"{name}_{suffix}", "norms", (size,), (axis,))

    norm("attention_norm", D, "norm")
    heads = {"q": (N, "heads"), "k": (K, "kv_heads"), "v": (K, "kv_heads")}
    for name, (n, axis) in heads.items():
        layer(name, "attention", (D, n, H), ("embed", axis, "head_dim"))
        if model.attention_bias:
            layer(f"{name}_bias", "attention", (n, H), (axis, "head_dim"))
    layer("out", "attention", (N, H, D), ("heads", "head_dim", "embed"))
    if model.attention_bias:
        layer("out_bias", "attention", (D,), ("norm",))
    if model.qk_norm:
        norm("q_norm", H, "head_dim", "rmsnorm")
        norm("k_norm", H, "head_dim", "rmsnorm")
    norm("mlp_norm", D, "norm")
    for name in ("gate", "up") if model.mlp == "swiglu" else ("up",):
        layer(name, "mlp", (D, F), ("embed", "mlp"))
        if model.mlp_bias:
            layer(f"{name}_bias", "mlp", (F,), ("mlp",))
    layer("down", "mlp", (F, D), ("mlp", "embed"))
    if model.mlp_bias:
        layer("down_bias", "mlp", (D,), ("norm",))
    for suffix in ("scale", "bias")[: 2 if model.norm == "layernorm" else 1]:
        found.append(Weight(f"final_norm_{suffix}", "norms", (D,), ("norm",)))
    if not model.tie_embeddings:
        found.append(Weight("unembedding", "unembedding", (D, V), ("embed", "vocab")))
    return tuple(found)


MATRICES = ("q", "k", "v", "out", "gate", "up", "down")


def parameter_counts(model: cfg.Model) -> dict[str, int]:
    """Parameters by part, without the padding of the vocabulary; their sum is the published size."""
    counts = dict.fromkeys(("embedding", "position_embedding", "attention", "mlp", "norms", "unembedding"), 0)
    for weight in weights(model):
        padding = weight.size // model.padded_vocab_size * (model.padded_vocab_size - model.vocab_size)
        counts[weight.part] += weight.size - (padding if "vocab" in weight.axes else 0)
    return counts


def matmul_parameters(model: cfg.Model) -> int:
    """Parameters that a token is multiplied by: all matrices of the layers, and the unembedding (tied or not)."""
    matrices = sum(w.size for w in weights(model) if w.name in MATRICES)
    return matrices + model.vocab_size * model.embed_dim


def parameter_table(config: cfg.Config, sizes: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """Logical axis -> mesh axes of the parameters: the default rules, the config's, and few kv heads kept whole."""
    table = dict(PARAMETERS)
    for name, axes in config.sharding.parameters.items():
        table[name] = (axes,) if isinstance(axes, str) else tuple(axes or ())
    kv = config.sharding.activations.get("kv_heads", ACTIVATIONS["kv_heads"])
    if config.model.kv_heads < count((kv,) if isinstance(kv, str) else tuple(kv or ()), sizes):
        table["kv_heads"] = ()
    return table


def state_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of one device's part of the train state, equal to the trainer's abstract tree.

    What the optimizer keeps and the average are float32, whatever `param_dtype` is.
    """
    table = parameter_table(config, sizes)
    own = sum(w.shard(sizes, table) for w in weights(config.model))
    scalars = OPTIMIZERS[config.optimizer.name].scalars + (SPIKES if config.guard.spike else 0)
    return {
        "parameters": own * BYTES[config.step.param_dtype], "optimizer state": slot_bytes(config, sizes) + scalars,
        "averaged parameters": 4 * own if config.optimizer.ema else 0,
    }  # fmt: skip


SPIKES = 3 * 4  # the losses' mean, variance and count (`training.spikes`), beside the optimizer's state


def slots(config: cfg.Config) -> list[Slot]:
    """Every array that the optimizer keeps for a weight."""
    optimizer = OPTIMIZERS[config.optimizer.name]
    return [slot for w in weights(config.model) for slot in optimizer.kept(w.dims, w.axes).slots]


def slot_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> int:
    """Bytes of a device's shards of `slots`."""
    table = parameter_table(config, sizes)
    return 4 * sum(shard(slot.dims, slot.axes, sizes, table) for slot in slots(config))


def batch_bytes(config: cfg.Config, sizes: Mapping[str, int], *, documents: bool) -> int:
    rows = config.data.batch_size // count(ACTIVATIONS["batch"], sizes)
    return rows * (config.data.seq_len // sizes.get("context", 1)) * 4 * (5 if documents else 3)


def microbatch_rows(config: cfg.Config, sizes: Mapping[str, int]) -> int:
    """Rows of a device and microbatch."""
    return config.data.batch_size // config.step.microbatches // count(ACTIVATIONS["batch"], sizes)


def microbatch_tokens(config: cfg.Config, sizes: Mapping[str, int]) -> int:
    """Tokens of a device and microbatch."""
    return microbatch_rows(config, sizes) * config.data.seq_len // sizes.get("context", 1)


def packs_documents(config: cfg.Config) -> bool:
    """Will the feed place several documents in a row, with their masks? Asked before the data is there."""
    return config.data.mask_documents and config.data.kind != "synthetic"


# --- FLOPs ----------------------------------------------------------------------------------------------------


def visible_keys(model: cfg.Model, seq_len: int) -> float:
    """Keys that a query meets on average under the causal mask: T/2, or W (1 - W/2T) under a sliding window W < T."""
    window = min(model.sliding_window or seq_len, seq_len)
    return window * (1 - window / (2 * seq_len))


def train_flops_per_token(model: cfg.Model, seq_len: int, *, convention: str = "causal") -> float:
    """Model FLOPs of one token, forward and backward: 6 * matmul parameters + 12 * L * N * H * keys.

    `keys` is how many tokens a query meets: T in PaLM's convention (arXiv:2204.02311, appendix B); on average half of
    T counted causally, or W * (1 - W / 2T) under a sliding window W < T. Recompute is not counted.
    """
    keys = visible_keys(model, seq_len) if convention == "causal" else float(seq_len)
    attention = 12 * model.num_layers * model.num_heads * model.head_size * keys
    return 6 * matmul_parameters(model) + attention


@dataclass(frozen=True)
class Matmul:
    """x[M, K] · w[K, N] of a device, forward; `runs` a step, of which 1 in 3 or 4 is forward.

    Attributes:
        forward, backward, recomputed: how often this many FLOPs are done a step.
    """

    name: str
    m: int
    k: int
    n: int
    forward: int
    backward: int
    recomputed: int

    @property
    def flops(self) -> float:
        """Of one run: 2 M K N."""
        return 2.0 * self.m * self.k * self.n

    @property
    def step_flops(self) -> float:
        return self.flops * (self.forward + self.backward + self.recomputed)


KEPT_BY_DOTS = ("q", "k", "v", "attention_out", "mlp_gate", "mlp_up", "mlp_out")
OUTPUT_OF = {"q": "q", "k": "k", "v": "v", "out": "attention_out", "gate": "mlp_gate", "up": "mlp_up"}


def kept(step: cfg.Step) -> dict[str, str] | None:
    """Activation -> `save` or `offload`, of those that the backward pass finds; None: all are kept (remat none)."""
    if step.remat == "none":
        return None
    if step.remat == "full":
        return {}
    if step.remat == "dots":
        return dict.fromkeys(KEPT_BY_DOTS, "save")
    return {name: action for name, action in step.remat.items() if action != "recompute"}


def recomputed_matmuls(step: cfg.Step) -> set[str]:
    """Matrices whose forward matmul runs again in the backward pass: those whose output is needed and was not kept.

    The last one of a layer (`down`) never is: nothing of the backward pass needs its output.
    """
    names = kept(step)
    return set() if names is None else {w for w, output in OUTPUT_OF.items() if output not in names}


def matmuls(config: cfg.Config, sizes: Mapping[str, int]) -> list[Matmul]:
    """Every matmul of a device and step, attention apart."""
    model, step = config.model, config.step
    tokens, tensor = microbatch_tokens(config, sizes), sizes.get("tensor", 1)
    D, F, H, V = model.embed_dim, model.mlp_dim, model.head_size, model.padded_vocab_size
    N, K = model.num_heads // tensor, max(model.kv_heads, tensor) // tensor
    shapes = {"q": (D, N * H), "k": (D, K * H), "v": (D, K * H), "out": (N * H, D), "gate": (D, F // tensor),
              "up": (D, F // tensor), "down": (F // tensor, D)}  # fmt: skip
    if model.mlp != "swiglu":
        del shapes["gate"]
    again, runs = recomputed_matmuls(step), model.num_layers * step.microbatches
    found = [Matmul(name, tokens, k, n, runs, 2 * runs, runs * (name in again)) for name, (k, n) in shapes.items()]
    return [*found, Matmul("unembedding", tokens, D, V // tensor, step.microbatches, 2 * step.microbatches, 0)]


@dataclass(frozen=True)
class AttentionCost:
    """Attention of a device and step, scores and context: FLOPs of one forward call of one layer, and calls a step.

    Attributes:
        forward_flops: 4 * tokens * heads * H * keys (two matmuls).
        backward_flops: 5 matmuls in a kernel that makes the scores again (FlashAttention-2, arXiv:2307.08691), 4 where
            they were kept.
        forward_calls, backward_calls: with recompute.
    """

    forward_flops: float
    backward_flops: float
    forward_calls: int
    backward_calls: int

    @property
    def step_flops(self) -> float:
        return self.forward_flops * self.forward_calls + self.backward_flops * self.backward_calls


def attention(config: cfg.Config, sizes: Mapping[str, int]) -> AttentionCost:
    """By a fused kernel (splash, cuDNN): causal tokens only."""
    model, step = config.model, config.step
    heads = model.num_heads // sizes.get("tensor", 1)
    keys = visible_keys(model, config.data.seq_len)
    forward = 4.0 * microbatch_tokens(config, sizes) * heads * model.head_size * keys
    names = kept(step)
    again = names is not None and "attention_context" not in names
    runs = model.num_layers * step.microbatches
    return AttentionCost(forward, 2.5 * forward, runs * (2 if again else 1), runs)


def activation_bytes(config: cfg.Config, sizes: Mapping[str, int], name: str) -> float:
    """Bytes of a named activation (`config.ACTIVATIONS`) of all layers and one microbatch, on a device."""
    model, tensor = config.model, sizes.get("tensor", 1)
    tokens = microbatch_tokens(config, sizes)
    heads = model.num_heads * model.head_size / tensor
    kv = max(model.kv_heads, tensor) * model.head_size / tensor
    wide = model.embed_dim / tensor  # sequence parallelism: between the matmuls tokens are split over tensor
    per_token = {
        "layer_in": wide, "q": heads, "k": kv, "v": kv, "attention_context": heads, "attention_out": wide,
        "mlp_gate": model.mlp_dim / tensor, "mlp_up": model.mlp_dim / tensor, "mlp_out": wide,
    }  # fmt: skip
    return model.num_layers * tokens * per_token[name] * BYTES[config.step.compute_dtype]
