"""Compiled programs kept on disk: asking again is instant, and needs no jax.

The key is everything that the compiled program depends on: the parts of the config that reach the step, the topology,
the versions of the compilers, and the source of the training step with all that it imports.
"""

import gzip
import hashlib
import json
import os
import zlib
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from jaxscale import config as cfg
from jaxscale.compiled.hlo import parse
from jaxscale.compiled.source import source_hash
from jaxscale.files.whole import write_whole
from jaxscale.hardware.topology import Topology
from jaxscale.predict.costs import packs_documents

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "libtpu", "jax-cuda13-plugin", "nvidia-cuda-nvcc", "nvidia-cudnn-cu13")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# what the step reads of a config: whole sections, and parts of others; tests/compiled/test_store.py holds it to that
IN_THE_STEP = ("steps", "on_nonfinite", "model", "mesh", "sharding", "step", "objective", "loss", "optimizer")
PARTS = {"guard": ("spike", "on_spike"), "data": ("batch_size", "seq_len"), "runtime": ("compiler_options",)}
ONLY_AT_THE_START = ("name", "init_std")  # of the model


@dataclass(frozen=True)
class Memory:
    """Bytes of one device, as the compiler counts them. Donated arguments are `alias` bytes of the output."""

    arguments: int
    outputs: int
    alias: int
    temporaries: int
    code: int
    host: int = 0

    @property
    def peak(self) -> int:
        """What must fit at one time: arguments, outputs that are not donated arguments, temporaries and code."""
        return self.arguments + self.outputs - self.alias + self.temporaries + self.code


@dataclass(frozen=True)
class Compiled:
    """What a compile leaves.

    Attributes:
        hlo: text of the compiled program; empty when it ran out of memory.
        parts: bytes of one device's parameters, optimizer state and batch, from the trainer's abstract tree.
        mesh: axis -> size.
        memory_error: the compiler's words when the program does not fit.
    """

    hlo: str
    memory: Memory | None
    parts: dict[str, int]
    mesh: dict[str, int]
    lower_seconds: float
    compile_seconds: float
    memory_error: str | None = None


def from_values(values: dict) -> Compiled:
    """The inverse of `asdict`."""
    memory = values.get("memory")
    return Compiled(**values | {"memory": Memory(**memory) if memory else None})


def versions(names: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Of those that are installed."""
    installed = {}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def what_it_depends_on(config: cfg.Config) -> dict:
    """All that decides the compiled program but the devices, as plain values; what `train --executable` compares."""
    every = config.model_dump(mode="json")
    values = {name: every[name] for name in IN_THE_STEP}
    for section, names in PARTS.items():
        values[section] = {name: every[section][name] for name in names}
    for name in ONLY_AT_THE_START:
        values["model"].pop(name)
    values["data"]["documents"] = packs_documents(config)
    return {"config": values, "versions": versions(), "source": source_hash()}


def made_by() -> str:
    """Of the files that say how it is compiled ahead of time."""
    return source_hash("jaxscale.compiled.aot")


class Store:
    """A folder of compiled programs, one gzipped JSON each."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder or Path(os.path.expanduser("~/.cache/jaxscale/compiled"))

    def path(self, config: cfg.Config, topology: Topology) -> Path:
        more = {
            "topology": topology.name,
            "flags": {name: os.environ.get(name) for name in FLAGS},
            "made by": made_by(),
        }
        text = json.dumps(what_it_depends_on(config) | more, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json.gz"

    def load(self, config: cfg.Config, topology: Topology) -> Compiled | None:
        """What was kept; None where nothing (whole) is."""
        try:
            compiled = from_values(json.loads(gzip.decompress(self.path(config, topology).read_bytes())))
            if compiled.hlo:
                parse(compiled.hlo)
            return compiled
        except (OSError, ValueError, TypeError, AttributeError, EOFError, RecursionError, zlib.error):
            return None  # compile again

    def save(self, config: cfg.Config, topology: Topology, compiled: Compiled) -> None:
        """Whole or not at all: there may be a second compile at the same time."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # a home that cannot be written: the answer is what counts
            return
        text = gzip.compress(json.dumps(asdict(compiled)).encode(), compresslevel=6)
        write_whole(self.path(config, topology), text)
