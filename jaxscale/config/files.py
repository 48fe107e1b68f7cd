"""Finding and reading the files that a config is made of: by a path, or by the name of a shipped one."""

import os
from pathlib import Path

from jaxscale.files.reading import parse_untyped
from jaxscale.files.spelling import nearest
from jaxscale.files.urls import moved_along


def with_model(values: dict, *, beside: Path) -> dict:
    """The values with the model that they name, read from its file."""
    model = values.get("model")
    if isinstance(model, str) or (isinstance(model, dict) and "file" in model):
        return values | {"model": read_model(model, beside=beside)}
    return values


def read_model(model: str | dict, *, beside: Path) -> dict:
    """`model: NAME` or `model: {file: NAME, key: value}`: a file of configs/models/, with changes."""
    changes = dict(model) if isinstance(model, dict) else {}
    name = changes.pop("file", model)
    if not isinstance(name, str):
        raise ValueError(f"model.file={name!r} is not a file; give a name of configs/models/ or a path")
    for candidate in (beside / name, beside / "models" / f"{name}.yaml", beside / f"{name}.yaml"):
        if os.path.isfile(candidate):  # unlike Path.is_file, no error for a name too long
            return changed(read_yaml(candidate), changes)
    return changed(read_yaml(find_config(f"models/{name}")), changes)


def changed(values: dict, changes: dict) -> dict:
    """The values with these changes; of a section, the keys that they name."""
    result = dict(values)
    for key, value in changes.items():
        section = result.get(key)
        result[key] = changed(section, value) if isinstance(section, dict) and isinstance(value, dict) else value
    return result


def find_config(path: str | Path) -> Path:
    """`path`, with .yaml added, of that name among the shipped configs, or in the directory of a run."""
    shipped = shipped_configs()
    name = str(path).removeprefix("configs/")
    names = [Path(path), Path(f"{path}.yaml")]
    names += [shipped / sub / f"{name}{end}" for sub in ("", "models") for end in ("", ".yaml")]
    names.append(Path(path) / "config.yaml")
    for candidate in names:
        if os.path.isfile(candidate):
            return candidate
    known = sorted({p.stem for sub in ("", "models") for p in (shipped / sub).glob("*.yaml")})
    if os.path.isdir(path):
        raise ValueError(f"{path} is no run's directory, as it has no config.yaml; give a YAML file, or a shipped name")
    beside = os.path.dirname(path)
    if beside and not str(path).startswith(("/", ".", "models/")) and not os.path.isdir(beside):
        raise ValueError(
            f"no config {path}, and nothing is downloaded: give hf:DIR, a directory with its config.json and "
            f"safetensors; shipped ones begin from random weights: {', '.join(known)}"
        )
    raise ValueError(f"no config {path}{nearest(Path(path).stem, known)}; shipped ones: {', '.join(known)}")


def is_of_a_run(path: Path) -> bool:
    """Whether a config is the one that a run has written into its directory."""
    return path.name == "config.yaml" and (path.parent / "environment.json").is_file()


def where_it_is_now(values: dict, directory: Path) -> dict:
    """`out`, and checkpoints below it, of a run whose directory may have been moved or copied."""
    old, checkpoint = values.get("out"), values.get("checkpoint")
    if not isinstance(old, str) or os.path.realpath(os.path.expanduser(old)) == os.path.realpath(directory):
        return {}
    moved: dict = {"out": str(directory)}
    if isinstance(checkpoint, dict) and isinstance(place := checkpoint.get("directory"), str):
        moved["checkpoint"] = checkpoint | {"directory": moved_along(place, old, directory)}
    return moved


RENAMED = {"attention_context": "attended"}  # activations of step.remat


def renamed(values: dict) -> dict:
    """A config that an earlier version wrote into a run, with today's names of activations."""
    step = values.get("step")
    remat = step.get("remat") if isinstance(step, dict) else None
    if not isinstance(step, dict) or not isinstance(remat, dict):
        return values
    return values | {"step": step | {"remat": {RENAMED.get(name, name): action for name, action in remat.items()}}}


def shipped_configs() -> Path:
    """The folder of shipped configs: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def read_yaml(path: Path) -> dict:
    try:
        values = parse_untyped(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        kind = "str" if isinstance(values, str) else type(values).__name__
        raise ValueError(f"{path} holds {kind}, not `key: value` lines")
    return values
