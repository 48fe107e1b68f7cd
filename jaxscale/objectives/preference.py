"""Preferences of one text over another (DPO and its kin), without a reward model: each row holds pairs of documents.

Documents 2j+1 and 2j+2 of a row are its pair j: the chosen text and the rejected one, each after the same prompt. So
nothing is paired across rows or devices. Weights are 1 at the chosen completion's targets, -1 at the rejected one's.
Dims: P pairs of a row.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxscale import config as cfg
from jaxscale.data.columns import MOST_PAIRS, PAIRS
from jaxscale.objectives.log_probs import log_prob_sums
from jaxscale.objectives.objective import Batch, Objective, Sums, SumsOf
from jaxscale.objectives.routers import per_token, router_means
from jaxscale.parallel.sharding import dims_of, to_spec

METRICS = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")


def preference(config: cfg.Config) -> Objective:
    """The mean over pairs of a loss of their completions' log-probabilities; see `losses`.

    `chosen_reward` and `rejected_reward` are beta times what a completion has gained over the reference, in nats: where
    the chosen one's falls too, the model moves away from both.
    """
    objective = config.objective
    read = ("weights", "segments", *(("reference",) if objective.reads_reference else ()))

    def of_log_probs(log_p: jax.Array, columns: Batch, divisor: jax.Array | float) -> Sums:
        sums = pair_sums(log_p, columns, objective)
        return sums | {"objective": sums["loss"] / divisor}

    def sums(
        model: nnx.Module, batch: Batch, *, divisor: jax.Array | float = 1.0, rng: jax.Array | None = None
    ) -> Sums:
        vocab_size, chunk = config.model.vocab_size, config.loss.chunk
        return log_prob_sums(
            model, batch, of_log_probs, read=read, vocab_size=vocab_size, chunk=chunk, divisor=divisor, rng=rng
        )

    return of_pairs(config, sums, METRICS)


def of_pairs(config: cfg.Config, sums: SumsOf, metrics: tuple[str, ...]) -> Objective:
    """An objective whose sums are divided by pairs; `metrics` name them."""
    moe, more = config.model.moe, ("reference",) if config.objective.reads_reference else ()
    return Objective(
        columns=(*PAIRS, *more),
        sums=sums,
        count=lambda batch: (batch["ends"] > 0).sum().astype(jnp.float32),
        means={name: name for name in metrics} | router_means(config),
        finish=(lambda metrics: per_token(metrics, moe.top_k)) if moe else None,
        unit="pairs",
        validated=metrics,
    )


def pair_sums(log_p: jax.Array, columns: Batch, objective: cfg.Objective) -> Sums:
    """Sums over pairs of the loss and of its metrics."""
    pairs, weights = pair_numbers(columns["segments"]), columns["weights"]
    chosen, rejected = (weights > 0).astype(jnp.float32), (weights < 0).astype(jnp.float32)
    log_c, log_r, n_c, n_r = (by_pair(x, pairs) for x in (log_p * chosen, log_p * rejected, chosen, rejected))
    there = n_c > 0
    gain_c, gain_r = log_c, log_r
    if objective.reads_reference:
        gain_c, gain_r = (g - by_pair(columns["reference"] * x, pairs) for g, x in ((log_c, chosen), (log_r, rejected)))
    n_c, n_r = jnp.maximum(n_c, 1), jnp.maximum(n_r, 1)
    loss, margin = losses(objective, (log_c / n_c, log_r / n_r), (gain_c, gain_r), (n_c, n_r))
    if objective.sft:
        loss = loss - objective.sft * log_c / n_c
    rewards = {"chosen_reward": objective.beta * gain_c, "rejected_reward": objective.beta * gain_r}
    metrics = {"loss": loss, "accuracy": (margin > 0).astype(jnp.float32), "margin": margin} | rewards
    return {name: jnp.where(there, x, 0).sum() for name, x in metrics.items()}


Two = tuple[jax.Array, jax.Array]  # of the chosen and the rejected completions, [B, P] each


def losses(objective: cfg.Objective, means: Two, gains: Two, lengths: Two) -> Two:
    """The loss of each pair, and the margin by which the chosen completion is preferred.

    sigmoid: arXiv:2305.18290, eq. 7, with label smoothing as in arXiv:2402.05369; hinge: arXiv:2305.10425; ipo:
    arXiv:2310.12036, eq. 17, over means of tokens; simpo: arXiv:2405.14734, eq. 6; orpo: arXiv:2403.07691, eq. 6 to 7.

    Args:
        means: log-probability a token.
        gains: log-probability of the completion, over the reference where the loss has one.
        lengths: tokens.
    """
    beta, log_sigmoid = objective.beta, jax.nn.log_sigmoid
    margin = beta * (gains[0] - gains[1])
    if objective.loss == "sigmoid":
        swapped = objective.label_smoothing
        return -(1 - swapped) * log_sigmoid(margin) - swapped * log_sigmoid(-margin), margin
    if objective.loss == "hinge":
        return jax.nn.relu(1 - margin), margin
    if objective.loss == "ipo":
        difference = gains[0] / lengths[0] - gains[1] / lengths[1]
        return jnp.square(difference - 1 / (2 * beta)), margin
    if objective.loss == "simpo":
        margin = beta * (means[0] - means[1])
        return -log_sigmoid(margin - objective.gamma), margin
    odds = [mean - jnp.log1p(-jnp.exp(jnp.minimum(mean, -1e-6))) for mean in means]  # log p / (1 - p)
    return -means[0] - beta * log_sigmoid(odds[0] - odds[1]), beta * (odds[0] - odds[1])


def pair_numbers(segments: jax.Array) -> jax.Array:
    """The pair, from 0, that each token of a row is of."""
    return (segments - 1) // 2


def by_pair(x_BT: jax.Array, pairs_BT: jax.Array) -> jax.Array:
    """Sums over each pair's tokens: [B, P], whole on the devices that share a row."""
    x, pairs = (jnp.expand_dims(a, 2) for a in (x_BT, pairs_BT))
    layout = to_spec([*dims_of(x_BT), ()])
    number = jax.lax.broadcasted_iota(jnp.int32, (*x_BT.shape, MOST_PAIRS), 2, out_sharding=layout)
    return jnp.where(number == pairs, x, 0).sum(1)
