"""Files beside run files: grids of `bench sweep`, ladders. Each is YAML, a path or the name of a shipped one."""

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from jaxscale.config.errors import describe
from jaxscale.config.files import shipped_configs
from jaxscale.config.values import Section
from jaxscale.files.reading import parse_yaml

S = TypeVar("S", bound=Section)


def read_kind(name: str, kind: str, section: type[S], needs: str) -> tuple[Path, S]:
    """A file of another kind (a grid, a ladder), from a path or the name of a shipped one.

    Args:
        needs: what it must hold, as the message for an empty one says it.

    Raises:
        ValueError: in one line.
    """
    path = Path(name)
    if not path.is_file():
        shipped = shipped_configs() / f"{kind}s" / f"{name.removesuffix('.yaml')}.yaml"
        if not shipped.exists():
            there = ", ".join(sorted(p.stem for p in shipped.parent.glob("*.yaml")))
            raise ValueError(f"no {kind} {name}: neither a file nor a shipped one ({there})")
        path = shipped
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is no {kind}, which is YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no {kind}: it holds no keys; it needs {needs}")
    try:
        return path, section.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{path}: {describe(error.errors()[0], section)}") from error
