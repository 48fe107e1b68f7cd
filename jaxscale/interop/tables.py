"""Which tensor of a family's files holds which weight of ours: one row each, for reading and for writing.

Letters are the model's own (`blueprint.decoder`). A file's dim may hold several of ours, in brackets: `(NH)D` is a
matrix [N H, D]. `%` counts the parts of a file's dim that holds several weights one after the other.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxscale.blueprint.table import Blueprint, Weight

PART = "%"


@dataclass(frozen=True)
class Row:
    """One weight of ours in the files.

    Attributes:
        weight: its name in the model's table; `path`: where it is among the parameters.
        file: its tensor's name; the first {} is the layer, the second the expert.
        letters: of the tensor's dims.
        part, parts: which part of a tensor that holds several weights.
    """

    weight: str
    path: tuple[str, ...]
    file: str
    letters: str
    part: int = 0
    parts: int = 1

    @property
    def groups(self) -> list[str]:
        """Our letters in each of the tensor's dims."""
        return [group.strip("()") for group in re.findall(r"\([^)]*\)|[^()]", self.letters)]

    @property
    def flat(self) -> str:
        return "".join(self.groups)


def rows(prefix: str, at: tuple[str, ...], *found: tuple[str, str, str, str]) -> list[Row]:
    """Rows of (weight, path below `at`, file below `prefix`, letters)."""
    return [Row(weight, (*at, *path.split(".")), f"{prefix}{file}", letters) for weight, path, file, letters in found]


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


def thirds(weight: str, part: int, dims: str) -> list[Row]:
    """q, k or v of GPT-2, which lie in one matrix."""
    matrix = Row(
        weight, (*LAYER, "attention", weight), "transformer.h.{}.attn.c_attn.weight", f"D({PART}{dims})", part, 3
    )
    name = f"{weight}_bias"
    return [
        matrix,
        Row(name, (*LAYER, "attention", name), "transformer.h.{}.attn.c_attn.bias", f"({PART}{dims})", part, 3),
    ]


def norms(ours: str, at: tuple[str, ...], file: str) -> list[Row]:
    return rows("transformer.", at, (f"{ours}_scale", f"{ours}.scale", f"{file}.weight", "1"),
                (f"{ours}_bias", f"{ours}.bias", f"{file}.bias", "1"))  # fmt: skip


GPT2 = [
    *rows("transformer.", (), ("embedding", "embedding", "wte.weight", "VD"),
          ("position", "position_embedding", "wpe.weight", "PD")),
    *norms("attention_norm", LAYER, "h.{}.ln_1"),
    *norms("mlp_norm", LAYER, "h.{}.ln_2"),
    *norms("final_norm", (), "ln_f"),
    *thirds("q", 0, "NH"), *thirds("k", 1, "KH"), *thirds("v", 2, "KH"),
    *rows("transformer.h.{}.attn.c_proj.", (*LAYER, "attention"), ("out", "out", "weight", "(NH)D"),
          ("out_bias", "out_bias", "bias", "1")),
    *rows("transformer.h.{}.mlp.", (*LAYER, "mlp"),
          ("up", "up", "c_fc.weight", "DF"), ("up_bias", "up_bias", "c_fc.bias", "F"),
          ("down", "down", "c_proj.weight", "FD"), ("down_bias", "down_bias", "c_proj.bias", "1")),
]  # fmt: skip

TABLES: Mapping[str, list[Row]] = {
    "llama": LLAMA + MLP,
    "mistral": LLAMA + MLP,
    "qwen3": LLAMA + MLP,
    "mixtral": LLAMA + experts("block_sparse_moe", "gate", "w1", "w3", "w2"),
    "qwen3_moe": LLAMA + experts("mlp", "gate", "gate_proj", "up_proj", "down_proj"),
    "gpt2": GPT2,
}


def rows_of(family: str, model: Blueprint) -> dict[str, Row]:
    """The family's row for each weight of a model; ValueError for a weight that its files have no place for."""
    known = {row.weight: row for row in TABLES[family]}
    if missing := [w.name for w in model.weights if w.name not in known]:
        raise ValueError(f"files of {family} have no place for {', '.join(missing)}")
    return {w.name: known[w.name] for w in model.weights}


def sizes(row: Row, model: Blueprint) -> dict[str, int]:
    """Letter -> its size in the files: without the padding of a table."""
    found = {c: model.dims[c].size - model.padding.get(c, 0) for c in row.flat if c != PART}
    return found | {PART: row.parts}


def shape(row: Row, model: Blueprint) -> tuple[int, ...]:
    """Of the tensor in the files."""
    size = sizes(row, model)
    return tuple(math.prod(size[c] for c in group) for group in row.groups)


def own_letters(weight: Weight, model: Blueprint) -> str:
    """Letters of what one tensor holds: of one layer, and of one expert."""
    return "".join(c for c in weight.letters if model.routed is None or c != model.routed.experts)


def opened(tensor: np.ndarray, row: Row, model: Blueprint) -> np.ndarray:
    """A tensor of the files as our weight of one layer and expert: a view."""
    size, wanted = sizes(row, model), own_letters(model.weight(row.weight), model)
    array = tensor.reshape([size[c] for c in row.flat])
    letters = row.flat
    if PART in letters:
        array, letters = np.take(array, row.part, letters.index(PART)), letters.replace(PART, "")
    return array.transpose([letters.index(c) for c in wanted])


def closed(arrays: list[np.ndarray], row: Row, model: Blueprint) -> np.ndarray:
    """The tensor of one row's weight, or of all parts' weights in their order; without padding."""
    letters = own_letters(model.weight(row.weight), model)
    size, flat = sizes(row, model), row.flat.replace(PART, "")
    cut = [a[tuple(slice(size[c]) for c in letters)].transpose([letters.index(c) for c in flat]) for a in arrays]
    whole = np.stack(cut, row.flat.index(PART)) if PART in row.flat else cut[0]
    return np.ascontiguousarray(whole.reshape(shape(row, model)))
