"""Every matmul of a training step, explained. The room is itself a function: `jaxscale.explain(config, mesh=...)`.

As a module of this name is there, a function of this name could not be beside it.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class Room(ModuleType):
    """A module that is called as `jaxscale.library.predictions.explain`."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return import_module("jaxscale.library.predictions").explain(*arguments, **options)


sys.modules[__name__].__class__ = Room
