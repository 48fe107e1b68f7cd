"""jaxscale: a transformer is matmuls, cut across a mesh of machines.

Everything here is loaded when first used: `import jaxscale` does not import jax. Types are in __init__.pyi.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "load_config": "jaxscale.config",
    "Config": "jaxscale.config",
    "make_mesh": "jaxscale.parallel.mesh",
    "on_mesh": "jaxscale.parallel.sharding",
    "make_rules": "jaxscale.blueprint.rules",
    "Rules": "jaxscale.blueprint.rules",
    "Blueprint": "jaxscale.blueprint.table",
    "Dim": "jaxscale.blueprint.table",
    "Weight": "jaxscale.blueprint.table",
    "Op": "jaxscale.blueprint.table",
    "Activation": "jaxscale.blueprint.table",
    "described_by": "jaxscale.blueprint.described",
    "explain_model": "jaxscale.explain.here",
    "find_topology": "jaxscale.hardware.topology",
    "einsum": "jaxscale.parallel.sharding",
    "gather": "jaxscale.parallel.sharding",
    "shard": "jaxscale.parallel.sharding",
    "spec": "jaxscale.parallel.sharding",
    "lookup": "jaxscale.models.embedding",
    "Transformer": "jaxscale.models.transformer",
    "make_program": "jaxscale.training.step",
    "train": "jaxscale.library.training",
    "read_records": "jaxscale.library.records",
    "prepare": "jaxscale.data.prepare",
    "load": "jaxscale.library.models",
    "generate": "jaxscale.library.models",
    "evaluate": "jaxscale.library.models",
    "measure": "jaxscale.library.models",
    "plan": "jaxscale.library.predictions",
}
_ROOMS = ("explain",)  # rooms that are functions themselves
__all__ = sorted([*_WHERE, *_ROOMS])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("jaxscale")
    if name in _ROOMS:
        return import_module(f"jaxscale.{name}")
    if name not in _WHERE:
        raise AttributeError(f"jaxscale has no {name}; it has {', '.join(__all__)}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
