"""Policy gradients on samples of the model itself: PPO's clipped surrogate, GRPO and its kin, GSPO.

Each row holds one sample. `advantages` says how much better it was than expected, `old` how likely its tokens were when
it was sampled. The weights carry the aggregation: see `rollouts.round`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxscale import config as cfg
from jaxscale.data.columns import SAMPLES
from jaxscale.objectives.log_probs import log_prob_sums
from jaxscale.objectives.next_token import parts_of_softmax
from jaxscale.objectives.objective import Batch, Objective, Sums
from jaxscale.objectives.routers import of_routers, per_token, router_means, with_routers
from jaxscale.objectives.token_sums import token_sums

OF_TOKENS = ("entropy", "clipped_low", "clipped_high", "mismatch", "kl_old")  # means over sampled tokens


def policy(config: cfg.Config) -> Objective:
    """-min(r A, clip(r, 1 - low, 1 + high) A) + kl k3, weighted; r = p(token) / p_old(token).

    PPO (arXiv:1707.06347, eq. 7); GRPO (arXiv:2402.03300, eq. 3); clip-higher and the mean over all tokens: DAPO
    (arXiv:2503.14476); the sum over max_new: Dr. GRPO (arXiv:2503.20783); one ratio a sample: GSPO (arXiv:2507.18071).
    k3 = exp(q) - q - 1 with q = log(p_reference / p) (joschu.net/blog/kl-approx.html), times r, so that its gradient
    is the divergence's own for samples of an older model.

    With one update on each round of samples r is 1 by definition: `old` then only tells how far sampling and training
    differ.
    """
    objective = config.objective
    more = ("reference",) if objective.reads_reference else ()
    read = ("weights", "advantages", "old", *more)

    def of_log_probs(log_p: jax.Array, columns: Batch, divisor: jax.Array | float) -> Sums:
        sums = surrogate(log_p, columns, objective)
        return sums | {"objective": sums["loss"] / divisor}

    def of_logits(logits_BTV: jax.Array, columns: Batch, divisor: jax.Array | float) -> Sums:
        parts = parts_of_softmax(
            logits_BTV, columns["targets"], vocab_size=config.model.vocab_size, temperature=objective.temperature
        )
        logits, _, log_z, target = parts
        entropy = log_z - (jnp.exp(logits - log_z[..., None]) * jnp.maximum(logits, -1e29)).sum(-1)
        entropy = jax.lax.stop_gradient(entropy * (columns["weights"] > 0)).sum()
        return of_log_probs(target - log_z, columns, divisor) | {"entropy": entropy}

    def sums(
        model: nnx.Module, batch: Batch, *, divisor: jax.Array | float = 1.0, rng: jax.Array | None = None
    ) -> Sums:
        if objective.level == "token":
            totals = token_sums(model, batch, of_logits, read=("targets", *read), chunk=config.loss.chunk,
                                divisor=divisor, rng=rng)  # fmt: skip
        else:
            totals = log_prob_sums(model, batch, of_log_probs, read=read, vocab_size=config.model.vocab_size,
                                   temperature=objective.temperature, chunk=config.loss.chunk, divisor=divisor,
                                   rng=rng)  # fmt: skip
        return with_routers(totals, config.loss, divisor) if objective.aggregate == "dapo" else totals

    names = token_metrics(objective)
    by_tokens = config.model.moe is not None and objective.aggregate == "dapo"
    return Objective(
        columns=(*SAMPLES, *more),
        sums=sums,
        count=lambda batch: divisor_of(config, batch),
        means={"loss": "loss", "sampled": "sampled"} | {name: name for name in names} | router_means(config),
        finish=lambda metrics: finished(metrics, names, config.model.moe),
        of_layers=(lambda sums, divisor: of_routers(sums, config.loss, divisor)) if by_tokens else None,
        unit="samples" if objective.aggregate != "dapo" else "tokens",
        validated=("loss",),
    )


def token_metrics(objective: cfg.Objective) -> tuple[str, ...]:
    """Metrics that are means over sampled tokens."""
    names = [name for name in OF_TOKENS if name != "entropy" or objective.level == "token"]
    return (*names, *(("kl", "kl_k1") if objective.reads_reference else ()))


def finished(metrics: Sums, names: tuple[str, ...], moe: cfg.Moe | None) -> Sums:
    """Means over sampled tokens, whatever the loss is divided by."""
    sampled = jnp.maximum(metrics["sampled"], 1e-30)
    means = {name: metrics[name] / sampled for name in names}
    rest = {name: x for name, x in metrics.items() if name != "sampled"} | means
    return per_token(rest, moe.top_k) if moe else rest


def divisor_of(config: cfg.Config, batch: Batch) -> jax.Array:
    """What weighted sums are divided by: with dr_grpo a constant, so that a longer sample weighs more."""
    if config.objective.aggregate == "dr_grpo":
        return jnp.asarray(float(config.data.batch_size * config.objective.max_new))
    total: jax.Array = batch["weights"].sum()
    return total


def surrogate(log_p: jax.Array, columns: Batch, objective: cfg.Objective) -> Sums:
    """Weighted sums over tokens of the loss; sums over sampled tokens of its metrics."""
    weights, advantages = columns["weights"], columns["advantages"]
    sampled = (weights > 0).astype(jnp.float32)
    drift = (jax.lax.stop_gradient(log_p) - columns["old"]) * sampled  # of training from sampling
    old = jax.lax.stop_gradient(log_p) if objective.updates == 1 else columns["old"]
    log_ratio = (log_p - old) * sampled
    if objective.level == "sequence":
        mean = log_ratio.sum(1, keepdims=True) / jnp.maximum(sampled.sum(1, keepdims=True), 1)
        log_ratio = mean * jnp.ones_like(sampled)
    ratio, (low, high) = jnp.exp(log_ratio), objective.clip
    loss = -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - low, 1 + high) * advantages)
    metrics = {
        "sampled": sampled,
        "mismatch": jnp.abs(drift),
        "kl_old": jnp.exp(drift) - drift - 1,
        "clipped_low": ((ratio < 1 - low) & (advantages < 0)) * sampled,
        "clipped_high": ((ratio > 1 + high) & (advantages > 0)) * sampled,
    }
    if objective.reads_reference:
        gap = (columns["reference"] - log_p) * sampled
        k3 = jnp.exp(gap) - gap - 1
        loss = loss + objective.kl * k3 * ratio
        metrics |= {"kl": k3, "kl_k1": -gap}
    metrics = {name: jax.lax.stop_gradient(x.astype(jnp.float32)).sum() for name, x in metrics.items()}
    return {"loss": (weights * loss).sum()} | metrics
