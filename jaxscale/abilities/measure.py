"""How well a model knows the answers of tasks: one pass over prompt and answer, on any mesh.

Rows are split over the mesh as a batch of training is. All rows of one call have one length, so one program runs them.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxscale import config as cfg
from jaxscale.abilities.rows import Prepared, Row
from jaxscale.abilities.score import Scored, measured
from jaxscale.blueprint.sequence import in_zigzag
from jaxscale.models.transformer import Transformer
from jaxscale.objectives.objective import Batch, Sums
from jaxscale.objectives.token_values import token_values
from jaxscale.parallel.sharding import device
from jaxscale.training.feed import Feed
from jaxscale.training.regroup import shaped_for
from jaxscale.training.step import Program, TrainState, all_parameters, batch_sharding
from jaxscale.training.whole_values import whole_values

LEAST = 16  # tokens of a row, at least; on devices whose kernels want them LEAST_OF_A_KERNEL
LEAST_OF_A_KERNEL = 128
Run = Callable[[TrainState, Batch], Sums]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows as a source of data: padded to one length, what fills them weighs nothing. See `data.rows.RowSource`."""

    rows: Sequence[Row]
    seq_len: int
    vocab_size: int
    columns: tuple[str, ...] = ("tokens", "targets", "weights")
    separator_id: int | None = None  # each row is one document
    fingerprint: str | None = None
    content: str | None = None
    num_rows: int = 0

    def __len__(self) -> int:
        return self.num_rows

    def row(self, i: int) -> dict[str, np.ndarray]:
        tokens, targets = np.zeros((2, self.seq_len), np.int32)
        weights = np.zeros(self.seq_len, np.float32)
        if i < len(self.rows):
            one, n = self.rows[i], len(self.rows[i].tokens) - 1
            tokens[:n], targets[:n], weights[one.start - 1 : n] = one.tokens[:-1], one.tokens[1:], 1
        return {"tokens": tokens, "targets": targets, "weights": weights}


@dataclass
class Measure:
    """Measures tasks by a program's model, as often as is asked; a length of rows is compiled once.

    Call it inside `on_mesh`.
    """

    config: cfg.Config
    program: Program
    mesh: jax.sharding.Mesh
    runs: dict[int, Run] = field(default_factory=dict)

    def __call__(
        self, state: TrainState, tasks: Sequence[Prepared], *, before: Callable[[int], None] = lambda batch: None
    ) -> list[dict[str, Any]]:
        """A record of each task; see `score.measured`.

        Args:
            before: told of each batch, from 1.
        """
        every = [row for one in tasks for texts in one.rows for row in texts.values()]
        scores = iter(self.scores(state, every, before=before))
        return [measured(one.task, [{text: next(scores) for text in texts} for texts in one.rows]) for one in tasks]

    def scores(
        self, state: TrainState, rows: Sequence[Row], *, before: Callable[[int], None] = lambda batch: None
    ) -> list[Scored]:
        """The scored tokens of each row."""
        size, vocab = self.config.data.batch_size, self.config.model.vocab_size
        longest = max(len(row.tokens) - 1 for row in rows)
        config = with_length(self.config, longest, self.mesh) if self.reads_any_length else self.config
        batches = -(-len(rows) // size)
        source = Rows(rows, config.data.seq_len, vocab, num_rows=batches * size)
        feed = Feed(
            source,
            config,
            batch_sharding(self.mesh),
            stop_step=batches,
            shuffle=False,
            microbatches=config.step.microbatches,
        )
        run, outputs = self.run(config), []
        with contextlib.closing(feed):
            for number, batch in enumerate(feed, start=1):
                before(number)
                outputs.append(run(state, batch))
                jax.block_until_ready(outputs[-2:-1])  # one batch waits on the devices, not all of them
        log_p, right = (np.concatenate([feed.places.read(one[name]) for one in outputs]) for name in ("log_p", "right"))
        spans = [slice(row.start - 1, len(row.tokens) - 1) for row in rows]
        return [Scored(log_p[i, span], right[i, span] == 1) for i, span in enumerate(spans)]

    @cached_property
    def reads_any_length(self) -> bool:
        """Is it the decoder? A model of the user's own may have parameters for every position of a row."""
        abstract = shaped_for(self.program.abstract, 0)
        return isinstance(self.program.merge(all_parameters(abstract, abstract.params)), Transformer)

    def run(self, config: cfg.Config) -> Run:
        """The program for rows of this length: scores [parts, B, T], whole on every device."""
        length = config.data.seq_len
        if length not in self.runs:

            def read(model: nnx.Module, part: Batch) -> Sums:
                return token_values(model, part, vocab_size=config.model.vocab_size, chunk=config.loss.chunk)

            self.runs[length] = whole_values(config, self.program.merge, read, name="token_scores")
        return self.runs[length]


def with_length(config: cfg.Config, tokens: int, mesh: jax.sharding.Mesh) -> cfg.Config:
    """`config` with rows of `data.seq_len` halved as often as these tokens, the mesh and its kernels allow."""
    length, least = config.data.seq_len, LEAST if device().platform == "cpu" else LEAST_OF_A_KERNEL
    while (half := length // 2) >= max(tokens, least) and length % 2 == 0 and half % (2 * mesh.size) == 0:
        length = half
    shorter = config.model_copy(update={"data": config.data.model_copy(update={"seq_len": length})})
    if in_zigzag(shorter) != in_zigzag(config):  # rows under a sliding window lie in another order
        return config
    if config.loss.chunk and length % config.loss.chunk:
        shorter = shorter.model_copy(update={"loss": config.loss.model_copy(update={"chunk": None})})
    return shorter
