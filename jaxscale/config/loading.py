"""From YAML files and dotted overrides to a config; what is wrong is one line."""

import copy
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from jaxscale.config.errors import describe, in_one
from jaxscale.config.files import find_config, is_of_a_run, read_yaml, renamed, where_it_is_now, with_model
from jaxscale.config.overrides import WHERE, apply_override
from jaxscale.config.published import read as read_published
from jaxscale.config.sections import Config


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a run file (or a bare model file, for `show`) and apply `section.key=value` overrides.

    A run's directory stands for its config.yaml, with `out` where the directory is now; an earlier version may have
    written it.
    Raises ValueError with one line for an unreadable file, an unknown key, a wrong type or a broken rule.
    """
    if str(path).startswith(PUBLISHED):
        return of_published(Path(str(path).removeprefix(PUBLISHED)), overrides)
    given, path = path, find_config(path)
    values = read_yaml(path)
    if path == Path(given) / "config.yaml" or is_of_a_run(path):
        values = renamed(values) | where_it_is_now(values, path.parent)
    if "model" not in values and "num_layers" in values:  # a model file: a run around it, enough to look at
        name = values.get("name") or path.stem
        values = {"name": name, "steps": 1, "model": values, "data": {"kind": "synthetic", "seq_len": 1024}}
    config, problems = check(with_overrides(values, overrides, beside=path.parent))
    if config is not None:
        return config
    file_problems = problems_of_file(values, beside=path.parent) if overrides else problems
    brought = [p for p in problems if p not in file_problems]
    raise ValueError(
        "; ".join(
            f"{where}: {in_one(messages)}"
            for where, messages in ((WHERE, brought), (path, [p for p in problems if p in file_problems]))
            if messages
        )
    )


def with_overrides(values: dict, overrides: Sequence[str], *, beside: Path) -> dict:
    """The values with the model that they or the overrides name, and the other overrides applied to that model."""
    values = copy.deepcopy(values)
    named = [override for override in overrides if override.split("=")[0] in ("model", "model.file")]
    for override in named:
        apply_override(values, override, Config)
    try:
        values = with_model(values, beside=beside)
    except ValueError as error:
        raise ValueError(f"{WHERE}: {error}" if named else str(error)) from error
    for override in overrides:
        if override not in named:
            apply_override(values, override, Config)
    return values


PUBLISHED = "hf:"  # before a directory with a published model: its config.json and safetensors


def of_published(directory: Path, overrides: list[str] | tuple[str, ...]) -> Config:
    """A run around a published model, which begins from its weights."""
    model = read_published(directory).model
    values: dict = {
        "name": model.name,
        "steps": 1,
        "model": model.model_dump(exclude_unset=True),
        "data": {"kind": "synthetic", "seq_len": min(1024, model.max_seq_len)},
        "init": {"from": f"{PUBLISHED}{directory}"},
    }
    for override in overrides:
        apply_override(values, override, Config)
    return validate(values, source=f"{PUBLISHED}{directory}")


def problems_of_file(values: dict, *, beside: Path) -> list[str]:
    """What is wrong with a file by itself, without the overrides of the command line."""
    try:
        return check(with_model(values, beside=beside))[1]
    except ValueError:
        return []


def validate(values: dict, *, source: str) -> Config:
    """Values -> Config; every problem in one line, an unknown key with the nearest known one."""
    config, problems = check(values)
    if config is None:
        raise ValueError(f"{source}: {in_one(problems)}")
    return config


def check(values: dict) -> tuple[Config | None, list[str]]:
    """The config, or what is wrong with the values."""
    try:
        return Config.model_validate(values), []
    except ValidationError as error:
        return None, [describe(e, Config) for e in error.errors()]


def dump_config(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
