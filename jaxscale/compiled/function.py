"""What XLA makes of a function of your own: the work of one device, and what the devices send each other."""

from collections.abc import Callable
from typing import Any

import jax

from jaxscale.compiled import hlo
from jaxscale.compiled.collectives import Collective, collectives
from jaxscale.compiled.work import Work, Worker


def compiled_work(function: Callable[..., Any], *arrays: Any) -> Work:
    """Compile `function` for arrays like these, and count the `flops` of its matmuls and the `bytes` that it moves.

    Nothing runs: an array may be a `jax.ShapeDtypeStruct`, a shape and a dtype without numbers. The figures are those
    of one device of the current mesh.
    """
    program = program_of(function, arrays)
    return Worker(program).of_computation(program.entry)


def compiled_collectives(function: Callable[..., Any], *arrays: Any) -> list[Collective]:
    """Compile `function` for the current mesh, and list what its devices send each other."""
    return collectives(program_of(function, arrays), dict(jax.sharding.get_abstract_mesh().shape))


def program_of(function: Callable[..., Any], arrays: tuple[Any, ...]) -> hlo.Program:
    text = jax.jit(function).lower(*arrays).compile().as_text()
    assert text is not None  # it is None for a compiler that keeps no text
    return hlo.parse(text)
