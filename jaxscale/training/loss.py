"""Cross entropy over a vocabulary that may be split over the mesh, in chunks of the sequence where asked.

The loss is a mean over the real tokens of the *global* batch: sums here, one division in the step.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxscale import config as cfg
from jaxscale.parallel.sharding import dims_of, gather, gradient_first, platform, shard_count, spec, to_spec

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

    The head's matrix is gathered once, before the loop, and its gradient is sent once, after it.
    """
    x_BTD, head = with_head(model, hidden_BTD)
    multiply, finish = (model.multiply, model.finish) if splits(model) else (model.unembed, lambda logits: logits)

    def sums(logits, targets, weights, divisor):
        with jax.named_scope("cross_entropy"):
            found = cross_entropy_sums(finish(logits), targets, weights, vocab_size=vocab_size)
        return with_objective(found, loss.z_loss, divisor)

    rest = (batch["targets"], batch["weights"], jnp.asarray(divisor, jnp.float32))
    if loss.chunk is None or loss.chunk >= x_BTD.shape[1]:
        return sums(multiply(x_BTD, head), *rest)
    if splits(model) and keeps_gradient(x_BTD, head):
        return keeping_gradient(sums, multiply, loss.chunk)(x_BTD, head, *rest)
    return adding_gradients(sums, multiply, loss.chunk, linear=splits(model))(x_BTD, head, *rest)


def with_head(model: Any, hidden_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Hidden states gathered for the last matmul, and its matrix, whose gradient is scattered before the layers'."""
    if not splits(model):
        x_BTD = gather(hidden_BTD, "batch", "sequence", "embed", over="vocab")
        return x_BTD, model.head(x_BTD)
    hidden_BTD, matrix = gradient_first(hidden_BTD, model.last_matrix)
    x_BTD = gather(hidden_BTD, "batch", "sequence", "embed", over="vocab")
    return x_BTD, model.gathered(x_BTD, matrix)


def splits(model: Any) -> bool:
    """Does the model say which part of `unembed` is the matmul (`multiply`), and what comes after it (`finish`)?"""
    return hasattr(model, "multiply") and hasattr(model, "finish")


def keeps_gradient(x_BTD: jax.Array, head: jax.Array) -> bool:
    """Do the gradients of all logits take less memory than adding up the last matrix's gradient in float32 would?

    That is so for few tokens a device, on a TPU: its matmul rounds that gradient to the head's type in any case, and so
    it is kept. Elsewhere it would be kept, and the matrix's gradient written, in float32.
    """
    tokens = math.prod(x_BTD.shape[:2]) // shard_count("batch") // shard_count("sequence")
    return platform() == "tpu" and tokens * head.dtype.itemsize <= x_BTD.shape[2] * 4


def part(i: jax.Array | int, chunk: int, *arrays: jax.Array) -> list[jax.Array]:
    return [jax.lax.dynamic_slice_in_dim(a, i * chunk, chunk, 1) for a in arrays]


def forward_in_chunks(sums: Callable[..., Sums], multiply: Callable, chunk: int) -> Callable[..., Sums]:
    """`sums` of the logits in chunks along the sequence, without a gradient."""

    def run(x, head, targets, weights, divisor):
        def body(total, i):
            x_i, *rest = part(i, chunk, x, targets, weights)
            return jax.tree.map(jnp.add, total, sums(multiply(x_i, head), *rest, divisor)), None

        zeros = {name: jnp.zeros(()) for name in ("cross_entropy", "z", "objective")}
        return jax.lax.scan(body, zeros, jnp.arange(x.shape[1] // chunk))[0]

    return run


def adding_gradients(sums: Callable[..., Sums], multiply: Callable, chunk: int, *, linear: bool) -> Callable[..., Sums]:
    """`(x, head, targets, weights, divisor)` to sums, in chunks, with the gradient made in the forward pass.

    A chunk's logits are there once: their gradient is taken at once, for a cotangent of 1, and scaled in the backward
    pass, as the objective is one number: it alone is differentiated, the other sums have no gradient. Making the logits
    again there would cost a third more of the last matmul. The last matrix's gradient is added up in float32 and
    rounded once: in the compute dtype its error would grow with the number of chunks.

    Args:
        linear: `multiply` is linear in the head; otherwise each chunk's gradient of the head is rounded too.
    """
    run = jax.custom_vjp(forward_in_chunks(sums, multiply, chunk))
    gradient = logits_gradient(sums)

    def forward(x, head, targets, weights, divisor):
        def chunk_gradient(i):
            x_i, *rest = part(i, chunk, x, targets, weights)
            logits, back = jax.vjp(multiply, x_i, head)
            dlogits, found = gradient(logits, *rest, divisor)
            dx, dhead = back(dlogits)
            return (dx, head_gradient(multiply, x_i, head, dlogits) if linear else dhead.astype(jnp.float32)), found

        def body(carry, i):
            total, dhead = carry
            (dx_i, dhead_i), found = chunk_gradient(i)
            return (jax.tree.map(jnp.add, total, found), dhead + dhead_i), dx_i

        first, total = chunk_gradient(0)
        # the first chunk ends before the others begin, or its logits would be kept beside theirs
        dx_0, dhead = jax.lax.optimization_barrier(first)
        (total, dhead), dx = jax.lax.scan(body, (total, dhead), jnp.arange(1, x.shape[1] // chunk))
        return total, (dx_0, dx, dhead.astype(head.dtype))

    def backward(saved, cotangent):
        dx_0, dx, dhead = saved
        rest = [jax.lax.squeeze(jax.lax.slice_in_dim(dx, i, i + 1), (0,)) for i in range(dx.shape[0])]
        dx = jnp.concatenate([dx_0, *rest], axis=1)  # reshape knows no arrays that are unreduced
        return scaled(dx, cotangent), scaled(dhead, cotangent), None, None, None

    run.defvjp(forward, backward)
    return run


def logits_gradient(sums: Callable[..., Sums]) -> Callable:
    """`(logits, targets, weights, divisor)` to the objective's gradient by the logits, and all sums."""

    def objective(logits, *rest):
        found = sums(logits, *rest)
        return found["objective"], found

    return jax.grad(objective, has_aux=True)


def head_gradient(multiply: Callable, x: jax.Array, head: jax.Array, dlogits: jax.Array) -> jax.Array:
    """The head's gradient in float32, for a `multiply` that is linear in it."""
    wide = x.astype(jnp.float32)  # a gradient has its argument's type: the head as float32 is only a shape here
    return jax.linear_transpose(lambda head: multiply(wide, head), head.astype(jnp.float32))(dlogits)[0]


def scaled(x: jax.Array, cotangent: Sums) -> jax.Array:
    """A gradient made for a cotangent of 1. A number that multiplies partial sums must be marked so."""
    marks = set(jax.typeof(x).sharding.spec.unreduced)
    return jax.reshard(cotangent["objective"].astype(x.dtype), to_spec([], reduced=marks)) * x


def keeping_gradient(sums: Callable[..., Sums], multiply: Callable, chunk: int) -> Callable[..., Sums]:
    """As `adding_gradients`, but the loop makes the logits' gradient alone, of all tokens; both matmuls follow it.

    `multiply` must be linear in each of its arguments.
    """
    run = jax.custom_vjp(forward_in_chunks(sums, multiply, chunk))
    gradient = logits_gradient(sums)

    def forward(x, head, targets, weights, divisor):
        def body(carry, i):
            total, kept = carry
            x_i, *rest = part(i, chunk, x, targets, weights)
            dlogits, found = gradient(multiply(x_i, head), *rest, divisor)
            kept = jax.lax.dynamic_update_slice_in_dim(kept, dlogits.astype(kept.dtype), i * chunk, 1)
            return (jax.tree.map(jnp.add, total, found), kept), None

        zeros = {name: jnp.zeros(()) for name in ("cross_entropy", "z", "objective")}
        shape = jax.eval_shape(multiply, x, head).shape
        kept = jnp.zeros(shape, head.dtype, out_sharding=spec("batch", "sequence", "vocab"))
        (total, kept), _ = jax.lax.scan(body, (zeros, kept), jnp.arange(x.shape[1] // chunk))
        return total, (x, head, kept)

    def backward(saved, cotangent):
        x, head, kept = saved
        kept = kept.astype(jnp.float32)
        (dx,) = jax.vjp(lambda x: multiply(x, head), x)[1](kept * cotangent["objective"])
        dx, kept = jax.lax.optimization_barrier((dx, kept))  # then the head is not kept beside its gradient
        dhead = head_gradient(multiply, x, head, kept * cotangent["objective"]).astype(head.dtype)
        return dx, dhead, None, None, None

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
