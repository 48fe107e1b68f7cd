"""Which files of jaxscale a module is made of, read from the imports in its source. Nothing is imported."""

import ast
import hashlib
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def imported(path: Path) -> set[str]:
    """Every module of jaxscale that a file imports, in functions too, and the packages that they are in."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    names |= {name.rpartition(".")[0] for name in names}  # `from jaxscale import x` may be a module x
    return {name for name in names if name.startswith("jaxscale.") and file_of(name)}


def file_of(module: str) -> Path | None:
    """`jaxscale.training.step` -> its file; None for a name that is no module."""
    place = PACKAGE.joinpath(*module.split(".")[1:])
    return next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()), None)


@lru_cache
def closure(module: str) -> tuple[Path, ...]:
    """The files of a module and of all that it imports, directly or not, in order."""
    files, waiting = set(), {module}
    while waiting:
        path = file_of(waiting.pop())
        if path is not None and path not in files:
            files.add(path)
            waiting |= imported(path)
    return tuple(sorted(files))


@lru_cache
def source_hash(module: str = "jaxscale.training.step") -> str:
    """Of all files that a module is made of; by default those of the training step."""
    digest = hashlib.sha256()
    for path in closure(module):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
