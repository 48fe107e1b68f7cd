"""What a run begins from: random parameters, another run's, or a published model's. Each device reads its part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxscale import config as cfg
from jaxscale.checkpoint.stored import Stored
from jaxscale.config import PUBLISHED, read_published
from jaxscale.interop.weights import Files
from jaxscale.training.frozen import by_path, nested
from jaxscale.training.replicas import replica_axis
from jaxscale.training.step import Program, TrainState

Path_ = tuple[str, ...]
Block = Callable[[Path_, tuple[slice, ...], np.dtype], np.ndarray]  # of a parameter
Say = Callable[[str], None]


def initial_state(config: cfg.Config, program: Program, say: Say) -> TrainState:
    """The state before the first step, on the mesh in context: with `init.from` the parameters are read."""
    if config.init.source is None:
        return program.init()
    if replica_axis() is not None:
        raise ValueError(
            f"init.from={config.init.source} with replicas: begin without them (mesh.replica=1), and go on with them"
        )
    block, told = blocks(config)
    state = without_parameters(program)()
    read = {name: filled(getattr(program.abstract, name), block) for name in ("params", "frozen", "router_bias")}
    say(told)
    return state._replace(**read)


def without_parameters(program: Program) -> Callable[[], TrainState]:
    """The state before the first step with nothing in the place of what is read; jitted.

    XLA leaves out what nobody asks for: the random parameters would be several times as large as what is read.
    """
    return jax.jit(lambda: program.init()._replace(params={}, frozen={}, router_bias={}))


def blocks(config: cfg.Config) -> tuple[Block, str]:
    """How blocks of parameters are read, and a line on where they come from. ValueError where they do not fit."""
    source = config.init.source
    assert source is not None
    if source.startswith(PUBLISHED):
        if config.init.at is not None:
            raise ValueError(f"init.step={config.init.at} is of a run's checkpoints, and {source} has none; remove it")
        directory = Path(source.removeprefix(PUBLISHED)).expanduser()
        found = read_published(directory)
        require_same(found.model.model_dump(mode="json"), config, source)
        files = Files(directory, found.family, config.model)
        weights = {row.path: name for name, row in files.rows.items()}
        published: Block = lambda path, index, dtype: files.block(weights[path], index, dtype)  # noqa: E731
        return published, f"begins from {found.family} in {directory}"
    stored = Stored(source, config.init.at)
    require_same(stored.config["model"], config, source)
    read: Block = lambda path, index, dtype: stored.block(path, index).astype(dtype)  # noqa: E731
    return read, f"begins from step {stored.step} of {source}"


def require_same(model: dict[str, Any], config: cfg.Config, source: str) -> None:
    """ValueError for a model that is another one than the config's."""
    own = config.model.model_dump(mode="json")
    free = {"name", "init_std"} | ({"max_seq_len"} if config.model.position == "rope" else set())
    if differ := [f"model.{k}: {model[k]} -> {own[k]}" for k in own if k not in free and model.get(k) != own[k]]:
        raise ValueError(f"init.from={source} is another model ({'; '.join(differ)}); leave these as they are there")


def filled(params: Any, block: Block) -> Any:
    """Arrays of these types with what was read."""

    def one(path: Path_, kind: jax.ShapeDtypeStruct) -> jax.Array:
        shape, layout, dtype = kind.shape, kind.sharding, np.dtype(kind.dtype)
        known: dict[Any, np.ndarray] = {}  # devices that hold the same block ask for it one after the other

        def part(index: Any) -> np.ndarray:
            key = tuple(s.indices(n) for s, n in zip(index, shape, strict=True))
            if key not in known:
                if len(known) >= MOST_BLOCKS:
                    known.clear()
                known[key] = block(path, index, dtype)
            return known[key]

        return jax.make_array_from_callback(shape, layout, part)

    return nested({path: one(path, kind) for path, kind in by_path(params).items()}) if params else params


MOST_BLOCKS = 8  # of one array
