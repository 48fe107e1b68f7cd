"""What a resumed run's config changes, by key: how it is said, what it does to the learning rate and to the rows."""

import json
import math
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from jaxscale import config as cfg
from jaxscale.files.redact import shown
from jaxscale.training.optimizer import make_schedule
from jaxscale.training.position import Position

# Keys, and sections, that no number, row or file of the run depends on, so that their changes are not said: where the
# run is, when a run that stands still is ended, how data is read ahead and checked, where compiled programs are kept.
SILENT = (
    "out",
    "watch",
    "checkpoint.directory",
    "checkpoint.resume",
    "data.prefetch",
    "data.verify",
    "runtime.compilation_cache",
)
# what the learning rate of a step is made from
SCHEDULE = (
    "steps",
    "optimizer.learning_rate",
    "optimizer.schedule",
    "optimizer.warmup_steps",
    "optimizer.decay_steps",
    "optimizer.final_fraction",
)
# what decides which row stands where in the order; beside it the data itself
ORDER = ("seed", "data.seq_len", "data.shuffle")


@dataclass(frozen=True)
class Change:
    """A key whose value differs from the checkpoint's."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} {as_typed(self.old)} -> {as_typed(self.new)}"


def told_of_changes(
    meta: dict[str, Any], config: cfg.Config, about: dict[str, Any], step: int, position: Position
) -> list[str]:
    """Lines on what differs from the checkpoint of a step; none where nothing does.

    Args:
        meta: the checkpoint's JSON.
        about: the run's data, as `meta["data"]` has the checkpoint's.
        position: where the run goes on.
    """
    saved = meta["config"]
    changes, lines = config_changes(saved, config), []
    if changes:
        lines.append(f"changed since step {step}: {', '.join(map(str, changes))}")
    if step < config.steps and (rate := rate_change(saved, config, step)):
        lines.append(rate)
    if causes := data_change(meta["data"], about, changes):
        lines.append(f"the data changed since step {step} ({causes}): rows may be read again, or left out")
    elif any(c.key == "data.batch_size" for c in changes):
        read = f"{position.rows_read(step):,} rows that were read"
        lines.append(f"step {step + 1} goes on after the {read}: none is left out or read again")
    return lines


def config_changes(saved: dict[str, Any], config: cfg.Config) -> list[Change]:
    """Every key that differs, in the order of the config; a key that the checkpoint does not know had its default."""
    return [c for c in compare(saved, config) if not any(f"{c.key}.".startswith(f"{s}.") for s in SILENT)]


def compare(saved: Any, section: cfg.Section, prefix: str = "") -> list[Change]:
    saved = saved if isinstance(saved, dict) else {}
    values, changes = section.model_dump(mode="json"), []
    for name in type(section).model_fields:
        key, inner = f"{prefix}{name}", getattr(section, name)
        old = saved.get(name, cfg.default_of(type(section), name))
        if isinstance(inner, cfg.Section) and isinstance(old, dict):
            changes += compare(old, inner, f"{key}.")
        elif old != values[name]:
            changes.append(Change(key, old, values[name]))
    return changes


def as_typed(value: Any) -> str:
    """As a config file has it."""
    return value if isinstance(value, str) and value.isprintable() and value else shown_json(value)


def shown_json(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:96]} ..."


def rate_change(saved: dict[str, Any], config: cfg.Config, step: int) -> str:
    """What the learning rate of the step after this one becomes by the changed schedule; "" where it stays."""
    causes = [c for c in compare(saved, config) if c.key in SCHEDULE]
    old, new = saved_rate(saved, step), float(make_schedule(config.optimizer, steps=config.steps)(step))
    if not causes or old is None or math.isclose(old, new, rel_tol=1e-6):
        return ""
    return f"learning rate at step {step + 1}: {old:.4g} -> {new:.4g}, as {', '.join(map(str, causes))}"


def saved_rate(saved: dict[str, Any], step: int) -> float | None:
    """By the checkpoint's own config; None where that is of another version, and cannot be read as one of this."""
    known = {k: v for k, v in saved.get("optimizer", {}).items() if k in cfg.Optimizer.model_fields}
    try:
        steps = int(saved["steps"])
        return float(make_schedule(cfg.Optimizer.model_validate(known), steps=steps)(step))
    except (ValidationError, ValueError, KeyError, TypeError):
        return None


def data_change(saved: dict[str, Any], about: dict[str, Any], changes: list[Change]) -> str:
    """Why the rows that were read are not the first ones of the order any more; "" where they are.

    Args:
        saved, about: `data` of the checkpoint and of the run, with `content` (a hash of the tokens), `rows` and the
            tokenizer's `fingerprint`; an older checkpoint lacks some.
    """
    causes = [str(c) for c in changes if c.key in ORDER]
    names = {"content": "other tokens", "rows": "rows", "fingerprint": "another tokenizer"}
    differing = [k for k in names if k in saved and saved[k] != about[k]]
    if "rows" in differing and ("content" in differing or not causes):  # else they are only cut in another way
        causes.append(f"rows {shown(saved['rows'])} -> {about['rows']}")
    causes = [names[k] for k in ("fingerprint", "content") if k in differing] + causes
    return ", ".join(causes)
