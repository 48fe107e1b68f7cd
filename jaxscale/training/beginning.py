"""Which parameters a run began from, kept with it: a reference must stay the same, also when its own run goes on."""

import json
from pathlib import Path
from typing import Any

import jax

from jaxscale import config as cfg
from jaxscale.checkpoint.stored import Stored
from jaxscale.config import PUBLISHED
from jaxscale.files.whole import write_whole

NAME = "beginning.json"
About = dict[str, Any]


def beginning_of(config: cfg.Config, *, resumed: bool) -> tuple[cfg.Config, About]:
    """The config with the step of `init.from` that is meant, and what tells these parameters from others.

    Args:
        resumed: the run has a checkpoint: then what it keeps is what it began from, whatever has become of that.

    Raises:
        ValueError: there is no such model.
    """
    source = config.init.source
    if source is None or not config.objective.reads_reference:
        return config, {}
    about = kept(config) if resumed else None
    about = about or look(config, source)
    if (step := about.get("step")) is not None:
        config = config.model_copy(update={"init": config.init.model_copy(update={"step": step})})
    return config, about


def kept(config: cfg.Config) -> About | None:
    """What a run keeps of what it began from; None where that is not what the config names."""
    try:
        about = json.loads((config.out_dir / NAME).read_text())
        same = about["from"] == config.init.source and about.get("adapter") == config.init.adapter_directory
        step = about.get("step")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return about if same and config.init.at in (None, step) else None


def look(config: cfg.Config, source: str) -> About:
    """What tells the parameters that `init` names now."""
    about: About = {"from": source, "adapter": config.init.adapter_directory}
    if source.startswith(PUBLISHED):
        files = sorted(Path(source.removeprefix(PUBLISHED)).expanduser().glob("*.safetensors"))
        return about | {"files": [[f.name, f.stat().st_size] for f in files]}
    stored = Stored(source, config.init.at)
    return about | {"step": stored.step, "checkpoint": stored.identity}


def keep(config: cfg.Config, about: About) -> None:
    """Write it, by process 0."""
    if about and jax.process_index() == 0:
        write_whole(config.out_dir / NAME, json.dumps(about) + "\n")
