"""What several tests share: tiny configs, batches, one training step on any mesh, and reading compiled HLO."""

import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale import config as cfg
from jaxscale.blueprint.sequence import in_zigzag, order
from jaxscale.compiled.groups import GroupAxes
from jaxscale.compiled.instructions import parse_instruction
from jaxscale.config.families import family_of
from jaxscale.interop.adapter import base_of
from jaxscale.interop.tables import found_at
from jaxscale.interop.weights import Tensors
from jaxscale.kernels.grouped import Kernel
from jaxscale.training.build import build
from jaxscale.training.watcher import Silent

TINY = {"vocab_size": 250, "num_layers": 2, "embed_dim": 32, "num_heads": 8, "num_kv_heads": 2, "mlp_dim": 64}
B, T = 8, 32


class Listener(Silent):
    """Keeps what a run says."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def make_config(mesh: dict | None = None, **sections) -> cfg.Config:
    """A float32 config of the tiny decoder; `sections` are merged into it (model=..., step=..., ...)."""
    values = {
        "name": "test", "steps": 100, "model": TINY, "mesh": {"data": 1} | (mesh or {}),
        "data": {"kind": "synthetic", "batch_size": B, "seq_len": T},
        "step": {"compute_dtype": "float32", "remat": "none", "unroll_layers": False},
        "optimizer": {"learning_rate": 1e-2}, "metrics": {"tensorboard": False}, "evaluation": {"batches": 2},
        "runtime": {"platform": "cpu", "compilation_cache": None},
    }  # fmt: skip
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section if isinstance(section, dict) else section
    return cfg.validate(values, source="test")


def make_batch(
    config: cfg.Config, *, seed: int = 0, padding: float = 0.2, documents: bool = True
) -> dict[str, np.ndarray]:
    """Random tokens [B, T] with some padding and several documents a row."""
    rng = np.random.default_rng(seed)
    shape = (config.data.batch_size, config.data.seq_len)
    batch = {
        "tokens": rng.integers(0, config.model.vocab_size, shape, np.int32),
        "targets": rng.integers(0, config.model.vocab_size, shape, np.int32),
        "weights": (rng.random(shape) >= padding).astype(np.float32),
    }
    if documents:
        batch["segments"] = np.sort(rng.integers(1, 4, shape), axis=1).astype(np.int32)
        batch["positions"] = np.tile(np.arange(shape[1], dtype=np.int32), (shape[0], 1))
    return batch


def random_params(config: cfg.Config, *, seed: int = 0, std: float = 0.1) -> dict:
    """Parameters of a decoder on the host, none of them zero (so that every bias and norm is tested)."""
    abstract = Setup(config).program.abstract.params
    rng = np.random.default_rng(seed)

    def draw(path, x):
        centre = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return (centre + std * rng.standard_normal(x.shape)).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract)


def published_names(values: dict, config: cfg.Config) -> dict[str, np.ndarray]:
    """A tree like the parameters, by the names and in the shapes of a published model's files."""
    files = Tensors(family_of(config.model), base_of(config.model))

    def read(row, place):
        at = values
        path, place = found_at(row, place, files.table)
        for key in path:
            at = at[key]
        return np.asarray(at)[place]

    return dict(zip(files.shapes, files.written(files.shapes, read, np.float32), strict=True))


def assert_gradients_equal(got, wanted, *, rtol: float = 1e-5) -> None:
    """Every gradient within `rtol` of its largest element: float32 sums in another order differ at that scale.

    A gradient that is zero in exact arithmetic (a bias of keys, without rotary positions) is what cancels out of larger
    ones: it is measured against a hundredth of the largest of all.
    """
    largest = max(np.abs(b).max() for b in jax.tree.leaves(wanted))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        error = np.abs(a - b).max() / max(np.abs(b).max(), largest / 100)
        assert error < rtol, f"gradient of {jax.tree_util.keystr(path)} differs by {error:.1e}"


def place(
    batch: dict[str, np.ndarray], sharding, microbatches: int = 1, *, zigzag: bool = True
) -> dict[str, jax.Array]:
    """As `training.feed` places it: tokens of a split sequence in the mesh's order."""
    rows, tokens = next(iter(batch.values())).shape
    shape = (microbatches, -1, tokens)
    length = sharding.shard_shape((microbatches, rows // microbatches, tokens))[2]
    places = order(shape[2], shape[2] // length, zigzag=zigzag)
    return {k: jax.device_put(v[:, places].reshape(shape), sharding) for k, v in batch.items()}


class Setup:
    """A program on its mesh, with a batch placed; use `with setup.context():` around calls."""

    def __init__(self, config: cfg.Config, *, model=None, batch=None):
        self.config = config
        count = math.prod(config.mesh.sizes(None).values())
        built = build(config, jax.devices()[:count], model=model)
        self.mesh, self.rules, self.program, self.context = built.mesh, built.rules, built.program, built.context
        self.batch_sharding = built.batch_sharding
        host = make_batch(config) if batch is None else batch
        zigzag = in_zigzag(config)
        self.batch = place(host, built.batch_sharding, config.step.microbatches, zigzag=zigzag)

    def steps(self, count: int):
        """(losses, gradient norms, final state) of some steps on the same batch."""
        with self.context():
            state, out = self.program.init(), []
            for _ in range(count):
                state, metrics = self.program.step(state, self.batch)
                out.append(jax.device_get(metrics))
        return np.array([m["loss"] for m in out]), np.array([m["grad_norm"] for m in out]), state

    def hlo(self) -> str:
        with self.context():
            return self.program.step.lower(self.program.abstract, self.batch).compile().as_text()


KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def collectives(hlo: str, mesh) -> Counter:
    """(kind, axes, arrays) of compiled HLO -> how often: each array of a combined collective counts, scalars do not.

    Instructions inside a loop's body count once, as they stand in the text.
    """
    found: Counter = Counter()
    groups = GroupAxes(dict(mesh.shape))
    for line in hlo.splitlines():
        m = re.search(rf"= (.+?) ({KINDS})(?:-start)?\(", line)
        if not m or "replica_groups" not in line:
            continue
        arrays = [a for a in re.findall(r"\w+\[([\d,]*)\]", m[1]) if a]
        count = 1 if m[2] == "all-to-all" else len(arrays)
        if arrays:
            instruction = parse_instruction(line)
            assert instruction
            axes = groups.of(instruction).axes
            assert axes, f"these replica groups are no set of mesh axes: {line}"
            found[m[2], axes] += count
    return found


def bytes_by_axes(sent) -> dict[tuple[str, ...], float]:
    """Bytes of a step over each of the mesh's axes, compiled or predicted; without scalars and vectors."""
    found: dict[tuple[str, ...], float] = {}
    for one in sent:
        if one.bytes >= 1024:
            found[one.axes] = found.get(one.axes, 0) + one.bytes * one.times
    return found


def poisoned(kernel: Kernel) -> Kernel:
    """Kernel of grouped matmuls with NaN in all that it leaves undefined: its results' rows that no expert has."""

    def rows(x: jax.Array, w: jax.Array, sizes: jax.Array, transposed: bool) -> jax.Array:
        y = kernel.rows(x, w, sizes, transposed)
        return jnp.where(jnp.arange(len(y))[:, None] < sizes.sum(), y, jnp.nan)

    return Kernel(rows, kernel.weights)
