"""What a step should cost, by arithmetic alone: parameters, state, FLOPs. No jax here: it answers at once.

Figures "of a device" are of one JAX device and one step. Dims: B batch, T sequence, D embed, N query heads, K kv heads,
H head dim, F mlp, V vocab (padded), L layers.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxscale import config as cfg
from jaxscale.blueprint import passes as rows
from jaxscale.blueprint.cases import Axes
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.passes import Pass, Tensor
from jaxscale.blueprint.rules import (
    REPLICA_AXES,
    Overrides,
    Sizes,
    count,
    few_axes,
    key_of,
    make_rules,
    rules_by_key,
    rules_of,
    schedule,
    split_by,
)
from jaxscale.blueprint.table import Blueprint, Weight
from jaxscale.optimizers import OPTIMIZERS, Slot

MATMULS = "matmuls 6 FLOPs a parameter and token (4 if it is frozen; of experts, those that the token goes to)"
CONVENTIONS = {
    "causal": f"{MATMULS}, attention over the tokens that the causal mask shows",
    "palm": f"{MATMULS}, attention over the whole sequence (PaLM, arXiv:2204.02311, app. B)",
}
BYTES = {"bfloat16": 2, "float32": 4}


# --- sizes ----------------------------------------------------------------------------------------------------

Key = tuple[Blueprint, Overrides, Sizes]  # see `rules.key_of`
KEPT = 16384  # answers, each of some numbers


def letter_sizes(config: cfg.Config, sizes: Mapping[str, int]) -> Mapping[str, int]:
    """Global size of each dim of a microbatch, as matmuls see it: few kv heads are repeated up to their shards."""
    return _letter_sizes(key_of(config, sizes), *batch_shape(config))


def batch_shape(config: cfg.Config) -> tuple[int, int]:
    """Rows of a microbatch and their tokens, global."""
    return config.data.batch_size // config.step.microbatches, config.data.seq_len


@functools.lru_cache(maxsize=KEPT)
def _letter_sizes(key: Key, rows: int, tokens: int) -> Mapping[str, int]:
    split, sizes = rules_by_key(*key).activations, dict(key[2])
    whole = {"B": rows, "T": tokens}
    if routed := key[0].routed:  # as many for each expert; where that is no whole number, one more
        whole[routed.rows] = -(-rows * tokens * routed.top_k // key[0].dims[routed.experts].size)
    for letter, dim in key[0].dims.items():
        whole[letter] = max(dim.size, count(split[dim.axis], sizes)) if dim.repeats else dim.size
    return whole


def elements(letters: str, layout: tuple[Axes, ...], whole: Mapping[str, int], sizes: Mapping[str, int]) -> int:
    """Elements of an array that one device holds, of these dims in this layout; `whole`: see `letter_sizes`."""
    return math.prod(whole[c] // count(axes, sizes) for c, axes in zip(letters, layout, strict=True))


def passes(config: cfg.Config, sizes: Mapping[str, int]) -> tuple[Pass, ...]:
    """The matmuls of a step on a mesh of these sizes."""
    return rows.passes(config, split_by(cfg.AXES, sizes), few_dims(config, sizes))


def forward_passes(config: cfg.Config, sizes: Mapping[str, int]) -> list[Pass]:
    return [one for one in passes(config, sizes) if one.phase == rows.FORWARD]


def few_dims(config: cfg.Config, sizes: Mapping[str, int]) -> frozenset[str]:
    """Logical axes of which there are fewer than shards."""
    return few_axes(make_rules(config.sharding), sizes, blueprint(config.model))


def shard(weight: Weight, config: cfg.Config, sizes: Mapping[str, int]) -> int:
    """Elements of a parameter, all layers, that one device holds between steps."""
    return _shard(key_of(config, sizes), weight.name)


@functools.lru_cache(maxsize=KEPT)
def _shard(key: Key, name: str) -> int:
    model = key[0]
    return shard_of(model.shape(model.weight(name)), model.axes(model.weight(name)), key)


def shard_of(dims: tuple[int, ...], axes: tuple[str, ...], key: Key) -> int:
    """Elements that one device holds of an array with these logical axes, laid out as parameters are."""
    split, sizes = rules_by_key(*key).parameters, dict(key[2])
    return math.prod(n // count(split[axis], sizes) for n, axis in zip(dims, axes, strict=True))


@functools.lru_cache(maxsize=KEPT)
def parameter_elements(key: Key) -> int:
    """Elements of all trained parameters that one device holds."""
    return sum(_shard(key, weight.name) for weight in key[0].weights if weight.trained)


def bytes_held(config: cfg.Config, sizes: Mapping[str, int], which: str) -> int:
    """Bytes of the parameters that one device holds: of those that are `trained`, `frozen` or `ruled`."""
    return _bytes_held(key_of(config, sizes), config.step.param_dtype, which)


@functools.lru_cache(maxsize=KEPT)
def _bytes_held(key: Key, dtype: str, which: str) -> int:
    rows = (w for w in key[0].weights if getattr(w, which))
    return sum(_shard(key, w.name) * BYTES[w.kept_in(dtype)] for w in rows)


# --- parameters -----------------------------------------------------------------------------------------------


def parameter_counts(model: cfg.Model) -> dict[str, int]:
    """Parameters by part, without the padding of the vocabulary; their sum is the published size."""
    described = blueprint(model)
    counts = dict.fromkeys(described.parts, 0)
    for weight in described.weights:
        counts[weight.part] = counts.get(weight.part, 0) + described.published_size(weight)
    return counts


def active_parameters(model: cfg.Model) -> int:
    """Parameters without the experts that a token does not go to; the published "active" ones."""
    described = blueprint(model)
    return round(sum(described.published_size(w) * described.active(w) for w in described.weights))


def parameter_words(model: cfg.Model) -> str | None:
    """Of a model with experts, how many parameters there are in all and for a token; None for others."""
    if blueprint(model).routed is None:
        return None
    whole, active = sum(parameter_counts(model).values()), active_parameters(model)
    return f"{whole / 1e9:,.3g}B parameters, of which {active / 1e9:,.3g}B are active for a token"


def matmul_parameters(model: cfg.Model, *, frozen: bool = False) -> int:
    """Parameters that a token is multiplied by: all matrices of the layers, and the unembedding (tied or not).

    Of a layer's experts, those that one token goes to: active parameters. `frozen`: those alone that are frozen.
    """
    described = blueprint(model)
    weights = (described.weight(op.weight_name) for op in described.ops)
    return round(sum(described.published_size(w) * described.active(w) for w in weights if w.frozen or not frozen))


def state_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes of one device's part of the train state, equal to the trainer's abstract tree.

    What the optimizer keeps, the average, and what replicas have in common are float32, whatever `param_dtype` is.
    """
    parameters = parameter_elements(key_of(config, sizes))
    scalars = OPTIMIZERS[config.optimizer.name].scalars
    outer = {"outer parameters and momentum": 2 * 4 * parameters} if split_by(REPLICA_AXES, sizes) else {}
    biases, frozen = (bytes_held(config, sizes, which) for which in ("ruled", "frozen"))
    return (
        {
            "parameters": bytes_held(config, sizes, "trained"),
            "optimizer state": slot_bytes(config, sizes) + scalars,
            "averaged parameters": 4 * parameters if config.optimizer.ema else 0,
            "losses' statistics": LOSSES,
        }
        | ({"frozen parameters": frozen} if frozen else {})
        | ({"routers' biases": biases} if biases else {})
        | outer
    )


LOSSES = 3 * 4  # mean, variance and count (`training.spikes`)


def slots(optimizer: str, model: Blueprint) -> list[Slot]:
    """Every array that an optimizer keeps for the weights of a model."""
    kept = OPTIMIZERS[optimizer].kept  # type: ignore[index]  # the config has checked its name
    return [slot for w in model.weights if w.trained for slot in kept(model.shape(w), model.axes(w)).slots]


def slot_bytes(config: cfg.Config, sizes: Mapping[str, int]) -> int:
    """Bytes of a device's shards of `slots`."""
    return _slot_bytes(key_of(config, sizes), config.optimizer.name)


@functools.lru_cache(maxsize=KEPT)
def _slot_bytes(key: Key, optimizer: str) -> int:
    return 4 * sum(shard_of(slot.dims, slot.axes, key) for slot in slots(optimizer, key[0]))


def rows_and_tokens(config: cfg.Config, sizes: Mapping[str, int], rows: int) -> tuple[int, int]:
    """Of a batch of so many rows: a device's rows, and its tokens of each."""
    split = rules_of(config, sizes).activations
    return rows // count(split["batch"], sizes), config.data.seq_len // count(split["sequence"], sizes)


def microbatch_tokens(config: cfg.Config, sizes: Mapping[str, int]) -> int:
    """Tokens of a device and microbatch."""
    rows, length = rows_and_tokens(config, sizes, batch_shape(config)[0])
    return rows * length


def packs_documents(config: cfg.Config) -> bool:
    """Will the feed place several documents in a row, with their masks? Asked before the data is there."""
    return config.data.mask_documents and config.data.kind != "synthetic" and not config.objective.samples


# --- FLOPs ----------------------------------------------------------------------------------------------------


def visible_keys(model: cfg.Model, seq_len: int) -> float:
    """Keys that a query meets on average under the causal mask: T/2, or W (1 - W/2T) under a sliding window W < T.

    On average over the layers too, where windows differ.
    """
    attention = blueprint(model).attention
    shares = attention.shares if attention else ((None, 1.0),)
    windows = [(min(window or seq_len, seq_len), share) for window, share in shares]
    return sum(share * window * (1 - window / (2 * seq_len)) for window, share in windows)


def train_flops_per_token(model: cfg.Model, seq_len: int, *, convention: str = "causal") -> float:
    """Model FLOPs of one token, forward and backward: 6 * matmul parameters + 12 * L * N * H * keys.

    H is the mean of keys' and values' head dim. A query meets so many `keys`: T in PaLM's convention (arXiv:2204.02311,
    app. B); causally T/2 on average, or W * (1 - W / 2T) in a window W < T. Frozen matrices count 4, and recompute 0.
    """
    described, dims = blueprint(model), blueprint(model).dims
    matrices = 6 * matmul_parameters(model) - 2 * matmul_parameters(model, frozen=True)
    if described.attention is None:
        return float(matrices)
    keys = visible_keys(model, seq_len) if convention == "causal" else float(seq_len)
    width = sum(math.prod(dims[c].size for c in row if c in dims) for row in described.attention.both)
    return matrices + 6 * described.num_layers * width * keys


@dataclass(frozen=True)
class Matmul:
    """x[M, K] · w[K, N] of a device, forward; `runs` a step, of which 1 in 3 or 4 is forward.

    Attributes:
        forward, backward, recomputed: how often this many FLOPs are done a step.
        stacked: every layer has one.
        groups: matrices of experts, each for some of the rows.
    """

    name: str
    m: int
    k: int
    n: int
    forward: int
    backward: int
    recomputed: int
    stacked: bool = True
    groups: int = 1

    @property
    def elements(self) -> int:
        """Of x, w and the result."""
        return self.m * self.k + self.groups * self.k * self.n + self.m * self.n

    @property
    def flops(self) -> float:
        """Of one run: 2 M K N."""
        return 2.0 * self.m * self.k * self.n

    @property
    def step_flops(self) -> float:
        return self.flops * (self.forward + self.backward + self.recomputed)


def kept(config: cfg.Config) -> dict[str, str] | None:
    """Activation -> `save` or `offload`, of those that the backward pass finds; None: all are kept (remat none)."""
    return rows.kept(config.step.remat, blueprint(config.model))


def recomputed_matmuls(config: cfg.Config) -> set[str]:
    """Matmuls whose forward pass runs again in the backward pass."""
    return rows.recomputed_matmuls(kept(config), blueprint(config.model))


def matmuls(config: cfg.Config, sizes: Mapping[str, int]) -> list[Matmul]:
    """Every matmul of a device and step, attention apart."""
    again, whole = recomputed_matmuls(config), letter_sizes(config, sizes)
    twice = config.objective.of_rows and config.loss.in_chunks(config.data.seq_len)  # the logits
    all_matmuls = []
    for one in forward_passes(config, sizes):
        here = local_sizes(one.w, whole, sizes) | local_sizes(one.x, whole, sizes)
        x, w, out = one.x.letters, one.w.letters, one.out.letters
        groups = [c for c in x if c in out], [c for c in x if c not in out], [c for c in w if c not in x]
        m, k, n = (math.prod(here[c] for c in letters) for letters in groups)
        each = math.prod(here[c] for c in x if c in out and c in w)
        runs = runs_of(one, config, sizes)
        back = (2 if blueprint(config.model).weight(one.weight).trained else 1) * runs
        repeated = runs * (one.name in again if one.stacked else twice)
        all_matmuls.append(Matmul(one.name, m, k, n, runs, back, repeated, one.stacked, each))
    return all_matmuls


def local_sizes(operand: Tensor, whole: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, int]:
    """Letter -> what a device has of that dim, as the matmul takes the operand."""
    return {c: whole[c] // count(axes, sizes) for c, axes in zip(operand.letters, operand.used, strict=True)}


def runs_of(one: Pass, config: cfg.Config, sizes: Mapping[str, int]) -> int:
    """How often a device runs it in a step."""
    return layer_runs(config, sizes, one.only) if one.stacked else config.step.microbatches


def layer_runs(config: cfg.Config, sizes: Mapping[str, int], only: str = "") -> int:
    """How often a device runs a layer forward in a step: M L, or with S stages of a pipeline (M + S - 1) L/S."""
    return schedule(config, sizes).ticks * layers_here(config, sizes, only)


def layers_here(config: cfg.Config, sizes: Mapping[str, int], only: str = "") -> int:
    """Layers that a device computes, `only` those of a kind: all, or those of its stage of a pipeline."""
    model = blueprint(config.model)
    return (len(model.kinds[only]) if only else model.num_layers) // schedule(config, sizes).stages


def activation_elements(config: cfg.Config, sizes: Mapping[str, int], letters: str, at: str = "sequence") -> float:
    """Elements of an activation of one layer and microbatch on a device; `at`: the sequence's logical axis there."""
    return _activation_elements(key_of(config, sizes), *batch_shape(config), letters, at)


@functools.lru_cache(maxsize=KEPT)
def _activation_elements(key: Key, rows: int, tokens: int, letters: str, at: str) -> float:
    split, sizes, whole, product = rules_by_key(*key).activations, dict(key[2]), _letter_sizes(key, rows, tokens), 1.0
    for c in letters:
        shards = count(split[key[0].axis(c, at)], sizes)
        product *= whole[c] // shards if c == "B" else whole[c] / shards
    return product


def activation_bytes(config: cfg.Config, sizes: Mapping[str, int], name: str) -> float:
    """Bytes of a named activation of all its layers and one microbatch, on a device."""
    model = blueprint(config.model)
    one = model.activation(name)
    width = BYTES[config.step.compute_dtype]
    return layers_here(config, sizes, one.only) * activation_elements(config, sizes, one.letters, one.at) * width
