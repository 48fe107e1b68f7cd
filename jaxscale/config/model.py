"""The section `model`: the sizes and kinds of a decoder."""

import math
from typing import Literal

from pydantic import model_validator

from jaxscale.config.errors import divisors
from jaxscale.config.lora import Lora, require_matrices
from jaxscale.config.values import Above0, AtLeast0, NonNegative, Positive, Section
from jaxscale.data.vocabulary import VocabSize


class RopeScaling(Section):
    """Llama-3.1's stretching of rotary frequencies to longer contexts (arXiv:2407.21783, 3.4.1)."""

    factor: Above0 = 8.0
    low_frequency_factor: Above0 = 1.0
    high_frequency_factor: Above0 = 4.0
    original_max_len: Positive = 8192


class Moe(Section):
    """A dropless mixture of experts in place of the MLP: each token goes to `top_k` of `num_experts` SwiGLUs.

    The published models differ in the router: Mixtral (arXiv:2401.04088), Qwen3 (arXiv:2505.09388), gpt-oss
    (arXiv:2508.10925), DeepSeek-V3 (arXiv:2412.19437).
    """

    num_experts: Positive
    top_k: Positive
    mlp_dim: Positive  # of one expert
    shared_mlp_dim: NonNegative = 0  # of the experts that every token goes to, together; 0: there are none
    dense_layers: NonNegative = 0  # the first layers, which have an MLP of model.mlp_dim
    score: Literal["softmax", "sigmoid"] = "softmax"
    normalize: bool = True  # the weights of a token's experts sum to 1
    scale: Above0 = 1.0  # of these weights
    groups: Positive = 1  # experts lie in groups, and a token's are in its top_groups best ones
    top_groups: Positive = 1
    bias: bool = False  # of the choice alone, moved after each step so that loads become even (arXiv:2408.15664)
    linear_bias: bool = False  # a trained bias of the router's matmul

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
    vocab_size: VocabSize = 0  # null or left out: the data's, which Config fills in
    num_layers: Positive
    embed_dim: Positive
    num_heads: Positive
    num_kv_heads: Positive | None = None  # None: as many as num_heads
    head_dim: Positive | None = None  # None: embed_dim / num_heads
    mlp_dim: Positive
    moe: Moe | None = None  # experts in place of the MLP
    lora: Lora | None = None  # train these matrices alone
    max_seq_len: Positive = 8192
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: Above0 = 1e-5
    position: Literal["rope", "learned"] = "rope"
    rope_theta: Above0 = 10_000.0
    rope_scaling: RopeScaling | None = None
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    attention_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: Positive | None = None  # a token sees itself and the window - 1 tokens before it
    tie_embeddings: bool = False
    attention_softcap: Above0 | None = None
    logits_softcap: Above0 | None = None
    init_std: AtLeast0 = 0.02
    vocab_multiple: Positive = 128  # the table is padded to this, so that its shape is the same on every mesh

    @model_validator(mode="after")
    def _fill_and_check(self) -> "Model":
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.head_dim is None:
            if self.embed_dim % self.num_heads:
                raise ValueError(
                    f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}; give head_dim"
                )
            object.__setattr__(self, "head_dim", self.embed_dim // self.num_heads)
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.position == "rope" and self.head_size % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions turn pairs, so make it even")
        if self.moe and (self.mlp != "swiglu" or self.mlp_bias):
            raise ValueError("moe: experts are SwiGLUs without biases; set mlp=swiglu and mlp_bias=false")
        if self.lora:
            require_matrices(self.lora, mlp=self.mlp, experts=self.moe is not None)
        if self.moe and self.moe.dense_layers >= self.num_layers:
            raise ValueError(
                f"moe.dense_layers {self.moe.dense_layers} leaves no layer of {self.num_layers} with experts; lower it"
            )
        return self

    @property
    def expert_layers(self) -> int:
        """Layers with experts."""
        return self.num_layers - self.dense_layers if self.moe else 0

    @property
    def dense_layers(self) -> int:
        """Layers with an MLP, where others have experts; 0 in a model without experts."""
        return self.moe.dense_layers if self.moe else 0

    @property
    def kv_heads(self) -> int:
        assert self.num_kv_heads is not None
        return self.num_kv_heads

    @property
    def head_size(self) -> int:
        assert self.head_dim is not None
        return self.head_dim

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up; the padding is never predicted."""
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple
