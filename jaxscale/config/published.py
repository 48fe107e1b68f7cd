"""A published config.json as a model of ours, field by field, and back.

What changes the function and cannot be expressed is refused by its name. Both spellings of rotary positions are read;
the older one is written, which every reader knows and which wins where both are there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jaxscale.config.errors import describe, in_one
from jaxscale.config.model import Model
from jaxscale.files.reading import parse_json

Values = dict[str, Any]

# What says nothing of the function, or is about training alone
ABOUT = {
    "_name_or_path", "architectures", "attention_dropout", "attn_implementation", "attn_pdrop", "auto_map",
    "bos_token_id", "chunk_size_feed_forward", "dtype", "embd_pdrop", "eos_token_id", "id2label", "is_encoder_decoder",
    "keys_to_ignore_at_inference", "label2id", "max_window_layers", "model_type", "output_attentions",
    "output_hidden_states", "output_router_logits", "pad_token_id", "pretraining_tp", "problem_type",
    "reorder_and_upcast_attn", "resid_pdrop", "return_dict", "router_aux_loss_coef", "router_jitter_noise",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "task_specific_params", "torch_dtype", "transformers_version", "unk_token_id", "use_cache", "n_ctx",
    "gradient_checkpointing", "is_llama_config", "rope_interleaved", "transformers.js_config",
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A kind of config.json.

    Attributes:
        fields: its key -> ours, `moe.` for those of experts.
        fixed: our values that every model of the family has.
        only: its keys that must have this value where they are there.
        defaults: its keys' values where they are not there.
    """

    architecture: str
    fields: Mapping[str, str]
    fixed: Values = field(default_factory=dict)
    only: Values = field(default_factory=dict)
    defaults: Values = field(default_factory=dict)


DECODER = {
    "vocab_size": "vocab_size", "hidden_size": "embed_dim", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads", "head_dim": "head_dim",
    "intermediate_size": "mlp_dim", "max_position_embeddings": "max_seq_len", "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings", "initializer_range": "init_std", "sliding_window": "sliding_window",
}  # fmt: skip
ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
SILU = {"hidden_act": "silu", "partial_rotary_factor": 1.0, "quantization_config": None}
FULL = SILU | {"use_sliding_window": False}
BIASES = {"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"}
MIXTURE = {"num_experts_per_tok": "moe.top_k"}
FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM", DECODER | BIASES, {"qk_norm": False}, SILU, {"tie_word_embeddings": False}
    ),
    "mistral": Family("MistralForCausalLM", DECODER, {"qk_norm": False}, SILU, {"tie_word_embeddings": False}),
    "qwen3": Family(
        "Qwen3ForCausalLM", DECODER | {"attention_bias": "attention_bias"}, {"qk_norm": True}, FULL,
        {"tie_word_embeddings": False, "head_dim": 128},
    ),
    "mixtral": Family(
        "MixtralForCausalLM", DECODER | MIXTURE | {"num_local_experts": "moe.num_experts"}, {"qk_norm": False}, SILU,
        {"tie_word_embeddings": False, "rope_theta": 1e6},
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        DECODER | MIXTURE | {"attention_bias": "attention_bias", "num_experts": "moe.num_experts",
                             "num_local_experts": "moe.num_experts", "moe_intermediate_size": "moe.mlp_dim",
                             "norm_topk_prob": "moe.normalize"},
        {"qk_norm": True}, FULL | {"mlp_only_layers": [], "decoder_sparse_step": 1},
        {"tie_word_embeddings": False, "norm_topk_prob": False},
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {"vocab_size": "vocab_size", "n_embd": "embed_dim", "n_layer": "num_layers", "n_head": "num_heads",
         "n_positions": "max_seq_len", "n_inner": "mlp_dim", "layer_norm_epsilon": "norm_eps",
         "tie_word_embeddings": "tie_embeddings", "initializer_range": "init_std"},
        {"norm": "layernorm", "position": "learned", "mlp": "gelu", "attention_bias": True, "mlp_bias": True},
        {"activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
         "add_cross_attention": False, "quantization_config": None},
        {"tie_word_embeddings": True},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A model that was read: its family, ours, and a line for each field: its key, its value, and what it became."""

    family: str
    model: Model
    fields: tuple[tuple[str, Any, str], ...]


def read(directory: Path) -> Published:
    """The model of a directory's config.json. Raises ValueError for what cannot be expressed, by its name."""
    path = directory / "config.json"
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is no table")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    kind = values.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"{path}: model_type {kind} is not known; there are {', '.join(FAMILIES)}")
    try:
        return as_ours(kind, values, name=directory.resolve().name)
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def as_ours(kind: str, values: Values, *, name: str) -> Published:
    family, told = FAMILIES[kind], []
    absent = {k: v for k, v in family.defaults.items() if k not in values}
    if "rope_parameters" in values:  # it says theta, wherever that is
        absent.pop("rope_theta", None)
    given = absent | values
    own: Values = {"name": name, **family.fixed}
    moe: Values = {}
    for key, value in given.items():
        if key in family.fields:
            if value is None or (key == "sliding_window" and given.get("use_sliding_window") is False):
                told.append((key, value, "not used"))
                continue
            ours = family.fields[key]
            place, short = (moe, ours.removeprefix("moe.")) if ours.startswith("moe.") else (own, ours)
            if place.get(short, value) != value:
                raise ValueError(f"{key}={value}, and another key says {place[short]}")
            place[short] = value
            told.append((key, value, f"model.{ours}"))
        elif key in family.only:
            if value is not None and value != family.only[key]:
                raise ValueError(f"{key}={value} changes the model, and only {family.only[key]} can be expressed")
            told.append((key, value, "as here"))
        elif key == "layer_types":
            if set(value or []) - {"full_attention", *(["sliding_attention"] if own.get("sliding_window") else [])}:
                raise ValueError(f"{key}={sorted(set(value))}: layers of several kinds cannot be expressed")
            told.append((key, "...", "as here"))
        elif key not in ROPE or kind == "gpt2":
            if key not in ABOUT:
                raise ValueError(f"{key}={value} is not known, and may change the model")
            told.append((key, value, "says nothing of the model"))
    if kind != "gpt2":
        own |= positions(given)
        told.append(("rope", {k: given[k] for k in ROPE if k in given}, "model.rope_theta, model.rope_scaling"))
    own.setdefault("mlp_dim", 4 * own.get("embed_dim", 0))
    if moe:
        own["moe"] = {"mlp_dim": own["mlp_dim"]} | moe
    return Published(kind, model_of(own), tuple(told))


def model_of(values: Values) -> Model:
    """Checked as any config is."""
    try:
        return Model.model_validate(values)
    except ValidationError as error:
        raise ValueError(in_one([describe(e, Model) for e in error.errors()])) from None


def positions(given: Values) -> Values:
    """Rotary positions, in the older spelling where it is there, or in the newer one."""
    newer = given.get("rope_parameters") or {}
    if any(isinstance(v, dict) for v in newer.values()):
        raise ValueError(f"rope_parameters={newer}: positions by kind of layer cannot be expressed")
    scaling = given.get("rope_scaling") or {k: v for k, v in newer.items() if k != "rope_theta"}
    theta = given.get("rope_theta", newer.get("rope_theta", 10_000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return {"rope_theta": float(theta)}
    names = {"factor": "factor", "low_freq_factor": "low_frequency_factor", "high_freq_factor": "high_frequency_factor",
             "original_max_position_embeddings": "original_max_len"}  # fmt: skip
    if kind != "llama3" or set(scaling) - {*names, "rope_type", "type"}:
        raise ValueError(f"rope_scaling={scaling}: of these only llama3 can be expressed")
    return {"rope_theta": float(theta), "rope_scaling": {ours: scaling[theirs] for theirs, ours in names.items()}}


# --- back -----------------------------------------------------------------------------------------------------


def family_of(model: Model) -> str:
    """The family whose files hold a model like this one."""
    if model.norm == "layernorm":
        return "gpt2"
    if model.moe:
        return "qwen3_moe" if model.qk_norm else "mixtral"
    if model.qk_norm:
        return "qwen3"
    return "mistral" if model.sliding_window else "llama"


def as_theirs(model: Model, *, dtype: str, separator: int | None) -> Values:
    """The config.json of a model; ValueError names the fields that its family cannot express."""
    kind = family_of(model)
    family = FAMILIES[kind]
    own = model.model_dump(mode="json")
    own |= {f"moe.{k}": v for k, v in (own.get("moe") or {}).items()}
    values: Values = {"architectures": [family.architecture], "model_type": kind, "torch_dtype": dtype}
    values |= {key: own[ours] for key, ours in family.fields.items() if key != "num_local_experts" or kind == "mixtral"}
    values |= {key: value for key, value in family.only.items() if value is not None and key != "partial_rotary_factor"}
    values |= {"bos_token_id": separator, "eos_token_id": separator}
    if kind == "mixtral":
        values["intermediate_size"] = own["moe.mlp_dim"]
    if kind != "gpt2":
        values |= {"rope_theta": model.rope_theta, "rope_scaling": scaling_of(model)}
    again = as_ours(kind, values, name=model.name).model
    same = ("name", "vocab_multiple", "mlp_dim") if model.moe else ("name", "vocab_multiple")
    lost = [k for k, v in again.model_dump().items() if k not in same and v != model.model_dump()[k]]
    if lost:
        told = ", ".join(f"model.{k}={getattr(model, k)}" for k in lost)
        raise ValueError(f"{told}: a config.json of {kind}, the nearest family, cannot express it")
    return values


def scaling_of(model: Model) -> Values | None:
    if (rope := model.rope_scaling) is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_frequency_factor,
        "high_freq_factor": rope.high_frequency_factor,
        "original_max_position_embeddings": rope.original_max_len,
    }
