"""Cross entropy over a vocabulary that may be split over the mesh, in chunks of the sequence where asked.

The loss is a mean over the real tokens of the *global* batch: sums here, one division in the step.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxscale import config as cfg
from jaxscale.parallel.sharding import dims_of, gather, to_spec

Batch = dict[str, jax.Array]  # tokens, targets, weights [B, T]; positions, segments where documents are masked
Sums = dict[str, jax.Array]  # cross_entropy and z, summed over real tokens


def loss_sums(
    model: nnx.Module, batch: Batch, *, loss: cfg.Loss, vocab_size: int, rng: jax.Array | None = None
) -> Sums:
    """Sums over the batch's real tokens of the cross entropy (nats) and of log(Z)^2.

    Args:
        model: maps tokens [B, T] to logits [B, T, V >= vocab_size]. With `hidden`, `head` and `unembed` (as
            `Transformer` has) the logits are made chunk by chunk; without them `loss.chunk` is refused.
    """
    arguments = model_arguments(model, batch, rng)
    if loss.chunk is None and not hasattr(model, "hidden"):
        logits = model(batch["tokens"], **arguments)  # type: ignore[operator]
        return cross_entropy_sums(logits, batch["targets"], batch["weights"], vocab_size=vocab_size)
    if not hasattr(model, "hidden"):
        raise ValueError(
            f"loss.chunk={loss.chunk} needs a model with hidden(), head() and unembed(); {type(model).__name__} has "
            "none; set loss.chunk=null"
        )
    hidden = model.hidden(batch["tokens"], **arguments)
    return chunked_sums(model, hidden, batch, chunk=loss.chunk, vocab_size=vocab_size)


def model_arguments(model: nnx.Module, batch: Batch, rng: jax.Array | None) -> dict[str, Any]:
    """What this model's call takes beside tokens, of positions, segments and rngs (for dropout)."""
    accepted = inspect.signature(type(model).__call__).parameters
    arguments: dict[str, Any] = {k: batch[k] for k in ("positions", "segments") if k in batch and k in accepted}
    if "rngs" in accepted and rng is not None:
        arguments["rngs"] = nnx.Rngs(dropout=rng)
    return arguments


def chunked_sums(model: Any, hidden_BTD: jax.Array, batch: Batch, *, chunk: int | None, vocab_size: int) -> Sums:
    """`cross_entropy_sums` of the model's logits, with those of only `chunk` tokens of each row alive at one time.

    The backward pass makes each chunk's logits again. The head's matrix is gathered once, before the loop, and its
    gradient is summed over chunks on the device and sent once, after it.
    """
    x_BTD = gather(hidden_BTD, "batch", "sequence", "embed", over="vocab")
    head = model.head(x_BTD)

    def sums(x, targets, weights):
        return cross_entropy_sums(model.unembed(x, head), targets, weights, vocab_size=vocab_size)

    T = x_BTD.shape[1]
    if chunk is None or chunk >= T:
        return sums(x_BTD, batch["targets"], batch["weights"])

    def body(total, i):
        parts = (
            jax.lax.dynamic_slice_in_dim(a, i * chunk, chunk, 1) for a in (x_BTD, batch["targets"], batch["weights"])
        )
        return jax.tree.map(jnp.add, total, jax.checkpoint(sums)(*parts)), None

    zero = {"cross_entropy": jnp.zeros(()), "z": jnp.zeros(())}
    return jax.lax.scan(body, zero, jnp.arange(T // chunk))[0]


def cross_entropy_sums(logits_BTV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array, *, vocab_size: int) -> Sums:
    """-log softmax(logits)[target] and log(Z)^2, weighted and summed; columns beyond `vocab_size` do not count.

    The target's logit is picked by comparing with the column's number: with vocab split, each device compares its
    own columns and two numbers a token are all-reduced (Megatron's parallel cross entropy, arXiv:1909.08053); an
    index lookup would gather the logits.
    """
    vocab = dims_of(logits_BTV)[2]
    logits = jax.reshard(logits_BTV.astype(jnp.float32), to_spec([*dims_of(targets_BT), vocab]))
    column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2, out_sharding=to_spec(dims_of(logits)))
    if logits.shape[-1] > vocab_size:
        logits = jnp.where(column < vocab_size, logits, -1e30)
    highest = jax.lax.stop_gradient(logits.max(-1))
    log_z = jnp.log(jnp.exp(logits - highest[..., None]).sum(-1)) + highest
    target = jnp.where(column == targets_BT[..., None], logits, 0).sum(-1)
    return {"cross_entropy": ((log_z - target) * weights_BT).sum(), "z": (jnp.square(log_z) * weights_BT).sum()}
