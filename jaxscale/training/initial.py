"""What a run begins from: random parameters, another run's, or a published model's. Each device reads its part."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale import config as cfg
from jaxscale.checkpoint.stored import Stored
from jaxscale.config import PUBLISHED, read_published
from jaxscale.config.families import family_of
from jaxscale.interop.adapter import Adapter, base_of
from jaxscale.interop.weights import Files
from jaxscale.training.frozen import LORA, SCORE, by_path, nested
from jaxscale.training.replicas import replica_axis
from jaxscale.training.step import Program, TrainState, all_parameters

Path_ = tuple[str, ...]
Block = Callable[[Path_, tuple[slice, ...], np.dtype], np.ndarray]  # of a parameter
Say = Callable[[str], None]
GROUPS = ("params", "frozen", "router_bias")  # of a state: those that are parameters


@dataclass(frozen=True)
class Beginning:
    """What parameters are read from.

    Attributes:
        has: is this parameter there? One that is not begins as in any run.
        line: on where they come from.
    """

    block: Block
    has: Callable[[Path_], bool]
    line: str


def initial_state(config: cfg.Config, program: Program, say: Say) -> TrainState:
    """The state before the first step, on the mesh in context: with `init.from` the parameters are read."""
    if config.init.source is None:
        return program.init()
    if replica_axis() is not None:
        raise ValueError(
            f"init.from={config.init.source} with replicas: begin without them (mesh.replica=1), and go on with them"
        )
    sources = sources_of(config)
    state = unread(program, sources)()
    for source in sources:
        say(source.line)
    return state._replace(**read(program, sources, {name: getattr(state, name) for name in GROUPS}))


def first_parameters(config: cfg.Config, program: Program) -> Any:
    """The parameters that the run begins with, trained and frozen, of `init.from`."""
    sources = sources_of(config)
    start = unread(program, sources)
    drawn = jax.jit(lambda: {name: getattr(start(), name) for name in GROUPS})()
    groups = read(program, sources, drawn)
    return all_parameters(program.abstract._replace(**groups), groups["params"])


def sources_of(config: cfg.Config) -> list[Beginning]:
    """What `init` names; a later one comes before those above it."""
    return [beginning(config), *([adapter(config)] if config.init.adapter_directory else [])]


def unread(program: Program, sources: list[Beginning]) -> Callable[[], TrainState]:
    """The state before the first step with only those parameters that no source has; jitted.

    XLA leaves out what nobody asks for: the random parameters would be several times as large as what is read.
    """

    def rest(params: Any) -> Any:
        return nested({path: x for path, x in by_path(params).items() if not any(s.has(path) for s in sources)})

    def start() -> TrainState:
        state = program.init()
        return state._replace(**{name: rest(getattr(state, name)) for name in GROUPS})

    return jax.jit(start)


def read(program: Program, sources: list[Beginning], drawn: dict[str, Any]) -> dict[str, Any]:
    """All parameters: read where a source has them, or as they were drawn."""
    return {name: filled(getattr(program.abstract, name), sources, drawn[name]) for name in GROUPS}


def beginning(config: cfg.Config) -> Beginning:
    """How the parameters of `init.from` are read. ValueError where they do not fit."""
    source = config.init.source
    assert source is not None
    if source.startswith(PUBLISHED):
        if config.init.at is not None:
            raise ValueError(f"init.step={config.init.at} is of a run's checkpoints, and {source} has none; remove it")
        directory = Path(source.removeprefix(PUBLISHED)).expanduser()
        published = read_published(directory)
        require_same(published.model.model_dump(mode="json"), config, source)
        files = Files(directory, published.family, base_of(config.model))
        return Beginning(files.block, files.paths.__contains__, f"begins from {published.family} in {directory}")
    stored = Stored(source, config.init.at)
    require_same(stored.config["model"], config, source)
    read: Block = lambda path, index, dtype: stored.block(path, index).astype(dtype)  # noqa: E731
    has_lora = stored.config["model"].get("lora") is not None
    scores = bool(stored.config["model"].get("score"))
    has = lambda path: (has_lora or LORA not in path) and (scores or SCORE not in path)  # noqa: E731
    return Beginning(read, has, f"begins from step {stored.step} of {source}")


def adapter(config: cfg.Config) -> Beginning:
    """How LoRA's matrices of `init.adapter` are read."""
    assert config.init.adapter_directory
    directory = Path(config.init.adapter_directory).expanduser()
    matrices = Adapter(directory, family_of(base_of(config.model)), config.model)
    return Beginning(matrices.block, matrices.has, f"LoRA's matrices begin from {directory}")


def require_same(model: dict[str, Any], config: cfg.Config, source: str) -> None:
    """ValueError for a model that is another one than the config's."""
    ours = config.model.model_dump(mode="json")
    free = {"name", "family", "init_std"} | ({"max_seq_len"} if config.model.position == "rope" else set())
    free |= {"lora"} if model.get("lora") is None else set()
    free |= set() if model.get("score") else {"score"}  # a reward model begins from one that predicts tokens
    theirs = {key: model.get(key, cfg.default_of(cfg.Model, key)) for key in ours}
    if differ := [f"model.{k}: {theirs[k]} -> {ours[k]}" for k in ours if k not in free and theirs[k] != ours[k]]:
        raise ValueError(f"init.from={source} is another model ({'; '.join(differ)}); leave these as they are there")


def filled(params: Any, sources: list[Beginning], drawn: Any) -> Any:
    """Arrays of these types: read from the last source that has them, or else those of `drawn`."""
    others = by_path(drawn)

    def one(path: Path_, kind: jax.ShapeDtypeStruct) -> jax.Array:
        source = next((s for s in reversed(sources) if s.has(path)), None)
        if source is None:
            array: jax.Array = others[path]
            return array
        return placed(kind, lambda index: source.block(path, index, np.dtype(kind.dtype)))

    return nested({path: one(path, kind) for path, kind in by_path(params).items()}) if params else params


MOST_BLOCKS = 8  # of one array
LARGE = 2**28  # bytes of a device's part of a stack of matrices from which on it is read layer by layer
OfIndex = Callable[[tuple[slice, ...]], np.ndarray]


def placed(kind: jax.ShapeDtypeStruct, block: OfIndex) -> jax.Array:
    """An array of this type on its devices. Of a large stack of matrices the host holds one layer at a time."""
    layers, layout = kind.shape[:1], kind.sharding
    part = math.prod(layout.shard_shape(kind.shape)) * np.dtype(kind.dtype).itemsize
    if len(kind.shape) < 3 or part <= LARGE or layout.shard_shape(kind.shape)[:1] != layers:
        return from_blocks(kind.shape, layout, block)
    stack = jnp.zeros(kind.shape, kind.dtype, device=layout)
    for i in range(*layers):
        of_layer = partial(at_layer, block, i)
        stack = put(stack, from_blocks((1, *kind.shape[1:]), layout, of_layer), i)
        stack.block_until_ready()  # else the host runs ahead, and holds what waits
    return stack


def at_layer(block: OfIndex, layer: int, index: tuple[slice, ...]) -> np.ndarray:
    return block((slice(layer, layer + 1), *index[1:]))


@partial(jax.jit, donate_argnums=0)
def put(whole: jax.Array, one: jax.Array, i: jax.Array) -> jax.Array:
    """`whole` with layer i set, in place."""
    return jax.lax.dynamic_update_slice_in_dim(whole, one, i, 0)


def from_blocks(shape: tuple[int, ...], layout: jax.sharding.Sharding, block: OfIndex) -> jax.Array:
    """Each device's part is read once, also where several devices hold the same."""
    known: dict[Any, np.ndarray] = {}  # devices that hold the same block ask for it one after the other

    def part(index: Any) -> np.ndarray:
        key = tuple(s.indices(n) for s, n in zip(index, shape, strict=True))
        if key not in known:
            if len(known) >= MOST_BLOCKS:
                known.clear()
            known[key] = block(index)
        return known[key]

    return jax.make_array_from_callback(shape, layout, part)
