"""A published config.json as a model of ours, field by field, and back.

What changes the function and cannot be expressed is refused by its name. Both spellings of rotary positions are read;
the older one is written, which every reader knows and which wins where both are there.
"""

from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jaxscale.config.errors import describe, in_one
from jaxscale.config.families import ABOUT, FAMILIES, FULL, KINDS, ROPE, SLIDING, Family, Values, above_first, family_of
from jaxscale.config.model import LayerKind, Model
from jaxscale.files.reading import read_json_table

SECTIONS = ("moe", "latent")  # of a model, whose keys begin with their names
ELSEWHERE = "says nothing of the model"
STRETCHED = {"factor": "factor", "low_freq_factor": "low_frequency_factor", "high_freq_factor": "high_frequency_factor",
             "original_max_position_embeddings": "original_max_len"}  # fmt: skip


YARN = {"factor": "factor", "original_max_position_embeddings": "original_max_len", "beta_fast": "beta_fast",
        "beta_slow": "beta_slow", "truncate": "truncate", "attention_factor": "attention_factor"}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A model that was read: its family, ours, and a line for each field: its key, its value, and what it became."""

    family: str
    model: Model
    fields: tuple[tuple[str, Any, str], ...]


def read(directory: Path) -> Published:
    """The model of a directory's config.json. Raises ValueError for what cannot be expressed, by its name."""
    path = directory / "config.json"
    values = read_json_table(path)
    kind = values.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"{path}: model_type {kind} is not known; there are {', '.join(FAMILIES)}")
    try:
        return as_ours(kind, values, name=directory.resolve().name)
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def as_ours(kind: str, values: Values, *, name: str) -> Published:
    """The model of a config.json's values."""
    family = FAMILIES[kind]
    lines: list[tuple[str, Any, str]] = []
    if family.inside:
        inner = values.get(family.inside)
        if not isinstance(inner, dict):
            raise ValueError(f"{family.inside} is not there, which says what its decoder is")
        lines = [
            (key, "...", "left out: only the decoder is read") for key in values if key not in (family.inside, *ABOUT)
        ]
        values = {k: v for k, v in values.items() if k == "tie_word_embeddings"} | inner
    absent = {k: v for k, v in family.defaults.items() if k not in values}
    if "rope_parameters" in values:  # it says theta, wherever that is
        absent = {k: v for k, v in absent.items() if k not in ROPE}
    given = absent | values
    model_values = translated(family, given, lines)
    model_values["name"] = name
    for key, value in family.derived(given).items():
        put(model_values, key, value)
    if family.rotary:
        model_values |= settled(layers_of(family, given, model_values))
        lines.append(("rope", {k: given[k] for k in ROPE if k in given}, "model.rope_theta, model.rope_scaling"))
        lines += [(k, shown(given[k]), "model.sliding_window, model.pattern") for k in KINDS if k in given]
    model_values.setdefault("mlp_dim", 4 * model_values.get("embed_dim", 0))
    if "moe" in model_values:
        model_values["moe"].setdefault("mlp_dim", model_values["mlp_dim"])
    model = model_of(model_values)
    if family_of(model) != kind and not family.inside:
        model = model_of(model_values | {"family": kind})
    return Published(kind, model, tuple(lines))


def put(values: Values, ours: str, value: Any) -> None:
    """A value at its key, in its section."""
    section, _, key = ours.rpartition(".")
    place = values.setdefault(section, {}) if section else values
    if place.get(key, value) != value:
        raise ValueError(f"{ours}={value}, and another key says {place[key]}")
    place[key] = value


def translated(family: Family, given: Values, lines: list[tuple[str, Any, str]]) -> Values:
    """Our values that have a key of their own; `lines` takes one for each key."""
    values: Values = {}
    for ours, value in family.fixed.items():
        put(values, ours, value)
    for key, value in given.items():
        if key in family.fields:
            if value is None:
                lines.append((key, value, "not used"))
                continue
            put(values, family.fields[key], value)
            lines.append((key, value, f"model.{family.fields[key]}"))
        elif (
            key == "quantization_config" and family.quantised and (value or {}).get("quant_method") == family.quantised
        ):
            require_blocks(value)
            lines.append((key, family.quantised, "not kept: weights are numbers here, and exported so"))
        elif key in family.only:
            if value is not None and value != family.only[key]:
                raise ValueError(f"{key}={value} changes the model, and only {family.only[key]} can be expressed")
            lines.append((key, value, "as here"))
        elif key not in (*ROPE, *KINDS) or not family.rotary:
            if key not in ABOUT and key not in family.ignored:
                raise ValueError(f"{key}={value} is not known, and may change the model")
            lines.append((key, value, "model, with other keys" if key in family.ignored else ELSEWHERE))
    return values


def require_blocks(quantisation: Values) -> None:
    """FP8 has a scale for each block of 128 x 128, and numbers of 4 bits of exponent."""
    for key, wanted in (("weight_block_size", [128, 128]), ("fmt", "e4m3")):
        if quantisation.get(key, wanted) != wanted:
            raise ValueError(f"quantization_config.{key}={quantisation[key]}: only {wanted} is read")


def shown(value: Any) -> Any:
    return "..." if isinstance(value, list) else value


def model_of(values: Values) -> Model:
    """Checked as any config is."""
    try:
        return Model.model_validate(values)
    except ValidationError as error:
        raise ValueError(in_one([describe(e, Model) for e in error.errors()])) from None


# --- layers ---------------------------------------------------------------------------------------------------


def layers_of(family: Family, given: Values, model_values: Values) -> list[Values]:
    """What each layer has of its own: its window and its rotary positions."""
    number, window = model_values.get("num_layers", 0), given.get("sliding_window")
    if given.get("use_sliding_window") is False:
        window = None
    types = given.get("layer_types") or (family.types(given, number) if family.types else [SLIDING] * number)
    roped = given.get("no_rope_layers") or rope_by_interval(given.get("no_rope_layer_interval"), number)
    if len(types) != number or len(roped) != number:
        raise ValueError(f"layer_types or no_rope_layers are of {len(types)} and {len(roped)} layers, not {number}")
    if other := sorted(set(types) - {FULL, SLIDING}):
        raise ValueError(f"layer_types={other}: layers of this kind cannot be expressed")
    positions = {kind: positions_of(given, kind) for kind in dict.fromkeys(types)}
    layers: list[Values] = [
        {"sliding_window": window if kind == SLIDING else None, "rope": bool(rope), **positions[kind]}
        for kind, rope in zip(types, roped, strict=True)
    ]
    return layers if family.sparse is None else with_experts(layers, family.sparse(given, number), model_values)


def with_experts(layers: list[Values], sparse: list[bool], model_values: Values) -> list[Values]:
    """The layers, where some have experts; where all but the first ones have, `moe.dense_layers` says so."""
    first = sparse.index(True) if any(sparse) else 0
    if not all(sparse[first:]):
        return [layer | {"experts": experts} for layer, experts in zip(layers, sparse, strict=True)]
    put(model_values, "moe.dense_layers", first)
    return layers


def rope_by_interval(interval: int | None, layers: int) -> list[bool]:
    return [interval is None or (i + 1) % interval != 0 for i in range(layers)]


def settled(layers: list[Values]) -> Values:
    """Our values of layers that are alike; or a pattern, with the values of the period's last layer as the model's."""
    if not layers:
        return {}
    period = next(p for p in range(1, len(layers) + 1) if all(one == layers[i % p] for i, one in enumerate(layers)))
    kinds = layers[:period]
    rest = {k: v for k, v in kinds[-1].items() if k not in ("rope", "experts")}
    if period == 1:
        return rest | {"position": "rope" if kinds[0]["rope"] else "none"}
    pattern: list[Values] = []
    for kind in kinds:
        if pattern and pattern[-1] == kind | {"layers": pattern[-1]["layers"]}:
            pattern[-1]["layers"] += 1
        else:
            pattern.append(kind | {"layers": 1})
    return rest | {"sliding_window": None, "pattern": pattern}


def positions_of(given: Values, layer_type: str) -> Values:
    """Rotary positions of a type of layers, in the older spelling where it is there, or in the newer one."""
    newer = given.get("rope_parameters") or {}
    if any(isinstance(v, dict) for v in newer.values()):
        newer = newer.get(layer_type) or {}
    scaling = given.get("rope_scaling") or {k: v for k, v in newer.items() if k != "rope_theta"}
    theta = given.get("rope_theta", newer.get("rope_theta", 10_000.0))
    if layer_type == SLIDING and given.get("rope_local_base_freq"):  # the rest is of layers that see all tokens
        theta, scaling = given["rope_local_base_freq"], {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    unused = set(scaling) - {"rope_type", "type"}
    if kind == "default" and scaling.get("partial_rotary_factor", 1.0) == 1.0:
        return {"rope_theta": float(theta), "rope_scaling": None}
    if kind == "linear" and unused == {"factor"}:
        return {"rope_theta": float(theta), "rope_scaling": {"kind": "linear", "factor": scaling["factor"]}}
    if kind == "yarn" and not unused - set(YARN) - {"mscale", "mscale_all_dim"}:
        yarn = {ours: scaling[theirs] for theirs, ours in YARN.items() if scaling.get(theirs) is not None}
        yarn.setdefault("original_max_len", given.get("max_position_embeddings"))
        if "mscale" in scaling and "mscale_all_dim" in scaling:
            wanted, all_dims = (1 + 0.1 * scaling[m] * log(scaling["factor"]) for m in ("mscale", "mscale_all_dim"))
            yarn.setdefault("attention_factor", wanted / all_dims)
        return {"rope_theta": float(theta), "rope_scaling": {"kind": "yarn"} | yarn}
    if kind != "llama3" or unused - set(STRETCHED):
        raise ValueError(f"rope_scaling={scaling}: of these only llama3, linear and yarn can be expressed")
    return {
        "rope_theta": float(theta),
        "rope_scaling": {ours: scaling[theirs] for theirs, ours in STRETCHED.items() if theirs in scaling},
    }


# --- back -----------------------------------------------------------------------------------------------------


def as_theirs(model: Model, *, dtype: str, separator: int | None) -> Values:
    """The config.json of a model; ValueError names the fields that its family cannot express."""
    kind = family_of(model)
    family = FAMILIES[kind]
    dumped = model.model_dump(mode="json")
    dumped |= {f"{section}.{k}": v for section in SECTIONS for k, v in (dumped.get(section) or {}).items()}
    values: Values = {"architectures": [family.architecture], "model_type": kind, "torch_dtype": dtype}
    back = family.back(model)
    of_rope = back.pop("rope_scaling", {})
    values |= {
        key: dumped[ours] for key, ours in family.fields.items() if key != "num_local_experts" or kind != "qwen3_moe"
    }
    values |= {key: value for key, value in family.only.items() if value is not None and key != "partial_rotary_factor"}
    values |= {"bos_token_id": separator, "eos_token_id": separator, "pad_token_id": None}
    values |= back
    if model.moe and "intermediate_size" in family.fields and "moe_intermediate_size" not in family.fields:
        values["intermediate_size"] = dumped["moe.mlp_dim"]
    if family.rotary:
        values |= layers_back(family, model)
        if of_rope:
            values["rope_scaling"] = values["rope_scaling"] | of_rope
    again = as_ours(kind, values, name=model.name).model
    same = {"name", "vocab_multiple", "family"} | ({"mlp_dim"} if model.moe and not model.dense_layers else set())
    lost = [k for k, v in comparable(again).items() if k not in same and v != comparable(model)[k]]
    if lost:
        text = ", ".join(f"model.{k}={getattr(model, k)}" for k in lost)
        raise ValueError(f"{text}: a config.json of {kind}, the nearest family, cannot express it")
    return values


def comparable(model: Model) -> Values:
    """A model's values, layers by what they are and not by how a config says it."""
    values = model.model_dump(exclude={"pattern", "sliding_window", "rope_theta", "rope_scaling", "position"})
    if model.attention_multiplier is None:
        values["attention_multiplier"] = model.head_size**-0.5
    values["pattern"] = [k if k.rope else k.model_copy(update=NO_ROPE) for k in model.layer_kinds]
    if model.moe:
        del values["moe"]["dense_layers"]  # the pattern says it
    return values | {"position": "learned" if model.position == "learned" else "rope"}


NO_ROPE = {"rope_theta": 1.0, "rope_scaling": None}  # whatever they are, nothing reads them


def layers_back(family: Family, model: Model) -> Values:
    """The keys that say what each layer has of its own; those of all layers where they are alike."""
    kinds, layers = model.kinds, model.layer_kinds
    windows = {k.sliding_window for k in layers if k.sliding_window}
    whole = next((k for k in reversed(kinds) if k.sliding_window is None and k.rope), kinds[-1])
    values: Values = {"rope_theta": whole.rope_theta, "rope_scaling": scaling_of(whole)}
    if windows or family.defaults.get("sliding_window"):  # elsewhere a reader may know no such key
        values["sliding_window"] = max(windows, default=None)
    if family.types:
        values["layer_types"] = [FULL if k.sliding_window is None else SLIDING for k in layers]
    if family.sparse:
        dense = [i for i, k in enumerate(layers) if not k.experts]
        values |= {"decoder_sparse_step": 1, "mlp_only_layers": dense}
    if "use_sliding_window" in family.defaults:
        values["use_sliding_window"] = bool(windows)
    if family.types is above_first:
        values |= {"use_sliding_window": bool(windows), "max_window_layers": values["layer_types"].count(FULL)}
    if "rope_local_base_freq" in family.defaults:
        local = next((k for k in kinds if k.sliding_window), whole)
        values["rope_local_base_freq"] = local.rope_theta
    if "no_rope_layer_interval" in family.defaults:
        values |= {"no_rope_layers": [int(k.rope) for k in layers], "use_sliding_window": False}
    return values


def scaling_of(kind: LayerKind) -> Values | None:
    if (rope := kind.rope_scaling) is None:
        return None
    if rope.kind == "linear":
        return {"rope_type": "linear", "factor": rope.factor}
    if rope.kind == "yarn":
        scaling = {theirs: getattr(rope, ours) for theirs, ours in YARN.items()}
        return {"rope_type": "yarn"} | {key: value for key, value in scaling.items() if value is not None}
    return {"rope_type": "llama3"} | {theirs: getattr(rope, ours) for theirs, ours in STRETCHED.items()}
