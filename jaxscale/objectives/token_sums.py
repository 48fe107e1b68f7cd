"""Sums over tokens of a function of their logits, in chunks of the sequence where asked.

The vocabulary may be split over the mesh. A chunk's logits exist once; their gradient is made in the forward pass.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxscale.objectives.chunks import joined, part, with_part
from jaxscale.objectives.objective import Batch, Sums
from jaxscale.parallel.sharding import (
    axes_of,
    gather,
    gradient_first,
    nought,
    platform,
    reading_order,
    shard_count,
    spec,
    to_spec,
)

# (logits [B, T, V], columns [B, T], divisor) -> sums, `objective` among them
OfLogits = Callable[[jax.Array, Batch, jax.Array | float], Sums]
Multiply = Callable[[jax.Array, jax.Array], jax.Array]  # hidden states, head -> logits
PyTree = Any
Saved = tuple[jax.Array, jax.Array, jax.Array]  # from the forward to the backward pass


def token_sums(
    model: Any,
    batch: Batch,
    of_logits: OfLogits,
    *,
    read: tuple[str, ...],
    chunk: int | None,
    divisor: jax.Array | float = 1.0,
    rng: jax.Array | None = None,
) -> Sums:
    """`of_logits` of the model's logits, summed over the chunks, and the auxiliary sums of the model's layers.

    Args:
        model: maps tokens [B, T] to logits [B, T, V >= vocab_size]. With `hidden`, `head` and `unembed` (as
            `Transformer` has; `unembed` reads nothing but its arguments) the logits are made chunk by chunk; without
            them a chunk is refused.
        of_logits: its sums over tokens must add up over chunks.
        read: the columns that `of_logits` takes.
        chunk: tokens of each row whose logits exist at one time; None: all.
        divisor: of the objective, handed to `of_logits`.
        rng: for dropout.
    """
    arguments, columns = model_arguments(model, batch, rng), {name: batch[name] for name in read}
    if not hasattr(model, "hidden"):
        require_whole_logits(model, chunk)
        return of_logits(model(batch["tokens"], **arguments), columns, divisor)
    hidden_BTD, auxiliary = hidden_and_sums(model, batch, arguments)
    return auxiliary | chunked_sums(model, hidden_BTD, columns, of_logits, chunk=chunk, divisor=divisor)


def require_whole_logits(model: Any, chunk: int | None) -> None:
    """ValueError for chunks of a model that makes its logits in one piece."""
    if chunk is not None:
        raise ValueError(
            f"loss.chunk={chunk} needs a model with hidden(), head() and unembed(); {type(model).__name__} has none; "
            "set loss.chunk=null"
        )


def hidden_and_sums(model: Any, batch: Batch, arguments: dict[str, Any]) -> tuple[jax.Array, Sums]:
    """Hidden states and the auxiliary sums of a model's layers; a model that has no such method has no sums.

    In these sums a token counts as much as its target, where the model asks for that.
    """
    if not hasattr(model, "hidden_and_sums"):
        return model.hidden(batch["tokens"], **arguments), {}
    if "weights" in batch and "counted" in inspect.signature(type(model).hidden_and_sums).parameters:
        arguments = arguments | {"counted": counted(batch)}
    both: tuple[jax.Array, Sums] = model.hidden_and_sums(batch["tokens"], **arguments)
    return both


def counted(batch: Batch) -> jax.Array:
    """What each token counts in the layers' sums: as its target, whichever side of a pair it is on."""
    return jnp.abs(batch["weights"]) if "ends" in batch else batch["weights"]


def model_arguments(model: nnx.Module, batch: Batch, rng: jax.Array | None) -> dict[str, Any]:
    """What this model's call takes beside tokens, of positions, segments and rngs (for dropout).

    Raises ValueError where sequences are split and the model takes no positions: it would read them in a wrong order.
    """
    accepted = inspect.signature(type(model).__call__).parameters
    if shard_count("sequence") > 1:
        if "positions" not in accepted:
            raise ValueError(
                f"{' * '.join(axes_of('sequence'))} splits the sequences, and {type(model).__name__} takes no "
                "positions: it cannot know which tokens it sees; let its __call__ take positions, or set mesh.context=1"
            )
        tokens = batch["tokens"]
        batch = {"positions": jnp.broadcast_to(reading_order(tokens.shape[1]), tokens.shape)} | batch
    arguments: dict[str, Any] = {k: batch[k] for k in ("positions", "segments") if k in batch and k in accepted}
    if "rngs" in accepted and rng is not None:
        arguments["rngs"] = nnx.Rngs(dropout=rng)
    return arguments


def chunked_sums(
    model: Any,
    hidden_BTD: jax.Array,
    columns: Batch,
    of_logits: OfLogits,
    *,
    chunk: int | None,
    divisor: jax.Array | float,
) -> Sums:
    """The sums of the model's logits, with those of only `chunk` tokens of each row alive at one time.

    The head's matrix is gathered once, before the loop, and its gradient is sent once, after it.
    """
    x_BTD, head = with_head(model, hidden_BTD)
    multiply, finish = (model.multiply, model.finish) if splits(model) else (model.unembed, lambda logits: logits)

    def sums(logits: jax.Array, columns: Batch, divisor: jax.Array | float) -> Sums:
        with jax.named_scope("cross_entropy"):
            return of_logits(finish(logits), columns, divisor)

    rest = (columns, jnp.asarray(divisor, jnp.float32))
    if chunk is None or chunk >= x_BTD.shape[1]:
        return sums(multiply(x_BTD, head), *rest)
    trained = trains_head(model)
    if splits(model) and (keeps_gradient(x_BTD, head) and trained):
        return keeping_gradient(sums, multiply, chunk)(x_BTD, head, *rest)
    return adding_gradients(sums, multiply, chunk, linear=splits(model), trained=trained)(x_BTD, head, *rest)


def with_head(model: Any, hidden_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Hidden states gathered for the last matmul, and its matrix, whose gradient is scattered before the layers'."""
    if not splits(model):
        x_BTD = gather(hidden_BTD, "batch", "sequence", "embed", over="vocab")
        return x_BTD, model.head(x_BTD)
    matrix = model.last_matrix
    if trains_head(model):
        hidden_BTD, matrix = gradient_first(hidden_BTD, matrix)
    x_BTD = gather(hidden_BTD, "batch", "sequence", "embed", over="vocab")
    return x_BTD, model.gathered(x_BTD, matrix)


def trains_head(model: Any) -> bool:
    """Has its last matrix a gradient? A model may say that it has none (`trains_head`)."""
    trained: bool = getattr(model, "trains_head", True)
    return trained


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


def forward_in_chunks(sums: OfLogits, multiply: Multiply, chunk: int) -> Callable[..., Sums]:
    """`sums` of the logits in chunks along the sequence, without a gradient."""

    def run(x: jax.Array, head: jax.Array, columns: Batch, divisor: jax.Array) -> Sums:
        def body(total: Sums, i: jax.Array) -> tuple[Sums, None]:
            x_i, columns_i = part(i, chunk, (x, columns))
            return jax.tree.map(jnp.add, total, sums(multiply(x_i, head), columns_i, divisor)), None

        zeros = no_sums(sums, multiply, chunk, x, head, columns, divisor)
        total: Sums = jax.lax.scan(body, zeros, jnp.arange(x.shape[1] // chunk))[0]
        return total

    return run


def no_sums(sums: OfLogits, multiply: Multiply, chunk: int, *arguments: Any) -> Sums:
    """Zeros by the names of the sums; nothing is computed for them."""

    def first(x: jax.Array, head: jax.Array, columns: Batch, divisor: jax.Array) -> Sums:
        x, columns = part(0, chunk, (x, columns))
        return sums(multiply(x, head), columns, divisor)

    return dict.fromkeys(jax.eval_shape(first, *arguments), nought())


def adding_gradients(
    sums: OfLogits, multiply: Multiply, chunk: int, *, linear: bool, trained: bool
) -> Callable[..., Sums]:
    """`(x, head, columns, divisor)` to sums, in chunks, with the gradient made in the forward pass.

    A chunk's logits are there once: their gradient is taken at once, for a cotangent of 1, and scaled in the backward
    pass, as the objective is one number: it alone is differentiated, the other sums have no gradient. Making the logits
    again there would cost a third more of the last matmul. The last matrix's gradient is added up in float32 and
    rounded once: in the compute dtype its error would grow with the number of chunks.

    Args:
        linear: `multiply` is linear in the head; otherwise each chunk's gradient of the head is rounded too.
        trained: the head has a gradient.
    """
    run = jax.custom_vjp(forward_in_chunks(sums, multiply, chunk))
    gradient = objective_gradient(sums)

    def forward(x: jax.Array, head: jax.Array, columns: Batch, divisor: jax.Array) -> tuple[Sums, PyTree]:
        def chunk_gradient(i: jax.Array | int) -> tuple[tuple[jax.Array, tuple[jax.Array, ...]], Sums]:
            x_i, columns_i = part(i, chunk, (x, columns))
            logits, back = jax.vjp(multiply, x_i, head)
            dlogits, sums_i = gradient(logits, columns_i, divisor)
            dx, dhead = back(dlogits)
            if not trained:
                return (dx, ()), sums_i
            dhead = head_gradient(multiply, x_i, head, dlogits) if linear else dhead.astype(jnp.float32)
            return (dx, (dhead,)), sums_i

        def body(carry: PyTree, i: jax.Array) -> tuple[PyTree, jax.Array]:
            (dx_i, dhead_i), sums_i = chunk_gradient(i)
            return jax.tree.map(jnp.add, carry, (sums_i, dhead_i)), dx_i

        first, total = chunk_gradient(0)
        # the first chunk ends before the others begin, or its logits would be kept beside theirs. They read x behind
        # it: XLA makes no loop of one more chunk
        (dx_0, dhead), x = jax.lax.optimization_barrier((first, x))
        (total, dhead), dx = jax.lax.scan(body, (total, dhead), jnp.arange(1, x.shape[1] // chunk))
        return total, (dx_0, dx, tuple(d.astype(head.dtype) for d in dhead))

    def backward(saved: PyTree, cotangent: Sums) -> tuple[jax.Array, jax.Array | None, None, None]:
        dx_0, dx, dhead = saved
        rest = [jax.lax.squeeze(jax.lax.slice_in_dim(dx, i, i + 1), (0,)) for i in range(dx.shape[0])]
        dx = joined([dx_0, *rest])  # reshape knows no arrays that are unreduced
        of_head = scaled(dhead[0], cotangent) if trained else None
        return scaled(dx, cotangent), of_head, None, None

    run.defvjp(forward, backward)
    return run


def objective_gradient(sums: OfLogits) -> Callable[..., tuple[jax.Array, Sums]]:
    """`(x, columns, divisor)` to the objective's gradient by x, logits or log-probabilities, and all sums."""

    def objective(x: jax.Array, *rest: Any) -> tuple[jax.Array, Sums]:
        totals = sums(x, *rest)
        return totals["objective"], totals

    gradient: Callable[..., tuple[jax.Array, Sums]] = jax.grad(objective, has_aux=True)
    return gradient


def head_gradient(multiply: Multiply, x: jax.Array, head: jax.Array, dlogits: jax.Array) -> jax.Array:
    """The head's gradient in float32, for a `multiply` that is linear in it."""
    wide = x.astype(jnp.float32)  # a gradient has its argument's type: the head as float32 is only a shape here
    transpose = jax.linear_transpose(lambda head: multiply(wide, head), head.astype(jnp.float32))
    dhead: jax.Array = transpose(dlogits)[0]
    return dhead


def scaled(x: jax.Array, cotangent: Sums) -> jax.Array:
    """A gradient made for a cotangent of 1. A number that multiplies partial sums must be marked so."""
    marks = set(jax.typeof(x).sharding.spec.unreduced)
    factor: jax.Array = jax.reshard(cotangent["objective"].astype(x.dtype), to_spec([], reduced=marks))
    return factor * x


def keeping_gradient(sums: OfLogits, multiply: Multiply, chunk: int) -> Callable[..., Sums]:
    """As `adding_gradients`, but the loop makes the logits' gradient alone, of all tokens; both matmuls follow it.

    `multiply` must be linear in each of its arguments.
    """
    run = jax.custom_vjp(forward_in_chunks(sums, multiply, chunk))
    gradient = objective_gradient(sums)

    def forward(x: jax.Array, head: jax.Array, columns: Batch, divisor: jax.Array) -> tuple[Sums, Saved]:
        def body(carry: tuple[Sums, jax.Array], i: jax.Array) -> tuple[tuple[Sums, jax.Array], None]:
            total, kept = carry
            x_i, columns_i = part(i, chunk, (x, columns))
            dlogits, sums_i = gradient(multiply(x_i, head), columns_i, divisor)
            kept = with_part(kept, i, dlogits.astype(kept.dtype))
            return (jax.tree.map(jnp.add, total, sums_i), kept), None

        zeros = no_sums(sums, multiply, chunk, x, head, columns, divisor)
        shape = jax.eval_shape(multiply, x, head).shape
        kept = jnp.zeros(shape, head.dtype, out_sharding=spec("batch", "sequence", "vocab"))
        (total, kept), _ = jax.lax.scan(body, (zeros, kept), jnp.arange(x.shape[1] // chunk))
        return total, (x, head, kept)

    def backward(saved: Saved, cotangent: Sums) -> tuple[jax.Array, jax.Array, None, None]:
        x, head, kept = saved
        kept = kept.astype(jnp.float32)
        (dx,) = jax.vjp(lambda x: multiply(x, head), x)[1](kept * cotangent["objective"])
        dx, kept = jax.lax.optimization_barrier((dx, kept))  # then the head is not kept beside its gradient
        dhead = head_gradient(multiply, x, head, kept * cotangent["objective"]).astype(head.dtype)
        return dx, dhead, None, None

    run.defvjp(forward, backward)
    return run
