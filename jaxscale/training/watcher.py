"""Who is told how a run goes."""

from collections.abc import Mapping
from typing import Any, Protocol

from jax.sharding import Mesh

from jaxscale import config as cfg
from jaxscale.data.tokens import RowSource
from jaxscale.parallel.mesh import describe_mesh
from jaxscale.training.metrics import Speed


class Watcher(Protocol):
    """Who is told how a run goes; the command line's draws a bar. Every method may do nothing."""

    def say(self, line: str) -> None: ...

    def describe(self, config: cfg.Config, mesh: Mesh, rows: RowSource, *, decoder: bool) -> None:
        """Once, before anything is made or restored. `decoder`: the model is that of `config.model`."""
        ...

    def start(self, first_step: int, config: cfg.Config) -> None: ...

    def step(self, step: int, values: Mapping[str, Any], speed: Speed | None) -> None:
        """`values`: of the step's record, and of the newest records of other kinds as `kind/name`."""
        ...

    def finish(self) -> None:
        """Once, after `describe`: nothing follows. It is called after an error too."""
        ...


class Silent:
    def say(self, line: str) -> None: ...

    def describe(self, config: cfg.Config, mesh: Mesh, rows: RowSource, *, decoder: bool) -> None:
        self.say(f"mesh {mesh_words(mesh)}; {len(rows):,} rows of {rows.seq_len} tokens")

    def start(self, first_step: int, config: cfg.Config) -> None: ...
    def step(self, step: int, values: Mapping[str, Any], speed: Speed | None) -> None: ...
    def finish(self) -> None: ...


def mesh_words(mesh: Mesh) -> str:
    return f"{describe_mesh(mesh)} of {mesh.devices.flat[0].device_kind}"
