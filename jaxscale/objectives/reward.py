"""A reward model: the score of a whole text, learnt from pairs (Bradley-Terry)."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxscale import config as cfg
from jaxscale.objectives.objective import Batch, Objective, Sums
from jaxscale.objectives.preference import by_pair, of_pairs, pair_numbers
from jaxscale.objectives.token_sums import hidden_and_sums, model_arguments

METRICS = ("loss", "accuracy", "margin", "chosen_score", "rejected_score")


def reward(config: cfg.Config) -> Objective:
    """The mean over pairs of -log sigmoid(c - r) + center (c + r)^2, of the scores after each document's last token.

    InstructGPT (arXiv:2203.02155, eq. 1); the second term, which holds scores near 0, is from arXiv:2312.09244. A row
    holds pairs as in `objectives.preference`.
    """
    center = config.objective.center

    def sums(
        model: nnx.Module, batch: Batch, *, divisor: jax.Array | float = 1.0, rng: jax.Array | None = None
    ) -> Sums:
        hidden_BTD, auxiliary = hidden_and_sums(model, batch, model_arguments(model, batch, rng))
        if not hasattr(model, "scores"):
            raise ValueError(f"objective.kind=reward needs a model with scores(); {type(model).__name__} has none")
        totals = pair_sums(model.scores(hidden_BTD), batch, center)
        return auxiliary | totals | {"objective": totals["loss"] / divisor}

    return of_pairs(config, sums, METRICS)


def pair_sums(scores_BT: jax.Array, columns: Batch, center: float) -> Sums:
    """Sums over pairs of the loss and of its metrics."""
    pairs, ends = pair_numbers(columns["segments"]), columns["ends"]
    first, second = (ends > 0).astype(jnp.float32), (ends < 0).astype(jnp.float32)
    chosen, rejected, there = (by_pair(x, pairs) for x in (scores_BT * first, scores_BT * second, first))
    margin = chosen - rejected
    metrics = {
        "loss": -jax.nn.log_sigmoid(margin) + center * jnp.square(chosen + rejected),
        "accuracy": (margin > 0).astype(jnp.float32),
        "margin": margin,
        "chosen_score": chosen,
        "rejected_score": rejected,
    }
    return {name: jnp.where(there > 0, x, 0).sum() for name, x in metrics.items()}
