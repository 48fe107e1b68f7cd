"""What a model says of each target of many rows, on the mesh; and that of the model that a run began with, kept."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxscale import config as cfg
from jaxscale.data.examples.rows import ExampleRows
from jaxscale.data.rows import RowSource
from jaxscale.files.whole import write_whole
from jaxscale.objectives.objective import Batch, Sums
from jaxscale.objectives.token_values import token_values
from jaxscale.training.beginning import beginning_of, keep
from jaxscale.training.each_once import EachOnce
from jaxscale.training.feed import Feed
from jaxscale.training.initial import first_parameters
from jaxscale.training.step import Merge, Program, TrainState, batch_sharding, state_of
from jaxscale.training.whole_values import whole_values

Run = Callable[[TrainState, Batch], jax.Array]
Say = Callable[[str], None]


def log_probs_program(config: cfg.Config, merge: Merge) -> Run:
    """(state, batch [parts, B, T]) -> log-probabilities of its targets, float32, whole on every device; jitted."""
    vocab_size, chunk, temperature = config.model.vocab_size, config.loss.chunk, config.objective.temperature

    def read(model: nnx.Module, part: Batch) -> Sums:
        values = token_values(model, part, vocab_size=vocab_size, chunk=chunk, temperature=temperature)
        return {"log_p": values["log_p"]}

    run = whole_values(config, merge, read, name="target_log_probs")
    return lambda state, batch: run(state, batch)["log_p"]


# --- kept beside the tokens -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """Log-probabilities of a split's stored tokens, each given those before it in its document: float32.

    Attributes:
        values: as long as the split; [i + 1] is of token i + 1. 0 where no row asked.
        identity: of the model and of the tokens.
    """

    values: np.ndarray
    identity: str

    def read(self, start: int, count: int) -> np.ndarray:
        return np.asarray(self.values[start : start + count], np.float32)


class References:
    """The reference columns of a run's splits: found beside the run, or computed once."""

    def __init__(self, config: cfg.Config, program: Program, mesh: jax.sharding.Mesh, say: Say, *, resumed: bool):
        """`self.config` has the step of `init.from` that the run began from; `resumed`: the run has a checkpoint."""
        self.config, self.about = beginning_of(config, resumed=resumed)
        self.program, self.mesh, self.say = program, mesh, say
        self.made: dict[str, Reference] = {}
        self._begun: Callable[[Batch], jax.Array] | None = None  # holds the parameters

    def added(self, rows: RowSource, split: str) -> RowSource:
        """Rows of pairs with their reference column, where the objective reads one."""
        if not (self.config.objective.reads_reference and isinstance(rows, ExampleRows)):
            return rows
        source = identity_of(self.config, self.about)
        identity = hashlib.sha256(f"{source} {rows.content}".encode()).hexdigest()
        kept = kept_reference(self.config.out_dir, split, identity, rows.store.tokens.num_tokens)
        if kept is None:
            self.say(f"log-probabilities of {len(rows):,} {split} rows by {self.config.init.source}, once")
            kept = Reference(self.compute(rows), identity)
            self.made[split] = kept
        return replace(rows, reference=kept)

    def compute(self, rows: ExampleRows) -> np.ndarray:
        if self._begun is None:
            state = state_of(first_parameters(self.config, self.program))
            self._begun = partial(log_probs_program(self.config, self.program.merge), state)
        values = np.zeros(rows.store.tokens.num_tokens, np.float32)
        for i, log_p in all_rows(self.config, self.mesh, rows, self._begun):
            for number, at, length in rows.documents_in(i):
                start = int(rows.store.starts[number])
                values[start + 1 : start + length] = log_p[at : at + length - 1]
        return values

    def write(self) -> None:
        """Keep what was computed, and which parameters the run began from; by process 0."""
        keep(self.config, self.about)
        for split, one in self.made.items() if jax.process_index() == 0 else ():
            path = self.config.out_dir / f"reference-{split}.f32"
            write_whole(path, one.values.astype("<f4").tobytes())
            write_whole(path.with_suffix(".json"), json.dumps({"identity": one.identity}) + "\n")
        self.made, self._begun = {}, None


def kept_reference(out: Path, split: str, identity: str, tokens: int) -> Reference | None:
    """What a run keeps, where it is of this model and these tokens, and whole."""
    path = out / f"reference-{split}.f32"
    try:
        about = json.loads(path.with_suffix(".json").read_text())
        if about.get("identity") != identity or path.stat().st_size != 4 * tokens:
            return None
        return Reference(np.memmap(path, "<f4", "r", shape=(tokens,)), identity)
    except (OSError, ValueError, AttributeError):
        return None


def identity_of(config: cfg.Config, about: dict[str, Any]) -> str:
    """Which parameters a run began from, and what computes with them."""
    model = config.model.model_dump(mode="json")
    return json.dumps({**about, "model": model, "dtype": config.step.compute_dtype}, sort_keys=True)


def all_rows(
    config: cfg.Config, mesh: jax.sharding.Mesh, rows: RowSource, run: Callable[[Batch], jax.Array]
) -> Iterator[tuple[int, np.ndarray]]:
    """`run` of every row: its number and what it comes to [T], in reading order, on every process."""
    size = config.data.batch_size
    batches = -(-len(rows) // size)
    feed = Feed(
        EachOnce(rows, batches * size),
        config,
        batch_sharding(mesh),
        stop_step=batches,
        shuffle=False,
        microbatches=config.step.microbatches,
    )
    with contextlib.closing(feed):
        for number, batch in enumerate(feed):
            outputs = feed.places.read(run(batch))
            for r in range(min(size, len(rows) - number * size)):
                yield number * size + r, outputs[r]
