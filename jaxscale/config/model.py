"""The section `model`: the sizes and kinds of a decoder."""

import functools
import math
from collections import Counter
from typing import Literal

from pydantic import model_validator

from jaxscale.config.errors import divisors
from jaxscale.config.latent import Latent, require_latent
from jaxscale.config.lora import Lora, require_matrices
from jaxscale.config.values import Above0, AtLeast0, NonNegative, Positive, Section, Text
from jaxscale.data.vocabulary import VocabSize


class RopeScaling(Section):
    """Rotary frequencies stretched to longer contexts.

    `llama3` divides those of long wavelengths (arXiv:2407.21783, 3.4.1), `linear` all of them (arXiv:2306.15595).
    `yarn` divides those that turn seldom, with a ramp before, and scales what is rotated (arXiv:2309.00071).
    """

    kind: Literal["llama3", "linear", "yarn"] = "llama3"
    """How rotary frequencies are stretched."""
    factor: Above0 = 8.0
    """How many times longer the context becomes, a ratio."""
    low_frequency_factor: Above0 = 1.0
    """llama3: wavelengths above original_max_len divided by this are stretched by the whole factor."""
    high_frequency_factor: Above0 = 4.0
    """llama3: wavelengths below original_max_len divided by this factor stay as they are."""
    original_max_len: Positive = 8192
    """Tokens of the context that the model was trained on before."""
    beta_fast: Above0 = 32.0
    """yarn: pairs with more turns than this within original_max_len stay as they are."""
    beta_slow: Above0 = 1.0
    """yarn: pairs with fewer turns than this within original_max_len are divided by factor."""
    truncate: bool = True
    """yarn: the ramp begins and ends at whole pairs."""
    attention_factor: Above0 | None = None
    """yarn: factor of queries and keys; null: 1 + 0.1 ln(factor)."""


class LayerKind(Section):
    """What may differ between layers of one model. Only `experts` changes a layer's parameters."""

    layers: Positive = 1
    """Layers of this kind in a row."""
    sliding_window: Positive | None = None
    """Tokens that a token sees, itself included; null: all before it; left out: the model's."""
    rope: bool = True
    """Queries and keys have rotary positions; false: they have none; left out: the model's."""
    rope_theta: Above0 = 10_000.0
    """Base of the rotary wavelengths, a number of tokens; left out: the model's."""
    rope_scaling: RopeScaling | None = None
    """How rotary frequencies are stretched to longer contexts; null: they are not; left out: the model's."""
    experts: bool = False
    """The layer has experts; false: an MLP of model.mlp_dim; left out: experts, if the model has any."""


class Moe(Section):
    """A dropless mixture of experts in place of the MLP: each token goes to `top_k` of `num_experts` SwiGLUs.

    The published models differ in the router: Mixtral (arXiv:2401.04088), Qwen3 (arXiv:2505.09388), gpt-oss
    (arXiv:2508.10925), DeepSeek-V3 (arXiv:2412.19437).
    """

    num_experts: Positive
    """Experts in a layer."""
    top_k: Positive
    """Experts that each token goes to."""
    mlp_dim: Positive
    """Width of one expert, in hidden units."""
    shared_mlp_dim: NonNegative = 0
    """Width of the experts that every token goes to, all of them together, in hidden units; 0: there are none."""
    dense_layers: NonNegative = 0
    """First layers that have an MLP of `model.mlp_dim` in place of experts; 0: all layers have experts."""
    score: Literal["softmax", "sigmoid"] = "softmax"
    """How the router's logits become scores."""
    normalize: bool = True
    """The weights of a token's experts sum to 1."""
    scale: Above0 = 1.0
    """Factor of the weights of a token's experts."""
    groups: Positive = 1
    """Groups that the experts lie in; 1: no groups."""
    top_groups: Positive = 1
    """Best groups of a token, in which its experts are chosen."""
    bias: bool = False
    """A bias of the choice alone, moved after each step so that loads become even (arXiv:2408.15664)."""
    linear_bias: bool = False
    """The router's matmul has a trained bias."""
    mlp_bias: bool = False
    """The experts' matmuls have biases."""
    limit: Above0 | None = None
    """Value at which gpt-oss's SwiGLU clamps gate and up: gate sigmoid(1.702 gate) (up + 1); null: a usual SwiGLU."""

    @model_validator(mode="after")
    def _check(self) -> "Moe":
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k {self.top_k} is more than num_experts {self.num_experts}; lower it")
        if self.num_experts % self.groups:
            raise ValueError(
                f"num_experts {self.num_experts} is not divisible by groups {self.groups}; "
                f"try {divisors(self.num_experts)}"
            )
        if self.top_groups > self.groups:
            raise ValueError(f"top_groups {self.top_groups} is more than groups {self.groups}; lower it")
        in_reach = self.num_experts // self.groups * self.top_groups
        if self.top_k > in_reach:
            raise ValueError(
                f"top_k {self.top_k} is more than the {in_reach} experts of {self.top_groups} groups; raise top_groups"
            )
        return self


class Model(Section):
    """A decoder-only transformer; the shipped files under `configs/models/` hold published ones."""

    name: str = "decoder"
    """Name of the model in tables, pages and records."""
    family: Text | None = None
    """Published family whose files hold the model, for export; null: the one that its values suggest."""
    vocab_size: VocabSize = 0
    """Tokens in the vocabulary; 0 or null: the data's."""
    num_layers: Positive
    """Layers of the decoder."""
    embed_dim: Positive
    """Width of the stream between layers, in numbers per token."""
    num_heads: Positive
    """Query heads of a layer."""
    num_kv_heads: Positive | None = None
    """Key and value heads of a layer; null: as many as num_heads."""
    head_dim: Positive | None = None
    """Numbers of one head; null: embed_dim / num_heads, or what `latent` says."""
    latent: Latent | None = None
    """Multi-head latent attention; null: usual attention."""
    mlp_dim: Positive
    """Width of an MLP, in hidden units."""
    moe: Moe | None = None
    """Experts in place of the MLP; null: none."""
    lora: Lora | None = None
    """Train LoRA's matrices alone; null: train all parameters."""
    score: bool = False
    """One score per token in place of logits: a reward model, which objective.kind=reward sets."""
    max_seq_len: Positive = 8192
    """Longest sequence in tokens; learned positions have so many rows."""
    pattern: tuple[LayerKind, ...] = ()
    """Kinds of layers, repeated to the last layer; empty: all layers are alike."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """How activations are normed: by their root mean square, or by mean and variance (layernorm)."""
    norm_eps: Above0 = 1e-5
    """Added to the mean square (layernorm: the variance) before the root, a small number."""
    norm_at: Literal["before", "after", "both"] = "before"
    """Norms of attention and MLP: on what they read, on what they add, or on both."""
    norm_plus_one: bool = False
    """A norm multiplies by 1 + its weight, which begins at 0."""
    position: Literal["rope", "learned", "none"] = "rope"
    """How positions are told: rotary, a trained vector for each, or not at all."""
    rope_theta: Above0 = 10_000.0
    """Base of the rotary wavelengths, a number of tokens."""
    rope_scaling: RopeScaling | None = None
    """How rotary frequencies are stretched to longer contexts; null: they are not."""
    mlp: Literal["swiglu", "geglu", "gelu"] = "swiglu"
    """Kind of MLP; swiglu and geglu have a gate, gelu has none."""
    attention_bias: bool | Literal["qkv"] = False
    """Attention's matmuls have biases; qkv: all but the last one."""
    mlp_bias: bool = False
    """The MLP's matmuls have biases."""
    qk_norm: bool | Literal["all_heads"] = False
    """Queries and keys are normed, each head by itself; all_heads: all heads together."""
    sliding_window: Positive | None = None
    """Tokens that a token sees, itself included; null: all before it."""
    tie_embeddings: bool = False
    """The embedding table is also the last matmul's weight."""
    attention_sinks: bool = False
    """Each head has a trained score for no token at all (arXiv:2309.17453)."""
    attention_softcap: Above0 | None = None
    """Attention's scores s become cap * tanh(s / cap), at this value; null: no cap."""
    logits_softcap: Above0 | None = None
    """Logits become cap * tanh(logits / cap), at this value; null: no cap."""
    embedding_multiplier: Above0 = 1.0
    """Factor of what the first layer reads."""
    residual_multiplier: Above0 = 1.0
    """Factor of what attention and MLP add to the stream."""
    attention_multiplier: Above0 | None = None
    """Factor of attention's scores; null: 1 / sqrt(head_dim)."""
    logits_scaling: Above0 = 1.0
    """Divisor of the logits, a factor."""
    init_std: AtLeast0 = 0.02
    """Standard deviation of the initial weights."""
    vocab_multiple: Positive = 128
    """Rows of the embedding table are padded to a multiple of this, so its shape is the same on every mesh."""

    @model_validator(mode="after")
    def _fill_and_check(self) -> "Model":
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.head_dim is None and self.latent:
            object.__setattr__(self, "head_dim", self.latent.head_dim)
        if self.head_dim is None:
            if self.embed_dim % self.num_heads:
                raise ValueError(
                    f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}; give head_dim"
                )
            object.__setattr__(self, "head_dim", self.embed_dim // self.num_heads)
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.norm == "layernorm" and (self.norm_plus_one or self.norm_at != "before"):
            raise ValueError("norm=layernorm: norm_at and norm_plus_one are of rmsnorm; leave them out")
        if self.position == "rope" and not self.latent and self.head_size % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions turn pairs, so make it even")
        if self.pattern:
            self._fill_pattern()
        if self.latent:
            heads, rotary = (self.num_heads, self.kv_heads, self.head_size), all(kind.rope for kind in self.kinds)
            names = "norm_plus_one", "attention_bias", "qk_norm", "attention_sinks", "lora"
            others = {name: getattr(self, name) for name in names} | {"norm=layernorm": self.norm == "layernorm"}
            require_latent(self.latent, heads=heads, rotary=rotary, others=others)
        if self.moe and (self.mlp != "swiglu" or self.mlp_bias):
            raise ValueError("moe: experts are SwiGLUs without biases; set mlp=swiglu and mlp_bias=false")
        if self.lora:
            require_matrices(self.lora, mlp=self.mlp, experts=self.moe is not None)
        if self.moe:
            self._require_experts(self.moe)
        return self

    def _require_experts(self, moe: Moe) -> None:
        """A model with `moe` has experts in at least one layer."""
        if moe.dense_layers >= self.num_layers:
            raise ValueError(
                f"moe.dense_layers {moe.dense_layers} leaves no layer of {self.num_layers} with experts; lower it"
            )
        if not self.expert_layers:
            raise ValueError("pattern: no layer has experts, and the model has moe; set experts: true, or remove moe")

    def _fill_pattern(self) -> None:
        """Each kind says all of its values, so that a file that is written from it reads the same."""
        if not self.moe and any(k.experts for k in self.pattern):
            raise ValueError("pattern: a kind has experts: true, and the model has none; add moe, or remove it")
        if self.position != "rope" and any(k.rope for k in self.pattern if "rope" in k.model_fields_set):
            raise ValueError(f"pattern: a kind has rope: true, and position is {self.position}; set position=rope")
        defaults = {key: getattr(self, key) for key in ("sliding_window", "rope_theta", "rope_scaling")}
        defaults |= {"rope": self.position == "rope", "experts": self.moe is not None}
        given = (({n: v for n, v in defaults.items() if n not in k.model_fields_set}, k) for k in self.pattern)
        object.__setattr__(self, "pattern", tuple(kind.model_copy(update=missing) for missing, kind in given))

    @functools.cached_property
    def kinds(self) -> tuple[LayerKind, ...]:
        """One period of the pattern: layer i is of kind i modulo their number, but for `moe.dense_layers`."""
        one = LayerKind(
            sliding_window=self.sliding_window,
            rope=self.position == "rope",
            rope_theta=self.rope_theta,
            rope_scaling=self.rope_scaling,
            experts=self.moe is not None,
        )
        pattern = tuple(k.model_copy(update={"layers": 1}) for k in self.pattern for _ in range(k.layers)) or (one,)
        return shortest(pattern[: self.num_layers])

    @functools.cached_property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of every layer."""
        first = {kind: kind.model_copy(update={"experts": False}) for kind in self.kinds}
        every = [self.kinds[i % len(self.kinds)] for i in range(self.num_layers)]
        return tuple(first[kind] if i < self.first_dense_layers else kind for i, kind in enumerate(every))

    @property
    def runs(self) -> tuple[tuple[tuple[LayerKind, ...], int], ...]:
        """Runs of layers in which the same kinds repeat: one period of each run, and its number of layers."""
        runs = self.layer_kinds[: self.first_dense_layers], self.layer_kinds[self.first_dense_layers :]
        return tuple((shortest(run[: len(self.kinds)]), len(run)) for run in runs if run)

    @functools.cached_property
    def windows(self) -> dict[int | None, int]:
        """Sliding window -> how many layers have it."""
        return dict(Counter(kind.sliding_window for kind in self.layer_kinds))

    @property
    def first_dense_layers(self) -> int:
        """First layers that have an MLP, whatever their kind says."""
        return self.moe.dense_layers if self.moe else 0

    @property
    def expert_layers(self) -> int:
        """Layers with experts."""
        return sum(kind.experts for kind in self.layer_kinds)

    @property
    def dense_layers(self) -> int:
        """Layers with an MLP, where others have experts; 0 in a model without experts."""
        return self.num_layers - self.expert_layers if self.moe else 0

    @property
    def kv_heads(self) -> int:
        assert self.num_kv_heads is not None
        return self.num_kv_heads

    @property
    def head_size(self) -> int:
        assert self.head_dim is not None
        return self.head_dim

    @property
    def rotary_size(self) -> int:
        """Of a head's queries and keys, what is turned to its position."""
        return self.latent.rope_head_dim if self.latent else self.head_size

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up; the padding is never predicted."""
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple


def shortest(period: tuple[LayerKind, ...]) -> tuple[LayerKind, ...]:
    """A period of equal kinds is a period of one."""
    return period[:1] if len(set(period)) == 1 else period
