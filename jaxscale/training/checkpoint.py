"""Checkpoints through orbax: saved in the background, restored onto any mesh.

A checkpoint is the TrainState and a JSON beside it: the config, what every array of the state looks like, and which
data the steps so far have read.
"""

import gc
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxscale import config as cfg
from jaxscale.training.step import TrainState

Say = Callable[[str], None]


class Checkpointer:
    """The checkpoints of one run, under `<out>/checkpoints/<step>`; without options, to be read only."""

    def __init__(self, directory: Path, options: cfg.Checkpoint | None = None):
        self.directory = directory.absolute()
        try:
            self.manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=options.keep_last, keep_period=options.keep_every, cleanup_tmp_directories=True
                )
                if options
                else ocp.CheckpointManagerOptions(read_only=True),  # of a run that may be saving just now
            )
        except OSError as error:
            raise ValueError(f"cannot write checkpoints under {directory}: {error.strerror or error}") from error
        except (ValueError, TypeError, RecursionError) as error:  # of a _CHECKPOINT_METADATA, read for its time
            raise ValueError(
                f"checkpoints under {directory} cannot be listed ({reason(error)}); move the damaged one out of it"
            ) from error

    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: TrainState, config: cfg.Config, data: dict[str, Any]) -> float:
        """Start writing; returns the seconds for which the caller was held up (the copy off the devices)."""
        start = time.perf_counter()
        meta = {"config": config.model_dump(mode="json"), "state": shapes(state), "data": data}
        self.manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        )
        return time.perf_counter() - start

    def wait(self) -> None:
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON of a checkpoint; raises whatever reading a damaged one raises."""
        restored = self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        meta = restored["meta"]
        parts = [meta.get(name) for name in ("config", "state", "data")] if isinstance(meta, dict) else [None]
        parts += [parts[0].get(name, {}) for name in ("model", *STATE_KEYS)] if isinstance(parts[0], dict) else []
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("its metadata lacks config, state or data")
        return meta

    def restore_latest(self, abstract: TrainState, config: cfg.Config, *, say: Say) -> tuple[TrainState, dict] | None:
        """The newest whole checkpoint in the layout of `abstract`, and its metadata; None where there is none.

        A damaged one gives way to the one before, and is then set aside under `<out>/checkpoints-damaged`. One of
        another model is a ValueError with the differences, as is a directory with none that can be read.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                meta = reading(self.meta, step)
            except Damaged as error:
                damaged[step] = str(error)
                continue
            require_same_state(meta, abstract, config, where=str(self.directory / str(step)))
            try:
                state = reading(self.restore, step, abstract)
            except Damaged as error:
                damaged[step] = str(error)
                continue
            for bad, cause in damaged.items():
                self.set_aside(bad, cause, say)
            return state, meta
        if damaged:  # nothing is moved: it may be the reading that fails, and not the files
            causes = "; ".join(f"{step}: {cause}" for step, cause in damaged.items())
            raise ValueError(
                f"no checkpoint under {self.directory} can be read ({causes}); choose another out= to start again"
            )
        return None

    def restore(self, step: int, abstract: Any) -> Any:
        return self.manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]

    def set_aside(self, step: int, cause: str, say: Say) -> None:
        target = self.directory.parent / "checkpoints-damaged" / f"{step}-{time.time_ns()}"
        say(f"checkpoint {step} is damaged ({cause}); set aside as {target}, and the one before is used")
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            shutil.move(self.directory / str(step), target)
        self.manager.reload()


class Damaged(Exception):
    """A checkpoint that cannot be read; its text is the cause."""


def reading(read: Callable[..., Any], *arguments: Any) -> Any:
    """read(*arguments); Damaged for whatever orbax, tensorstore or JSON raise where a checkpoint is.

    A failed read leaves half-run coroutines, of whose end Python would print a traceback each: they end here, unheard.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        try:
            return read(*arguments)
        except Exception as error:  # each library has its own ways to say "damaged"
            cause = reason(error)
        time.sleep(0.2)  # for the reads of other arrays that are under way
        gc.collect()
    finally:
        sys.unraisablehook = hook
    raise Damaged(cause)


def reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def shapes(state: Any) -> dict[str, str]:
    """Path -> `float32[8,16]` of every array of a state."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(p, simple=True, separator="."): f"{x.dtype}{list(x.shape)}" for p, x in leaves}


def require_same_state(meta: dict, abstract: Any, config: cfg.Config, *, where: str) -> None:
    """ValueError when the checkpoint's arrays are not those of this config's model and optimizer."""
    saved, wanted = meta["state"], shapes(abstract)
    differences = config_differences(meta["config"], config.model_dump(mode="json"))
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
NOT_IN_STATE = ("name", "init_std", "max_seq_len")  # learned positions have max_seq_len in their shape
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
    field = getattr(cfg, section.capitalize()).model_fields[key]
    return None if field.is_required() else field.get_default()
