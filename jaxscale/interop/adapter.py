"""LoRA's matrices in PEFT's format (https://github.com/huggingface/peft), read and written. No jax.

A directory holds `adapter_config.json` and `adapter_model.safetensors`. Of a module's weight [out, in] there are
`lora_A.weight` [rank, in] and `lora_B.weight` [out, rank]; their product times lora_alpha / r is added to it.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale import config as cfg
from jaxscale.blueprint.decoder import decoder
from jaxscale.blueprint.lora import a_and_b, sides
from jaxscale.files.reading import read_json_table
from jaxscale.interop.quantised import Tensor, joined
from jaxscale.interop.tables import Row, rows_of
from jaxscale.interop.tensors import places

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
BEFORE = "base_model.model."  # each name of the base
# What PEFT's config may say beside r, lora_alpha and target_modules without changing what the matrices mean
FIXED: dict[str, Any] = {
    "peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "use_rslora": False, "use_dora": False,
    "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "layers_to_transform": None,
    "layers_pattern": None, "layer_replication": None, "exclude_modules": None, "trainable_token_indices": None,
    "target_parameters": None, "megatron_config": None, "use_qalora": False, "lora_bias": False,
}  # fmt: skip
Read = Callable[[tuple[str, ...], int], np.ndarray]  # a parameter's path and a layer -> it there
Path_ = tuple[str, ...]


def base_of(model: cfg.Model) -> cfg.Model:
    """The model without LoRA and a reward model's vector, as its files hold it."""
    return model.model_copy(update={"lora": None, "score": False})


def matrix_rows(family: str, model: cfg.Model) -> dict[str, Row]:
    """The family's row of each matrix that has LoRA's; ValueError for a family that PEFT's modules do not fit."""
    if family == "gpt2":
        raise ValueError("an adapter of gpt2 would be for q, k and v together, in one matrix; export without --adapter")
    rows = rows_of(family, decoder(base_of(model)))
    assert model.lora
    return {name: rows[name] for name in model.lora.on}


def pair_paths(row: Row) -> tuple[Path_, Path_]:
    """Where A and B are among the parameters."""
    *above, name = row.path
    return (*above, "lora", f"{name}_a"), (*above, "lora", f"{name}_b")


def module(row: Row) -> str:
    """Name of the module in the files, with a place for the layer."""
    return row.file.removesuffix(".weight")


def names(row: Row, layer: int) -> tuple[str, str]:
    """Of A and B of a layer in PEFT's file."""
    of = f"{BEFORE}{module(row).format(layer)}"
    return f"{of}.lora_A.weight", f"{of}.lora_B.weight"


def merged(row: Row, weight: np.ndarray, a: np.ndarray, b: np.ndarray, model: cfg.Model) -> np.ndarray:
    """w + alpha/rank A B of one layer, in float32, in the shape of our weight."""
    assert model.lora
    rank = model.lora.rank
    product = a.astype(np.float32).reshape(-1, rank) @ b.astype(np.float32).reshape(rank, -1)
    return weight.astype(np.float32) + np.float32(model.lora.factor) * product.reshape(weight.shape)


# --- writing --------------------------------------------------------------------------------------------------


def config_values(rows: dict[str, Row], model: cfg.Model, base: str | None) -> dict[str, Any]:
    """adapter_config.json."""
    assert model.lora
    fixed = {k: v for k, v in FIXED.items() if k not in ("peft_type", "target_parameters", "use_qalora", "lora_bias")}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": model.lora.rank,
        "lora_alpha": model.lora.alpha,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
        "target_modules": sorted(module(row).rsplit(".", 1)[-1] for row in rows.values()),
        **{k: v for k, v in fixed.items() if v is not None},
    }


def tensor_shapes(rows: dict[str, Row], model: cfg.Model) -> dict[str, tuple[int, ...]]:
    """Name -> shape, in the order in which `arrays` gives them."""
    assert model.lora
    table, shapes = decoder(model), dict[str, tuple[int, ...]]()
    for layer, (name, row) in itertools.product(range(model.num_layers), rows.items()):
        before, after = sides(table.op(name), table.weight(name).letters)
        width, height = (math.prod(table.dims[c].size for c in letters) for letters in (before, after))
        a, b = names(row, layer)
        shapes |= {a: (model.lora.rank, width), b: (height, model.lora.rank)}
    return shapes


def arrays(rows: dict[str, Row], model: cfg.Model, read: Read) -> Iterator[np.ndarray]:
    """A and B of every matrix and layer as PEFT has them, float32."""
    assert model.lora
    rank = model.lora.rank
    for layer, row in itertools.product(range(model.num_layers), rows.values()):
        a, b = (read(path, layer).astype(np.float32) for path in pair_paths(row))
        yield np.ascontiguousarray(a.reshape(-1, rank).T)
        yield np.ascontiguousarray(b.reshape(rank, -1).T)


# --- reading --------------------------------------------------------------------------------------------------


class Adapter:
    """A directory of PEFT's for a model. Checked when it is made: rank, alpha, matrices, names and shapes."""

    def __init__(self, directory: Path, family: str, model: cfg.Model):
        assert model.lora
        self.model, rows = model, matrix_rows(family, model)
        require_same_adapter(directory, rows, model.lora)
        self.tensors: dict[str, Tensor] = joined(places(directory / TENSORS))
        wanted = tensor_shapes(rows, model)
        if missing := sorted(set(wanted) - set(self.tensors)):
            raise ValueError(f"{directory} lacks {missing[0]} ({len(missing)} of {len(wanted)} tensors are missing)")
        if extra := set(self.tensors) - set(wanted):
            raise ValueError(f"{directory} has {min(extra)}, which model.lora.on has not ({len(extra)} such tensors)")
        for name, shape in wanted.items():
            if (there := self.tensors[name].shape) != shape:
                raise ValueError(f"{directory}: {name} is {list(there)}, and the model asks for {list(shape)}")
        self.rows = {path: (row, side) for row in rows.values() for side, path in enumerate(pair_paths(row))}
        self.weights = {path: a_and_b(row.weight)[side] for path, (row, side) in self.rows.items()}

    def has(self, path: Path_) -> bool:
        return path in self.rows

    def block(self, path: Path_, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
        """A block of A or B of all layers, as the model has them."""
        (row, side), table = self.rows[path], decoder(self.model)
        shape = table.shape(table.weight(self.weights[path]))
        layers = range(*index[0].indices(shape[0]))
        each = [self.tensors[names(row, i)[side]].read().T.reshape(shape[1:])[index[1:]] for i in layers]
        return np.stack(each).astype(dtype)


def require_same_adapter(directory: Path, rows: dict[str, Row], lora: cfg.Lora) -> None:
    """ValueError for an adapter that is not as model.lora says, or means what cannot be expressed."""
    path = directory / CONFIG
    values = read_json_table(path)
    for key, wanted in FIXED.items():
        if (given := values.get(key) or None) != (wanted or None):
            raise ValueError(f"{path}: {key}={given} changes the model, and only {wanted} can be expressed")
    expected = {"r": lora.rank, "lora_alpha": lora.alpha}
    for key, ours in (("r", "rank"), ("lora_alpha", "alpha")):
        if values.get(key) != expected[key]:
            raise ValueError(
                f"{path}: {key}={values.get(key)}, and model.lora.{ours} is {expected[key]:g}; set it alike"
            )
    modules, known = values.get("target_modules"), {module(r).rsplit(".", 1)[-1]: name for name, r in rows.items()}
    if isinstance(modules, list) and {str(m).rsplit(".", 1)[-1] for m in modules} != set(known):
        raise ValueError(f"{path}: target_modules={sorted(map(str, modules))}, and model.lora.on is "
                         f"[{', '.join(known.values())}]; set it alike")  # fmt: skip
