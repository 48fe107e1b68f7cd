"""Whose error is it? What a library raises is told to the user in one line; our own bugs keep their traceback."""

import contextlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib import metadata
from types import ModuleType

OURS = ("jaxscale", "__main__")
SHOW = "JAXSCALE_TRACEBACK"  # in the environment, =1: the whole traceback


def library_message(error: BaseException) -> str | None:
    """One line that names the library and its version; None for an error that is not a library's."""
    library = library_of(error)
    if library is None:
        return None
    try:
        name = metadata.packages_distributions().get(library, [library])[0]
        version = f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        version = library
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, ImportError | AttributeError):
        return f"{version} does not fit, or is not whole ({said}); install it again: pip install --upgrade {library}"
    return f"{version} failed ({said}); {SHOW}=1 shows where"


def library_of(error: BaseException) -> str | None:
    """The top-level name of the library that an error comes from: the one that our code called, or what is missing."""
    called: list[str] = []  # since the last frame of ours
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__name__", "").split(".")[0]
        called = [] if name in OURS else [*called, name]
    module = type(error).__module__
    if isinstance(error, ImportError):
        module = error.name or ""
    elif isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        module = error.obj.__name__
    foreign = [n for n in (*called, module.split(".")[0]) if n and n not in OURS and n not in sys.stdlib_module_names]
    return foreign[0] if foreign else None


@contextlib.contextmanager
def blaming_layouts(overrides: Mapping[str, Mapping]) -> Iterator[bool]:
    """Around tracing: what jax says of types that do not fit is told with the layouts that the config asks for.

    Gives whether it asks for any: `overrides` is {parameters: {axis: ...}, activations: {axis: ...}}.
    """
    keys = [f"sharding.{table}.{name}" for table, names in overrides.items() for name in names]
    try:
        yield bool(keys)
    except Exception as error:
        if not keys or library_of(error) is None:
            raise
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{', '.join(keys)}: no such layout on this mesh ({said}); remove or change it") from error
