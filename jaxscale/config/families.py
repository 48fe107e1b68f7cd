"""The families of published models: what each key of their config.json is here. No file is read here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import log
from typing import Any

from jaxscale.config.model import Model

Values = dict[str, Any]
FULL, SLIDING = "full_attention", "sliding_attention"  # the two types of layers that `layer_types` names

# What says nothing of the function, or is about training alone
ABOUT = {
    "_name_or_path", "architectures", "attention_dropout", "attn_implementation", "attn_pdrop", "auto_map",
    "bos_token_id", "cache_implementation", "chunk_size_feed_forward", "dtype", "embd_pdrop", "eos_token_id",
    "id2label", "is_encoder_decoder", "keys_to_ignore_at_inference", "label2id", "model_type", "output_attentions",
    "output_hidden_states", "output_router_logits", "pad_token_id", "pretraining_tp", "problem_type",
    "reorder_and_upcast_attn", "resid_pdrop", "return_dict", "router_aux_loss_coef", "router_jitter_noise",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "task_specific_params", "torch_dtype", "transformers_version", "unk_token_id", "use_cache", "n_ctx",
    "gradient_checkpointing", "is_llama_config", "rope_interleaved", "transformers.js_config",
}  # fmt: skip
ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq")
KINDS = (
    "layer_types", "sliding_window", "use_sliding_window", "max_window_layers", "sliding_window_pattern",
    "_sliding_window_pattern", "no_rope_layers", "no_rope_layer_interval",
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A kind of config.json.

    Attributes:
        fields: its key -> ours, `moe.` and `latent.` for those of these sections.
        fixed: our values that every model of the family has.
        only: its keys that must have this value where they are there.
        defaults: its keys' values where they are not there.
        ignored: its keys that say nothing of the function, or that `derived` or `sparse` reads.
        types: layer types where no key tells them, of (values, number of layers); None: all layers see all tokens, or
            all have the window.
        sparse: which layers have experts, of (values, number of layers); None: all or none, by the model's `moe`.
        derived: our values that follow from several keys; `back`: these keys from a model.
        quantised: `quant_method` of files that are read all the same; weights are exported in bfloat16.
        inside: the key that holds all this, in a file of a larger model of which the decoder is read.
    """

    architecture: str
    fields: Mapping[str, str]
    fixed: Values = field(default_factory=dict)
    only: Values = field(default_factory=dict)
    defaults: Values = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    types: Callable[[Values, int], list[str]] | None = None
    sparse: Callable[[Values, int], list[bool]] | None = None
    derived: Callable[[Values], Values] = lambda given: {}
    back: Callable[[Model], Values] = lambda model: {}
    inside: str = ""
    quantised: str = ""

    @property
    def rotary(self) -> bool:
        """Has it rotary positions, and so keys for them?"""
        return self.fixed.get("position", "rope") == "rope"


def every(interval: int, layers: int) -> list[str]:
    """The last of so many layers sees all tokens, and the others a window."""
    return [FULL if (i + 1) % interval == 0 else SLIDING for i in range(layers)]


def above_first(given: Values, layers: int) -> list[str]:
    """Qwen's: the first `max_window_layers` see all tokens."""
    first = given.get("max_window_layers", layers) if given.get("use_sliding_window") else layers
    return [FULL if i < first else SLIDING for i in range(layers)]


def sparse(given: Values, layers: int) -> list[bool]:
    """Qwen's: every `decoder_sparse_step`-th layer has experts, but for `mlp_only_layers`."""
    dense, step = given.get("mlp_only_layers") or [], given.get("decoder_sparse_step", 1)
    return [i not in dense and (i + 1) % step == 0 for i in range(layers)]


def gemma(given: Values) -> Values:
    """Embeddings are multiplied by sqrt(D), scores by 1 / sqrt(query_pre_attn_scalar)."""
    return {
        "embedding_multiplier": given["hidden_size"] ** 0.5,
        "attention_multiplier": given["query_pre_attn_scalar"] ** -0.5,
    }


def gemma_back(model: Model) -> Values:
    scalar = (model.attention_multiplier or model.head_size**-0.5) ** -2
    return {"query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar}


DECODER = {
    "vocab_size": "vocab_size", "hidden_size": "embed_dim", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads", "head_dim": "head_dim",
    "intermediate_size": "mlp_dim", "max_position_embeddings": "max_seq_len", "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings", "initializer_range": "init_std",
}  # fmt: skip
SILU = {"hidden_act": "silu", "partial_rotary_factor": 1.0, "quantization_config": None}
BIASES = {"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"}
ATTENTION_BIAS = {"attention_bias": "attention_bias"}
MIXTURE = {"num_experts_per_tok": "moe.top_k"}
UNTIED = {"tie_word_embeddings": False}

LLAMA = Family("LlamaForCausalLM", DECODER | BIASES, {"qk_norm": False}, SILU, UNTIED)
GEMMA_FIELDS = DECODER | ATTENTION_BIAS | {
    "final_logit_softcapping": "logits_softcap", "attn_logit_softcapping": "attention_softcap",
}  # fmt: skip
GEMMA_FIXED = {"norm_at": "both", "norm_plus_one": True, "mlp": "geglu"}
GEMMA_ONLY = {
    "hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh", "partial_rotary_factor": 1.0,
    "quantization_config": None, "use_bidirectional_attention": False,
}  # fmt: skip
GEMMA_SIZES = {
    "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "sliding_window": 4096,
}  # fmt: skip
GEMMA3 = Family(
    "Gemma3ForCausalLM", GEMMA_FIELDS, GEMMA_FIXED | {"qk_norm": True}, GEMMA_ONLY,
    GEMMA_SIZES | {"vocab_size": 262_208, "max_position_embeddings": 131_072, "rope_theta": 1e6,
                   "rope_local_base_freq": 1e4},
    types=lambda given, layers: every(
        given.get("sliding_window_pattern") or given.get("_sliding_window_pattern") or 6, layers
    ),
    derived=gemma, back=gemma_back, ignored=("query_pre_attn_scalar",),
)  # fmt: skip
DEEPSEEK_SIZES = {
    "num_attention_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256, "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
    "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "norm_topk_prob": True,
    "moe_intermediate_size": 2048, "rope_interleave": True, "rms_norm_eps": 1e-6,
}  # fmt: skip


def deepseek(given: Values) -> Values:
    """Shared experts are so many of an expert's size. YaRN changes the scores' scale too (`mscale_all_dim`)."""
    values: Values = {"moe.shared_mlp_dim": given["n_shared_experts"] * given["moe_intermediate_size"]}
    scaling = given.get("rope_scaling") or given.get("rope_parameters") or {}
    if (wanted := scaling.get("mscale_all_dim")) and scaling.get("type", scaling.get("rope_type")) == "yarn":
        of_scores = (given["qk_nope_head_dim"] + given["qk_rope_head_dim"]) ** -0.5
        values["attention_multiplier"] = of_scores * (1 + 0.1 * wanted * log(scaling["factor"])) ** 2
    return values


def deepseek_back(model: Model) -> Values:
    moe, rope, values = model.moe, model.rope_scaling, Values(num_nextn_predict_layers=0)
    if moe is None or model.latent is None:
        raise ValueError("a config.json of deepseek_v3 has model.latent and model.moe, and this model lacks one")
    if moe.shared_mlp_dim % moe.mlp_dim == 0:
        values["n_shared_experts"] = moe.shared_mlp_dim // moe.mlp_dim
    if rope and rope.kind == "yarn" and model.attention_multiplier:
        more = (model.attention_multiplier * model.head_size**0.5) ** 0.5 - 1
        wanted = round(10 * more / log(rope.factor), 6)
        values["rope_scaling"] = {"mscale": wanted, "mscale_all_dim": wanted}
    return values


FAMILIES = {
    "llama": LLAMA,
    "mistral": Family("MistralForCausalLM", DECODER, {"qk_norm": False}, SILU, UNTIED | {"sliding_window": 4096}),
    "qwen2": Family(
        "Qwen2ForCausalLM", DECODER, {"qk_norm": False, "attention_bias": "qkv"}, SILU, UNTIED, types=above_first
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM", DECODER | ATTENTION_BIAS, {"qk_norm": True}, SILU, UNTIED | {"head_dim": 128},
        types=above_first,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM", GEMMA_FIELDS, GEMMA_FIXED | {"qk_norm": False}, GEMMA_ONLY,
        GEMMA_SIZES | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        types=lambda given, layers: every(2, layers), derived=gemma, back=gemma_back,
        ignored=("query_pre_attn_scalar",),
    ),
    "gemma3_text": GEMMA3,
    "gemma3": replace(GEMMA3, inside="text_config"),
    "olmo2": Family(
        "Olmo2ForCausalLM", DECODER | ATTENTION_BIAS, {"norm_at": "after", "qk_norm": "all_heads"}, SILU, UNTIED
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM", DECODER | BIASES, {"qk_norm": False}, SILU,
        {"tie_word_embeddings": True, "rope_theta": 2e6, "num_key_value_heads": 4, "no_rope_layer_interval": 4},
    ),
    "granite": Family(
        "GraniteForCausalLM",
        DECODER | BIASES | {name: name for name in ("embedding_multiplier", "residual_multiplier",
                                                    "attention_multiplier", "logits_scaling")},
        {"qk_norm": False}, SILU, UNTIED | {"attention_multiplier": 1.0},
    ),
    "phi3": Family(
        "Phi3ForCausalLM", DECODER, {"qk_norm": False}, SILU, UNTIED, ignored=("original_max_position_embeddings",)
    ),
    "mixtral": Family(
        "MixtralForCausalLM", DECODER | MIXTURE | {"num_local_experts": "moe.num_experts"}, {"qk_norm": False}, SILU,
        UNTIED | {"rope_theta": 1e6},
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        DECODER | MIXTURE | ATTENTION_BIAS | {
            "num_experts": "moe.num_experts", "num_local_experts": "moe.num_experts",
            "moe_intermediate_size": "moe.mlp_dim", "norm_topk_prob": "moe.normalize",
        },
        {"qk_norm": True}, SILU, UNTIED | {"norm_topk_prob": False, "use_sliding_window": False},
        sparse=sparse, ignored=("decoder_sparse_step", "mlp_only_layers"),  # all layers have the window, or none
    ),
    "gpt_oss": Family(
        "GptOssForCausalLM",
        DECODER | MIXTURE | ATTENTION_BIAS | {"num_local_experts": "moe.num_experts", "swiglu_limit": "moe.limit"},
        {"qk_norm": False, "attention_sinks": True, "moe.linear_bias": True, "moe.mlp_bias": True},
        SILU | {"swiglu_alpha": 1.702},
        UNTIED | {"attention_bias": True, "sliding_window": 128, "head_dim": 64, "rope_theta": 150_000.0,
                  "swiglu_limit": 7.0,
                  "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                                   "truncate": False, "original_max_position_embeddings": 4096}},
        ignored=("experts_per_token", "initial_context_length"), types=lambda given, layers: every(2, layers),
        quantised="mxfp4",
    ),
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        {k: v for k, v in DECODER.items() if k != "head_dim"} | MIXTURE | {
            "n_routed_experts": "moe.num_experts", "moe_intermediate_size": "moe.mlp_dim",
            "first_k_dense_replace": "moe.dense_layers", "n_group": "moe.groups", "topk_group": "moe.top_groups",
            "norm_topk_prob": "moe.normalize", "routed_scaling_factor": "moe.scale",
            "q_lora_rank": "latent.q_rank", "kv_lora_rank": "latent.kv_rank", "v_head_dim": "latent.value_head_dim",
            "qk_nope_head_dim": "latent.nope_head_dim", "qk_rope_head_dim": "latent.rope_head_dim",
            "rope_interleave": "latent.interleaved",
        },
        {"qk_norm": False, "moe.score": "sigmoid", "moe.bias": True},
        SILU | {"attention_bias": False, "moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
        UNTIED | DEEPSEEK_SIZES, derived=deepseek, back=deepseek_back,
        ignored=("n_shared_experts", "head_dim", "qk_head_dim", "num_nextn_predict_layers", "ep_size", "seq_aux",
                 "aux_loss_alpha"),
        quantised="fp8",
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {"vocab_size": "vocab_size", "n_embd": "embed_dim", "n_layer": "num_layers", "n_head": "num_heads",
         "n_positions": "max_seq_len", "n_inner": "mlp_dim", "layer_norm_epsilon": "norm_eps",
         "tie_word_embeddings": "tie_embeddings", "initializer_range": "init_std"},
        {"norm": "layernorm", "position": "learned", "mlp": "gelu", "attention_bias": True, "mlp_bias": True},
        {"activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
         "add_cross_attention": False, "quantization_config": None},
        {"tie_word_embeddings": True}, back=lambda model: {"n_ctx": model.max_seq_len},  # its older name: llama.cpp's
    ),
}  # fmt: skip


def family_of(model: Model) -> str:
    """The family whose files hold a model like this one; what the model itself says comes first."""
    if model.family and model.family not in FAMILIES:
        raise ValueError(f"model.family={model.family} is not known; there are {', '.join(FAMILIES)}")
    multipliers = (model.embedding_multiplier, model.residual_multiplier, model.logits_scaling)
    tests = {
        model.family: model.family,
        "gpt2": model.norm == "layernorm",
        "gpt_oss": model.attention_sinks,
        "deepseek_v3": model.latent,
        "qwen3_moe": model.moe and model.qk_norm,
        "mixtral": model.moe,
        "gemma3_text": model.norm_at == "both" and model.qk_norm,
        "gemma2": model.norm_at == "both",
        "olmo2": model.norm_at == "after",
        "granite": multipliers != (1.0, 1.0, 1.0) or model.attention_multiplier,
        "smollm3": not all(kind.rope for kind in model.kinds),
        "qwen3": model.qk_norm,
        "qwen2": model.attention_bias == "qkv",
        "mistral": model.sliding_window,
    }
    return next((str(family) for family, fits in tests.items() if fits), "llama")
