"""What an evaluation measures of a state: first the loss of the validation split.

Each row of the split counts once, in parts no larger than the step's. Other measurers stand beside it.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax

from jaxscale import config as cfg
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.data.tokens import RowSource
from jaxscale.objectives import make_objective
from jaxscale.rollouts.measure import OfRollouts
from jaxscale.rollouts.prompts import PromptRows
from jaxscale.rollouts.worth import Judges
from jaxscale.training.each_once import EachOnce
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

    def numbers(self, values: Mapping[str, Any]) -> Mapping[str, float]:
        """Those of the values that TensorBoard and wandb plot."""
        ...

    def line(self, values: Mapping[str, Any]) -> str:
        """What the console says of the values."""
        ...


def open_measurers(
    config: cfg.Config, tokenizer: Tokenizer | None, judges: Judges, *, say: Callable[[str], None]
) -> list[Measurer]:
    """All that a run's evaluations measure, in their order.

    Args:
        judges: what says how good samples are, of a run that trains on samples.

    Raises:
        ValueError: data or abilities that cannot be used.
    """
    measurers: list[Measurer] = []
    rows = open_source(config, "validation", say=say)
    if isinstance(rows, PromptRows):
        measurers.append(OfRollouts(config, rows, judges))
    elif rows is not None:
        measurers.append(ValidationLoss(rows, config))
    if config.evaluation.abilities:
        from jaxscale.abilities.in_training import OfAbilities

        measurers.append(OfAbilities(config, tokenizer))
    return measurers


@dataclass(frozen=True)
class ValidationLoss:
    """The mean loss a token over the first rows of the validation split."""

    rows: RowSource
    config: cfg.Config
    kind: str = "validation"

    def __call__(self, program: Program, mesh: jax.sharding.Mesh, state: TrainState) -> dict[str, float]:
        return mean_loss(program.evaluate, state, self.rows, self.config, batch_sharding(mesh))

    def numbers(self, values: Mapping[str, Any]) -> Mapping[str, float]:
        return values

    def line(self, values: Mapping[str, Any]) -> str:
        return f"validation loss {values['loss']:.4f}"


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
