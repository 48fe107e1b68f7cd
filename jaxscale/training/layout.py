"""How every parameter lies on a mesh that need not exist: shapes only, nothing is allocated."""

import math
from dataclasses import dataclass
from typing import Any

import jax

from jaxscale import config as cfg
from jaxscale.parallel.mesh import describe_mesh, make_abstract_mesh
from jaxscale.parallel.sharding import on_mesh
from jaxscale.training.build import rules_for
from jaxscale.training.optimizer import is_axes
from jaxscale.training.step import abstract_model, decoder


@dataclass(frozen=True)
class ParameterLayout:
    """One parameter: `bytes` of the whole, `device_bytes` of the part that each device holds."""

    name: str
    axes: tuple[str, ...]
    spec: str
    shape: tuple[int, ...]
    bytes: int
    device_shape: tuple[int, ...]
    device_bytes: int


def parameter_layout(config: cfg.Config, num_devices: int | None = None) -> tuple[str, list[ParameterLayout]]:
    """The mesh in words, and the layout of every parameter of `config`'s decoder on it.

    Args:
        num_devices: of the mesh; None: the product of its sizes, an axis of -1 counting as 1.
    """
    mesh = make_abstract_mesh(config.mesh, num_devices)
    with on_mesh(mesh, rules_for(config, mesh)):
        params, axes, _ = abstract_model(decoder(config))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = jax.tree.leaves(axes, is_leaf=is_axes)
    return describe_mesh(mesh), [layout(path, x, n) for (path, x), n in zip(leaves, names, strict=True)]


def layout(path: tuple[Any, ...], x: jax.ShapeDtypeStruct, axes: tuple[str, ...]) -> ParameterLayout:
    assert x.sharding is not None
    part = x.sharding.shard_shape(x.shape)
    size = x.dtype.itemsize
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    spec = "P(" + ", ".join(map(repr, x.sharding.spec.partitions)) + ")"
    return ParameterLayout(name, axes, spec, x.shape, math.prod(x.shape) * size, part, math.prod(part) * size)
