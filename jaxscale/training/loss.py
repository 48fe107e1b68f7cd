"""Cross entropy over a vocabulary that may be split over the mesh, in chunks of the sequence where asked.

The loss is a mean over the real tokens of the *global* batch: sums here, one division in the step.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxscale import config as cfg
from jaxscale.parallel.sharding import dims_of, gather, to_spec

Batch = dict[str, jax.Array]  # tokens, targets, weights [B, T]; positions, segments where documents are masked
Sums = dict[str, jax.Array]  # cross_entropy, z and objective, summed over real tokens


def loss_sums(
    model: nnx.Module,
    batch: Batch,
    *,
    loss: cfg.Loss,
    vocab_size: int,
    divisor: jax.Array | float = 1.0,
    rng: jax.Array | None = None,
) -> Sums:
    """Sums over the batch's real tokens of the cross entropy (nats), of log(Z)^2, and of what is minimised.

    Args:
        model: maps tokens [B, T] to logits [B, T, V >= vocab_size]. With `hidden`, `head` and `unembed` (as
            `Transformer` has; `unembed` reads nothing but its arguments) the logits are made chunk by chunk; without
            them `loss.chunk` is refused.
        divisor: of the objective: real tokens of the global batch. It belongs in here, so that the gradient's scale is
            1 and the last matrix's gradient, the step's largest array, is not copied to be scaled.

    Returns:
        `cross_entropy`, `z`, and `objective` = (cross_entropy + z_loss * z) / divisor, the one to differentiate.
    """
    arguments = model_arguments(model, batch, rng)
    if not hasattr(model, "hidden"):
        if loss.chunk is not None:
            raise ValueError(
                f"loss.chunk={loss.chunk} needs a model with hidden(), head() and unembed(); {type(model).__name__} "
                "has none; set loss.chunk=null"
            )
        logits = model(batch["tokens"], **arguments)  # type: ignore[operator]
        sums = cross_entropy_sums(logits, batch["targets"], batch["weights"], vocab_size=vocab_size)
        return with_objective(sums, loss.z_loss, divisor)
    hidden = model.hidden(batch["tokens"], **arguments)
    return chunked_sums(model, hidden, batch, loss=loss, vocab_size=vocab_size, divisor=divisor)


def with_objective(sums: Sums, z_loss: float, divisor: jax.Array | float) -> Sums:
    total = sums["cross_entropy"] + z_loss * sums["z"] if z_loss else sums["cross_entropy"]
    return sums | {"objective": total / divisor}


def model_arguments(model: nnx.Module, batch: Batch, rng: jax.Array | None) -> dict[str, Any]:
    """What this model's call takes beside tokens, of positions, segments and rngs (for dropout)."""
    accepted = inspect.signature(type(model).__call__).parameters
    arguments: dict[str, Any] = {k: batch[k] for k in ("positions", "segments") if k in batch and k in accepted}
    if "rngs" in accepted and rng is not None:
        arguments["rngs"] = nnx.Rngs(dropout=rng)
    return arguments


def chunked_sums(
    model: Any, hidden_BTD: jax.Array, batch: Batch, *, loss: cfg.Loss, vocab_size: int, divisor: jax.Array | float
) -> Sums:
    """The sums of the model's logits, with those of only `loss.chunk` tokens of each row alive at one time.

    The head's matrix is gathered once, before the loop, and its gradient is summed over chunks on the device and sent
    once, after it.
    """
    x_BTD = gather(hidden_BTD, "batch", "sequence", "embed", over="vocab")
    head = model.head(x_BTD)

    def sums(x, head, targets, weights, divisor):
        logits = model.unembed(x, head)
        with jax.named_scope("cross_entropy"):
            found = cross_entropy_sums(logits, targets, weights, vocab_size=vocab_size)
        return with_objective(found, loss.z_loss, divisor)

    run = sums if loss.chunk is None or loss.chunk >= x_BTD.shape[1] else in_chunks(sums, loss.chunk)
    return run(x_BTD, head, batch["targets"], batch["weights"], jnp.asarray(divisor, jnp.float32))


def in_chunks(sums: Callable[..., Sums], chunk: int) -> Callable[..., Sums]:
    """`sums(x, head, targets, weights, divisor)` over the sequence in chunks, its gradient made in the forward pass.

    A chunk's logits are there once: their gradient is taken at once, for a cotangent of 1, and scaled in the backward
    pass, as the objective is one number: it alone is differentiated, the other sums have no gradient. Making the logits
    again there would cost a third more of the last matmul. The last matrix's gradient is summed in the compute dtype.
    """

    def part(i, *arrays):
        return [jax.lax.dynamic_slice_in_dim(a, i * chunk, chunk, 1) for a in arrays]

    @jax.custom_vjp
    def run(x, head, targets, weights, divisor):
        def body(total, i):
            x_i, *rest = part(i, x, targets, weights)
            return jax.tree.map(jnp.add, total, sums(x_i, head, *rest, divisor)), None

        zeros = {name: jnp.zeros(()) for name in ("cross_entropy", "z", "objective")}
        return jax.lax.scan(body, zeros, jnp.arange(x.shape[1] // chunk))[0]

    def objective(x, head, *rest):
        found = sums(x, head, *rest)
        return found["objective"], found

    gradient = jax.grad(objective, argnums=(0, 1), has_aux=True)

    def forward(x, head, targets, weights, divisor):
        def chunk_gradient(i):
            x_i, *rest = part(i, x, targets, weights)
            return gradient(x_i, head, *rest, divisor)

        def body(carry, i):
            total, dhead = carry
            (dx_i, dhead_i), found = chunk_gradient(i)
            return (jax.tree.map(jnp.add, total, found), dhead + dhead_i), dx_i

        (dx_0, dhead), total = chunk_gradient(0)
        (total, dhead), dx = jax.lax.scan(body, (total, dhead), jnp.arange(1, x.shape[1] // chunk))
        return total, (dx_0, dx, dhead)

    def backward(saved, cotangent):
        dx_0, dx, dhead = saved

        def scaled(x):  # a number that multiplies partial sums must be marked so
            marks = set(jax.typeof(x).sharding.spec.unreduced)
            return jax.reshard(cotangent["objective"].astype(x.dtype), to_spec([], reduced=marks)) * x

        rest = [jax.lax.squeeze(jax.lax.slice_in_dim(dx, i, i + 1), (0,)) for i in range(dx.shape[0])]
        dx = jnp.concatenate([dx_0, *rest], axis=1)  # reshape knows no arrays that are unreduced
        return scaled(dx), scaled(dhead), None, None, None

    run.defvjp(forward, backward)
    return run


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
