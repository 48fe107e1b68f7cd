"""Which tensor of a family's files holds which weight of ours: one row each, for reading and for writing.

Letters are the model's own (`blueprint.decoder`). A file's dim may hold several of ours, in brackets: `(NH)D` is a
matrix [N H, D]. It may hold several weights one after the other, in brackets too: `(NH+KH+KH)D`; or in turns: `(M~M)`.
A tensor whose letters have the experts' own holds all of them, else one.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxscale.blueprint.decoder import DENSE, DENSE_LAYERS, EXPERTS
from jaxscale.blueprint.table import Blueprint


@dataclass(frozen=True)
class Row:
    """One weight of ours in the files.

    Attributes:
        weight: its name in the model's table; `path`: where it is among the parameters, see `paths` for layers.
        file: its tensor's name; the first {} is the layer, the second the expert.
        letters: of the tensor's dims.
        part: which of the weights that share a dim.
    """

    weight: str
    path: tuple[str, ...]
    file: str
    letters: str
    part: int = 0

    @property
    def dims(self) -> list[list[str]]:
        """For each of the tensor's dims our letters; of several weights that share it, those of each."""
        return [re.split(r"[+~]", group.strip("()")) for group in re.findall(r"\([^)]*\)|[^()]", self.letters)]

    @property
    def flat(self) -> str:
        """Letters of this weight, in the tensor's order."""
        return "".join(parts[self.part] if len(parts) > 1 else parts[0] for parts in self.dims)

    @property
    def shared(self) -> int | None:
        """The dim that several weights share."""
        return next((i for i, parts in enumerate(self.dims) if len(parts) > 1), None)

    @property
    def in_turns(self) -> bool:
        """Do they lie in turns, one number of each?"""
        return "~" in self.letters


def rows(prefix: str, at: tuple[str, ...], *entries: tuple[str, str, str, str]) -> list[Row]:
    """Rows of (weight, path below `at`, file below `prefix`, letters)."""
    return [Row(weight, (*at, *path.split(".")), f"{prefix}{file}", letters) for weight, path, file, letters in entries]


LAYER, IN_LAYER = ("layers",), "model.layers.{}."
LLAMA = [
    *rows("model.", (), ("embedding", "embedding", "embed_tokens.weight", "VD"),
          ("final_norm_scale", "final_norm.scale", "norm.weight", "1")),
    *rows(IN_LAYER, LAYER,
          ("attention_norm_scale", "attention_norm.scale", "input_layernorm.weight", "1"),
          ("mlp_norm_scale", "mlp_norm.scale", "post_attention_layernorm.weight", "1")),
    *rows(f"{IN_LAYER}self_attn.", (*LAYER, "attention"),
          ("q", "q", "q_proj.weight", "(NH)D"), ("q_bias", "q_bias", "q_proj.bias", "(NH)"),
          ("k", "k", "k_proj.weight", "(KH)D"), ("k_bias", "k_bias", "k_proj.bias", "(KH)"),
          ("v", "v", "v_proj.weight", "(KH)D"), ("v_bias", "v_bias", "v_proj.bias", "(KH)"),
          ("out", "out", "o_proj.weight", "D(NH)"), ("out_bias", "out_bias", "o_proj.bias", "1"),
          ("q_norm_scale", "q_norm.scale", "q_norm.weight", "H"),
          ("k_norm_scale", "k_norm.scale", "k_norm.weight", "H")),
    *rows("", (), ("unembedding", "unembedding", "lm_head.weight", "VD")),
]  # fmt: skip
MLP = rows(f"{IN_LAYER}mlp.", (*LAYER, "mlp"),
           ("gate", "gate", "gate_proj.weight", "FD"), ("gate_bias", "gate_bias", "gate_proj.bias", "F"),
           ("up", "up", "up_proj.weight", "FD"), ("up_bias", "up_bias", "up_proj.bias", "F"),
           ("down", "down", "down_proj.weight", "DF"), ("down_bias", "down_bias", "down_proj.bias", "1"))  # fmt: skip


def experts(prefix: str, router: str, gate: str, up: str, down: str) -> list[Row]:
    one = "experts.{}."
    return rows(f"{IN_LAYER}{prefix}.", (*LAYER, "mlp"), ("router", "router", f"{router}.weight", "RD"),
                ("expert_gate", "expert_gate", f"{one}{gate}.weight", "MG"),
                ("expert_up", "expert_up", f"{one}{up}.weight", "MG"),
                ("expert_down", "expert_down", f"{one}{down}.weight", "GM"))  # fmt: skip


def together(names: str, at: tuple[str, ...], file: str, letters: str) -> list[Row]:
    """Weights that lie in one tensor, in this order."""
    return [Row(name, (*at, name), file, letters, part) for part, name in enumerate(names.split())]


def without(rows: list[Row], *names: str) -> list[Row]:
    return [row for row in rows if row.weight not in names]


QKV = "(NH+KH+KH)"


def norms(ours: str, at: tuple[str, ...], file: str) -> list[Row]:
    return rows("transformer.", at, (f"{ours}_scale", f"{ours}.scale", f"{file}.weight", "1"),
                (f"{ours}_bias", f"{ours}.bias", f"{file}.bias", "1"))  # fmt: skip


GPT2 = [
    *rows("transformer.", (), ("embedding", "embedding", "wte.weight", "VD"),
          ("position", "position_embedding", "wpe.weight", "PD")),
    *norms("attention_norm", LAYER, "h.{}.ln_1"),
    *norms("mlp_norm", LAYER, "h.{}.ln_2"),
    *norms("final_norm", (), "ln_f"),
    *together("q k v", (*LAYER, "attention"), "transformer.h.{}.attn.c_attn.weight", f"D{QKV}"),
    *together("q_bias k_bias v_bias", (*LAYER, "attention"), "transformer.h.{}.attn.c_attn.bias", QKV),
    *rows("transformer.h.{}.attn.c_proj.", (*LAYER, "attention"), ("out", "out", "weight", "(NH)D"),
          ("out_bias", "out_bias", "bias", "1")),
    *rows("transformer.h.{}.mlp.", (*LAYER, "mlp"),
          ("up", "up", "c_fc.weight", "DF"), ("up_bias", "up_bias", "c_fc.bias", "F"),
          ("down", "down", "c_proj.weight", "FD"), ("down_bias", "down_bias", "c_proj.bias", "1")),
]  # fmt: skip

# Four norms, of which the second is another one than Llama's of that name
GEMMA = [
    *without(LLAMA, "mlp_norm_scale"), *MLP,
    *rows(IN_LAYER, LAYER,
          ("attention_out_norm_scale", "attention_out_norm.scale", "post_attention_layernorm.weight", "1"),
          ("mlp_norm_scale", "mlp_norm.scale", "pre_feedforward_layernorm.weight", "1"),
          ("mlp_out_norm_scale", "mlp_out_norm.scale", "post_feedforward_layernorm.weight", "1")),
]  # fmt: skip
OLMO2 = [
    *without(GEMMA, "attention_norm_scale", "mlp_norm_scale", "q_norm_scale", "k_norm_scale"),
    *rows(f"{IN_LAYER}self_attn.", (*LAYER, "attention"), ("q_norm_scale", "q_norm.scale", "q_norm.weight", "(NH)"),
          ("k_norm_scale", "k_norm.scale", "k_norm.weight", "(KH)")),
]  # fmt: skip
PHI3 = [
    *without(LLAMA, "q", "k", "v"), *without(MLP, "gate", "up"),
    *together("q k v", (*LAYER, "attention"), f"{IN_LAYER}self_attn.qkv_proj.weight", f"{QKV}D"),
    *together("gate up", (*LAYER, "mlp"), f"{IN_LAYER}mlp.gate_up_proj.weight", "(F+F)D"),
]  # fmt: skip

# All experts in one tensor, gate and up in turns
GPT_OSS = [
    *LLAMA, *rows(f"{IN_LAYER}self_attn.", (*LAYER, "attention"), ("sinks", "sinks", "sinks", "N")),
    *rows(f"{IN_LAYER}mlp.", (*LAYER, "mlp"), ("router", "router", "router.weight", "RD"),
          ("router_bias", "router_bias", "router.bias", "R"),
          ("expert_down", "expert_down", "experts.down_proj", "EMG"),
          ("expert_down_bias", "expert_down_bias", "experts.down_proj_bias", "EG")),
    *together("expert_gate expert_up", (*LAYER, "mlp"), f"{IN_LAYER}mlp.experts.gate_up_proj", "EG(M~M)"),
    *together("expert_gate_bias expert_up_bias", (*LAYER, "mlp"), f"{IN_LAYER}mlp.experts.gate_up_proj_bias", "E(M~M)"),
]  # fmt: skip

DEEPSEEK = [
    *without(LLAMA, "k", "v", "out"), *MLP, *experts("mlp", "gate", "gate_proj", "up_proj", "down_proj"),
    *rows(f"{IN_LAYER}self_attn.", (*LAYER, "attention"),
          ("q_down", "q_down", "q_a_proj.weight", "QD"), ("q_up", "q_up", "q_b_proj.weight", "(NH)X"),
          ("q_latent_norm_scale", "q_latent_norm.scale", "q_a_layernorm.weight", "Q"),
          ("kv_down", "kv_down", "kv_a_proj_with_mqa.weight", "AD"), ("kv_up", "kv_up", "kv_b_proj.weight", "(NW)J"),
          ("kv_latent_norm_scale", "kv_latent_norm.scale", "kv_a_layernorm.weight", "J"),
          ("out", "out", "o_proj.weight", "D(NO)")),
    *rows(f"{IN_LAYER}mlp.", (*LAYER, "mlp"), ("balance_bias", "balance_bias", "gate.e_score_correction_bias", "R")),
    *rows(f"{IN_LAYER}mlp.shared_experts.", (*LAYER, "shared"), ("shared_gate", "gate", "gate_proj.weight", "UD"),
          ("shared_up", "up", "up_proj.weight", "UD"), ("shared_down", "down", "down_proj.weight", "DU")),
]  # fmt: skip

TABLES: Mapping[str, list[Row]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite"), LLAMA + MLP),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), GEMMA),
    "olmo2": OLMO2,
    "phi3": PHI3,
    "gpt_oss": GPT_OSS,
    "mixtral": LLAMA + experts("block_sparse_moe", "gate", "w1", "w3", "w2"),
    "qwen3_moe": LLAMA + MLP + experts("mlp", "gate", "gate_proj", "up_proj", "down_proj"),
    "deepseek_v3": DEEPSEEK,
    "gpt2": GPT2,
}


def rows_of(family: str, model: Blueprint) -> dict[str, Row]:
    """The family's row for each weight of a model; ValueError for a weight that its files have no place for."""
    known = {row.weight: row for row in TABLES[family]}
    if missing := [w.name for w in model.weights if w.name not in known]:
        raise ValueError(f"files of {family} have no place for {', '.join(missing)}")
    return {w.name: known[w.name] for w in model.weights}


def paths(row: Row, model: Blueprint) -> dict[tuple[str, ...], Sequence[int]]:
    """Where a weight is among the parameters, and which layers are there: dense layers beside others are a stack."""
    weight, dense = model.weight(row.weight), model.kinds.get(DENSE, ())
    if not weight.stacked or not dense:
        return {row.path: range(model.num_layers if weight.stacked else 0)}
    stacks = {DENSE: ((DENSE_LAYERS, *row.path[1:]), dense), EXPERTS: (row.path, model.kinds[EXPERTS])}
    return dict(stacks[kind] for kind in ([weight.only] if weight.only else stacks))


def found_at(row: Row, place: tuple[int, ...], model: Blueprint) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The parameter that has a weight of this layer (and expert), and where in it."""
    if not place:
        return row.path, place
    path, layers = next((path, layers) for path, layers in paths(row, model).items() if place[0] in layers)
    return path, (layers.index(place[0]), *place[1:])


def sizes(row: Row, model: Blueprint) -> dict[str, int]:
    """Letter -> its size in the files: without the padding of a table."""
    letters = {c for parts in row.dims for part in parts for c in part}
    return {c: model.dims[c].size - model.padding.get(c, 0) for c in letters}


def shape(row: Row, model: Blueprint) -> tuple[int, ...]:
    """Of the tensor in the files."""
    return tuple(sum(parts) for parts in parts_of(row, model))


def parts_of(row: Row, model: Blueprint) -> list[list[int]]:
    """For each of the tensor's dims how much of it each weight has."""
    size = sizes(row, model)
    return [[math.prod(size[c] for c in part) for part in parts] for parts in row.dims]


def counted_experts(row: Row, model: Blueprint) -> str:
    """The letter of the experts, where each has a tensor of its own; else nothing."""
    letters = model.weight(row.weight).letters
    return model.routed.experts if model.routed and model.routed.experts in set(letters) - set(row.flat) else ""


def own_letters(row: Row, model: Blueprint) -> str:
    """Letters of what one tensor holds: of one layer, and of one expert where each has its own."""
    return "".join(c for c in model.weight(row.weight).letters if c != counted_experts(row, model))


def opened(tensor: np.ndarray, row: Row, model: Blueprint, *, experts: int | None = None) -> np.ndarray:
    """A tensor of the files as our weight of one layer and expert: a view.

    Args:
        experts: how many of them are there, of a tensor that has all; None: all.
    """
    size, wanted, letters = sizes(row, model), own_letters(row, model), row.flat
    if model.routed and experts is not None:
        size[model.routed.experts] = experts
    if (dim := row.shared) is not None:
        parts = parts_of(row, model)[dim]
        start = sum(parts[: row.part])
        span = slice(row.part, None, len(parts)) if row.in_turns else slice(start, start + parts[row.part])
        tensor = tensor[(slice(None),) * dim + (span,)]
    return tensor.reshape([size[c] for c in letters]).transpose([letters.index(c) for c in wanted])


def closed(parts: list[tuple[Row, np.ndarray]], model: Blueprint) -> np.ndarray:
    """The tensor of one row's weight, or of all weights that share it in their order; without padding."""
    cut = []
    for row, array in parts:
        size, letters = sizes(row, model), own_letters(row, model)
        unpadded = array[tuple(slice(size[c]) for c in letters)].transpose([letters.index(c) for c in row.flat])
        dims = [each[row.part if len(each) > 1 else 0] for each in parts_of(row, model)]
        cut.append(unpadded.reshape(dims))
    shared = parts[0][0].shared
    if shared is not None and parts[0][0].in_turns:
        return np.stack(cut, shared + 1).reshape(shape(parts[0][0], model))
    return np.ascontiguousarray(cut[0] if shared is None else np.concatenate(cut, shared))
