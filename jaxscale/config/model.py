"""The section `model`: the sizes and kinds of a decoder."""

import math
from typing import Literal

from pydantic import model_validator

from jaxscale.config.values import Above0, AtLeast0, Positive, Section
from jaxscale.data.vocabulary import VocabSize


class RopeScaling(Section):
    """Llama-3.1's stretching of rotary frequencies to longer contexts (arXiv:2407.21783, 3.4.1)."""

    factor: Above0 = 8.0
    low_frequency_factor: Above0 = 1.0
    high_frequency_factor: Above0 = 4.0
    original_max_len: Positive = 8192


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
        return self

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
