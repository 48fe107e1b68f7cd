"""Whether a checkpoint is of this model and optimizer, told by its metadata before an array is read."""

import hashlib
import json
from typing import Any

import jax

from jaxscale import config as cfg


def digest(meta: dict) -> str:
    """Of the JSON without its own entry."""
    rest = {k: v for k, v in meta.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def shapes(state: Any) -> dict[str, str]:
    """Path -> `float32[8,16]` of every array of a state."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(p, simple=True, separator="."): f"{x.dtype}{list(x.shape)}" for p, x in leaves}


def require_same_state(meta: dict, abstract: Any, config: cfg.Config, *, where: str) -> None:
    """ValueError when the checkpoint's arrays are not those of this config's model and optimizer."""
    saved, wanted = meta["state"], shapes(abstract)
    differences = config_differences(meta["config"], config.model_dump(mode="json"))
    differences = [d for d in differences if not d.startswith("optimizer.ema:")]  # see `training.optional`
    if saved == wanted and not any(d.startswith("model.") for d in differences):
        return
    if not differences:  # a model of one's own: the arrays say what differs
        names = [k for k in sorted(saved | wanted) if saved.get(k) != wanted.get(k)]
        differences = [f"{k}: {saved.get(k, 'absent')} -> {wanted.get(k, 'absent')}" for k in names]
    more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
    raise ValueError(
        f"the checkpoint {where} is of another model or optimizer: {'; '.join(differences[:4])}{more} "
        "(checkpoint -> config); use its config, or another out="
    )


# what decides the arrays of a state, and what they mean; of model, whose keys nearly all do, those that do not
NOT_IN_STATE = ("name", "family", "init_std", "max_seq_len")  # learned positions have max_seq_len in their shape
STATE_KEYS = {"optimizer": ("name", "ema"), "step": ("param_dtype",)}


def config_differences(saved: dict, wanted: dict) -> list[str]:
    """Settings that shape the state and differ, as `model.num_layers: 4 -> 6`."""
    keys = {"model": tuple(k for k in wanted["model"] if k not in NOT_IN_STATE), **STATE_KEYS}
    return [
        f"{section}.{key}: {json.dumps(old)} -> {json.dumps(new)}"
        for section, names in keys.items()
        for key in names
        if (old := saved.get(section, {}).get(key, default(section, key))) != (new := wanted[section][key])
    ]


def default(section: str, key: str) -> Any:
    """What a checkpoint means that was written before this setting existed."""
    return cfg.default_of(getattr(cfg, section.capitalize()), key)
