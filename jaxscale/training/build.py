"""A config on its devices: the mesh, the sharding rules, the step and the layout of its batch.

The trainer, the benchmarks, ahead-of-time compilation, `explain` and the tests all start here. It touches no memory of
a device and knows no files.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import jax
from jax.sharding import AbstractMesh, Mesh

from jaxscale import config as cfg
from jaxscale.blueprint.rules import Rules, check_replicas, count, require_divides
from jaxscale.blueprint.sequence import in_zigzag, require_chunks
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.sharding import fit_rules, make_rules, on_mesh
from jaxscale.training.step import ModelFactory, Program, abstract_batch, batch_sharding, make_program


@dataclass(frozen=True)
class Setup:
    """A program on its mesh. Call its functions inside `context()`.

    Attributes:
        batch_sharding: the layout of a batch's arrays [microbatches, B, T].
    """

    config: cfg.Config
    mesh: Mesh
    rules: Rules
    program: Program
    batch_sharding: jax.NamedSharding

    def context(self) -> AbstractContextManager[None]:
        return on_mesh(self.mesh, self.rules)

    def abstract_batch(self, *, documents: bool) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a batch; with `documents`, also those of segments and positions."""
        with self.context():
            return abstract_batch(self.config, self.mesh, documents=documents)


def build(config: cfg.Config, devices: list[jax.Device] | None = None, *, model: ModelFactory | None = None) -> Setup:
    """Make the mesh of `config` on these devices, its rules and its program.

    Args:
        devices: of the mesh, here or compile-only; None: all of JAX's.
        model: as for `make_program`; None: the decoder of `config.model`.

    Raises:
        ValueError: the mesh does not fit the devices, or the model or the batch does not fit the mesh.
    """
    return build_on(config, *mesh_and_rules(config, devices, decoder=model is None), model=model)


def mesh_and_rules(
    config: cfg.Config, devices: list[jax.Device] | None = None, *, decoder: bool = True
) -> tuple[Mesh, Rules]:
    """The first half of `build`, which is fast and raises what does not fit."""
    mesh = make_mesh(config.mesh, devices)
    return mesh, rules_for(config, mesh, decoder=decoder)


def build_on(config: cfg.Config, mesh: Mesh, rules: Rules, *, model: ModelFactory | None = None) -> Setup:
    """The second half of `build`, for a mesh and rules that exist."""
    with on_mesh(mesh, rules):
        return Setup(config, mesh, rules, make_program(config, model), batch_sharding(mesh))


def rules_for(config: cfg.Config, mesh: Mesh | AbstractMesh, *, decoder: bool = True) -> Rules:
    """The sharding rules of `config`, checked against the mesh.

    Args:
        decoder: check every split dim of the decoder; False: only the rows of a microbatch.
    """
    rules = make_rules(config.sharding)
    check_replicas(rules, mesh.shape)
    if decoder:
        return fit_rules(rules, mesh.shape, config)
    shards = count(rules.activations["sequence"], mesh.shape)
    require_chunks(config.data.seq_len, shards, zigzag=in_zigzag(config))
    rows = config.data.batch_size // config.step.microbatches
    require_divides("rows of a microbatch", rows, count(rules.activations["batch"], mesh.shape), "the batch axes")
    return replace(rules, zigzag=in_zigzag(config))


def with_whole_rows(config: cfg.Config, sizes: Mapping[str, int]) -> cfg.Config:
    """`config` with rows added until each microbatch fills the batch axes of a mesh, where rows decide no result."""
    shards = count(make_rules(config.sharding).activations["batch"], sizes)
    rows = math.ceil(config.data.batch_size / config.step.microbatches / shards) * shards
    data = config.data.model_copy(update={"batch_size": rows * config.step.microbatches})
    return config.model_copy(update={"data": data})
