"""What XLA makes of a function of your own: the work of one device, and what the devices send each other."""

from collections.abc import Callable
from typing import Any

import jax

from jaxscale.compiled import hlo
from jaxscale.compiled.collectives import Collective, collectives
from jaxscale.compiled.work import Work, Worker


def compiled_work(function: Callable[..., Any], *arrays: Any) -> Work:
    """This function compiles `function` for arrays of these shapes, and counts: `flops` of its matmuls, `bytes` of memory.

    Args:
        arrays: arrays, or `jax.ShapeDtypeStruct`s: a shape and a dtype without numbers. Nothing runs.

    All figures are of one device of the current mesh.
    """
    program = program_of(function, arrays)
    return Worker(program).of_computation(program.entry)


def compiled_collectives(function: Callable[..., Any], *arrays: Any) -> list[Collective]:
    """This function compiles `function` for the current mesh, and lists the messages between devices."""
    return collectives(program_of(function, arrays), dict(jax.sharding.get_abstract_mesh().shape))


def program_of(function: Callable[..., Any], arrays: tuple[Any, ...]) -> hlo.Program:
    return hlo.parse(jax.jit(function).lower(*arrays).compile().as_text())
