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
    own = config.objective
    more = ("reference",) if own.reads_reference else ()
    read = ("weights", "advantages", "old", *more)

    def of_log_probs(log_p: jax.Array, columns: Batch, divisor: jax.Array | float) -> Sums:
        sums = surrogate(log_p, columns, own)
        return sums | {"objective": sums["loss"] / divisor}

    def of_logits(logits_BTV: jax.Array, columns: Batch, divisor: jax.Array | float) -> Sums:
        parts = parts_of_softmax(
            logits_BTV, columns["targets"], vocab_size=config.model.vocab_size, temperature=own.temperature
        )
        logits, _, log_z, target = parts
        entropy = log_z - (jnp.exp(logits - log_z[..., None]) * jnp.maximum(logits, -1e29)).sum(-1)
        entropy = jax.lax.stop_gradient(entropy * (columns["weights"] > 0)).sum()
        return of_log_probs(target - log_z, columns, divisor) | {"entropy": entropy}

    def sums(
        model: nnx.Module, batch: Batch, *, divisor: jax.Array | float = 1.0, rng: jax.Array | None = None
    ) -> Sums:
        if own.level == "token":
            found = token_sums(model, batch, of_logits, read=("targets", *read), chunk=config.loss.chunk,
                               divisor=divisor, rng=rng)  # fmt: skip
        else:
            found = log_prob_sums(model, batch, of_log_probs, read=read, vocab_size=config.model.vocab_size,
                                  temperature=own.temperature, chunk=config.loss.chunk, divisor=divisor,
                                  rng=rng)  # fmt: skip
        return with_routers(found, config.loss, divisor) if own.aggregate == "dapo" else found

    told = told_of(own)
    by_tokens = config.model.moe is not None and own.aggregate == "dapo"
    return Objective(
        columns=(*SAMPLES, *more),
        sums=sums,
        count=lambda batch: divisor_of(config, batch),
        means={"loss": "loss", "sampled": "sampled"} | {name: name for name in told} | router_means(config),
        finish=lambda metrics: finished(metrics, told, config.model.moe),
        of_layers=(lambda sums, divisor: of_routers(sums, config.loss, divisor)) if by_tokens else None,
        unit="samples" if own.aggregate != "dapo" else "tokens",
        validated=("loss",),
    )


def told_of(own: cfg.Objective) -> tuple[str, ...]:
    """Metrics that are means over sampled tokens."""
    names = [name for name in OF_TOKENS if name != "entropy" or own.level == "token"]
    return (*names, *(("kl", "kl_k1") if own.reads_reference else ()))


def finished(metrics: Sums, told: tuple[str, ...], moe: cfg.Moe | None) -> Sums:
    """Means over sampled tokens, whatever the loss is divided by."""
    sampled = jnp.maximum(metrics["sampled"], 1e-30)
    means = {name: metrics[name] / sampled for name in told}
    rest = {name: x for name, x in metrics.items() if name != "sampled"} | means
    return per_token(rest, moe.top_k) if moe else rest


def divisor_of(config: cfg.Config, batch: Batch) -> jax.Array:
    """What weighted sums are divided by: with dr_grpo a constant, so that a longer sample weighs more."""
    if config.objective.aggregate == "dr_grpo":
        return jnp.asarray(float(config.data.batch_size * config.objective.max_new))
    total: jax.Array = batch["weights"].sum()
    return total


def surrogate(log_p: jax.Array, columns: Batch, own: cfg.Objective) -> Sums:
    """Weighted sums over tokens of the loss; sums over sampled tokens of what is told of it."""
    weights, advantages = columns["weights"], columns["advantages"]
    sampled = (weights > 0).astype(jnp.float32)
    drift = (jax.lax.stop_gradient(log_p) - columns["old"]) * sampled  # of training from sampling
    old = jax.lax.stop_gradient(log_p) if own.updates == 1 else columns["old"]
    log_ratio = (log_p - old) * sampled
    if own.level == "sequence":
        mean = log_ratio.sum(1, keepdims=True) / jnp.maximum(sampled.sum(1, keepdims=True), 1)
        log_ratio = mean * jnp.ones_like(sampled)
    ratio, (low, high) = jnp.exp(log_ratio), own.clip
    loss = -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - low, 1 + high) * advantages)
    told = {
        "sampled": sampled,
        "mismatch": jnp.abs(drift),
        "kl_old": jnp.exp(drift) - drift - 1,
        "clipped_low": ((ratio < 1 - low) & (advantages < 0)) * sampled,
        "clipped_high": ((ratio > 1 + high) & (advantages > 0)) * sampled,
    }
    if own.reads_reference:
        gap = (columns["reference"] - log_p) * sampled
        k3 = jnp.exp(gap) - gap - 1
        loss = loss + own.kl * k3 * ratio
        told |= {"kl": k3, "kl_k1": -gap}
    told = {name: jax.lax.stop_gradient(x.astype(jnp.float32)).sum() for name, x in told.items()}
    return {"loss": (weights * loss).sum()} | told
