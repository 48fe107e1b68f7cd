"""What an evaluation measures of a state: first the loss of the validation split.

Each row of the split counts once, in parts no larger than the step's. Other measurers stand beside it.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from jaxscale import config as cfg
from jaxscale.data.columns import COUNTED
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.data.tokens import RowSource
from jaxscale.objectives import make_objective
from jaxscale.training.feed import Feed, open_source
from jaxscale.training.step import Program, TrainState, batch_sharding


class Measurer(Protocol):
    """Something that each evaluation measures, always of the same examples; called inside `on_mesh`.

    Attributes:
        kind: of its records in metrics.jsonl.
    """

    @property
    def kind(self) -> str: ...

    def __call__(self, program: Program, mesh: jax.sharding.Mesh, state: TrainState) -> Mapping[str, Any]:
        """The record's values; `loss` among them is the run's validation loss."""
        ...

    def numbers(self, found: Mapping[str, Any]) -> Mapping[str, float]:
        """Those of them that TensorBoard and wandb plot."""
        ...

    def line(self, found: Mapping[str, Any]) -> str:
        """What the console says of them."""
        ...


def open_measurers(config: cfg.Config, tokenizer: Tokenizer | None, *, say: Callable[[str], None]) -> list[Measurer]:
    """All that a run's evaluations measure, in their order.

    Raises:
        ValueError: data or abilities that cannot be used.
    """
    found: list[Measurer] = []
    if (rows := open_source(config, "validation", say=say)) is not None:
        found.append(ValidationLoss(rows, config))
    if config.evaluation.abilities:
        from jaxscale.abilities.in_training import OfAbilities

        found.append(OfAbilities(config, tokenizer))
    return found


@dataclass(frozen=True)
class ValidationLoss:
    """The mean loss a token over the first rows of the validation split."""

    rows: RowSource
    config: cfg.Config
    kind: str = "validation"

    def __call__(self, program: Program, mesh: jax.sharding.Mesh, state: TrainState) -> dict[str, float]:
        return mean_loss(program.evaluate, state, self.rows, self.config, batch_sharding(mesh))

    def numbers(self, found: Mapping[str, Any]) -> Mapping[str, float]:
        return found

    def line(self, found: Mapping[str, Any]) -> str:
        return f"validation loss {found['loss']:.4f}"


@dataclass(frozen=True)
class EachOnce:
    """The first `num_rows` rows of a source; those that it does not have weigh nothing, so that none counts twice."""

    source: RowSource
    num_rows: int

    @property
    def seq_len(self) -> int:
        return self.source.seq_len

    @property
    def vocab_size(self) -> int:
        return self.source.vocab_size

    @property
    def separator_id(self) -> int | None:
        return self.source.separator_id

    @property
    def fingerprint(self) -> str | None:
        return self.source.fingerprint

    @property
    def content(self) -> str | None:
        return self.source.content

    @property
    def columns(self) -> tuple[str, ...]:
        return self.source.columns

    def __len__(self) -> int:
        return self.num_rows

    def row(self, i: int) -> dict[str, np.ndarray]:
        if i < len(self.source):
            return self.source.row(i)
        first = self.source.row(0)
        return first | {name: np.zeros_like(first[name]) for name in COUNTED if name in first}


def mean_loss(
    evaluate: Callable[[Any, Any], dict[str, jax.Array]],
    state: Any,
    rows: RowSource,
    config: cfg.Config,
    layout: jax.sharding.Sharding,
) -> dict[str, float]:
    """The objective's means over the first rows of a split, `evaluation.batches` batches of them at most.

    `loss` is among them. Also `batches`, and what they are the means of, by its name (`tokens`). `evaluate` is the
    program's.
    """
    objective, size = make_objective(config), config.data.batch_size
    batches = min(config.evaluation.batches, -(-len(rows) // size))
    feed = Feed(
        EachOnce(rows, batches * size),
        config,
        layout,
        stop_step=batches,
        shuffle=False,
        microbatches=config.step.microbatches,
    )
    sums: list[dict[str, jax.Array]] = []
    with contextlib.closing(feed):
        for batch in feed:
            sums.append(evaluate(state, batch))
            jax.block_until_ready(sums[-2:-1])  # one batch waits on the devices, not all of them
    host = jax.device_get(sums)
    total = {name: sum(float(s[name]) for s in host) for name in host[0]}
    means = {name: total[objective.means[name]] / total[objective.unit] for name in objective.validated}
    return means | {"batches": batches, objective.unit: total[objective.unit]}
