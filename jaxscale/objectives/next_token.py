"""Maximum likelihood of the next token: cross entropy and z-loss, a weighted mean over the *global* batch's tokens."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxscale import config as cfg
from jaxscale.data.columns import NEXT
from jaxscale.objectives.objective import Batch, Objective, Sums
from jaxscale.objectives.routers import of_routers, router_means, with_routers
from jaxscale.objectives.token_sums import token_sums
from jaxscale.parallel.sharding import dims_of, to_spec


def next_token(config: cfg.Config) -> Objective:
    """The mean over real tokens of -log p(target) + z_loss * log(Z)^2 (PaLM, arXiv:2204.02311, section 5).

    A token counts as much as its weight. The mean's divisor is the sum of the weights. To it come the losses of the
    routers: see `objectives.routers`.
    """

    def of_logits(logits_BTV: jax.Array, columns: Batch, divisor: jax.Array | float) -> Sums:
        sums = cross_entropy_sums(logits_BTV, **columns, vocab_size=config.model.vocab_size)
        return with_objective(sums, config.loss.z_loss, divisor)

    def sums(
        model: nnx.Module, batch: Batch, *, divisor: jax.Array | float = 1.0, rng: jax.Array | None = None
    ) -> Sums:
        read = ("targets", "weights")
        totals = token_sums(model, batch, of_logits, read=read, chunk=config.loss.chunk, divisor=divisor, rng=rng)
        return with_routers(totals, config.loss, divisor)

    def of_layers(sums: Sums, divisor: jax.Array | float) -> jax.Array:
        return of_routers(sums, config.loss, divisor)

    return Objective(
        columns=NEXT,
        sums=sums,
        count=lambda batch: batch["weights"].sum(),
        means={"loss": "cross_entropy", "z": "z"} | router_means(config),
        of_layers=of_layers if config.model.moe else None,
    )


def with_objective(sums: Sums, z_loss: float, divisor: jax.Array | float) -> Sums:
    total = sums["cross_entropy"] + z_loss * sums["z"] if z_loss else sums["cross_entropy"]
    return sums | {"objective": total / divisor}


def cross_entropy_sums(logits_BTV: jax.Array, targets: jax.Array, weights: jax.Array, *, vocab_size: int) -> Sums:
    """-log softmax(logits)[target] and log(Z)^2, weighted and summed; `targets` and `weights` are [B, T]."""
    _, _, log_z, target = parts_of_softmax(logits_BTV, targets, vocab_size=vocab_size)
    return {"cross_entropy": ((log_z - target) * weights).sum(), "z": (jnp.square(log_z) * weights).sum()}


def parts_of_softmax(
    logits_BTV: jax.Array, targets: jax.Array, *, vocab_size: int, temperature: float = 1.0
) -> tuple[jax.Array, ...]:
    """Float32 logits without columns beyond `vocab_size`, their numbers, and of each target log(Z) and the logit.

    The target's logit is picked by comparing with the column's number: with vocab split, each device compares its
    own columns and two numbers a token are all-reduced (Megatron's parallel cross entropy, arXiv:1909.08053); an
    index lookup would gather the logits.

    Args:
        temperature: what logits are divided by before all else.
    """
    vocab = dims_of(logits_BTV)[2]
    logits = jax.reshard(logits_BTV.astype(jnp.float32), to_spec([*dims_of(targets), vocab]))
    logits = logits if temperature == 1 else logits / temperature
    column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2, out_sharding=to_spec(dims_of(logits)))
    if logits.shape[-1] > vocab_size:
        logits = jnp.where(column < vocab_size, logits, -1e30)
    highest = jax.lax.stop_gradient(logits.max(-1))
    log_z = jnp.log(jnp.exp(logits - highest[..., None]).sum(-1)) + highest
    return logits, column, log_z, jnp.where(column == targets[..., None], logits, 0).sum(-1)
