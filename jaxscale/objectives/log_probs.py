"""Losses of tokens' log-probabilities: a function of [B, T] numbers, whose gradient goes on into the model.

A loss may join tokens of a row, as a preference of one text over another does. So a chunk's gradient is known only
when all chunks' log-probabilities are. In chunks the last matmul runs twice: first for the log-probabilities, then with
their gradient, as a sum over tokens (`objectives.token_sums`).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.objectives.chunks import part, with_part
from jaxscale.objectives.next_token import parts_of_softmax
from jaxscale.objectives.objective import Batch, Sums
from jaxscale.objectives.token_sums import (
    chunked_sums,
    hidden_and_sums,
    model_arguments,
    objective_gradient,
    require_whole_logits,
    with_head,
)

# (log-probabilities of the targets [B, T], columns [B, T], divisor) -> sums, `objective` among them
OfLogProbs = Callable[[jax.Array, Batch, jax.Array | float], Sums]


def log_prob_sums(
    model: Any,
    batch: Batch,
    of_log_probs: OfLogProbs,
    *,
    read: tuple[str, ...],
    vocab_size: int,
    temperature: float = 1.0,
    chunk: int | None,
    divisor: jax.Array | float = 1.0,
    rng: jax.Array | None = None,
) -> Sums:
    """`of_log_probs` of the targets' log-probabilities, and the auxiliary sums of the model's layers.

    Args:
        model, chunk, divisor, rng: as for `token_sums.token_sums`.
        of_log_probs: sees whole rows; its `objective` alone is differentiated.
        read: the columns that `of_log_probs` takes.
        temperature: what logits are divided by.
    """
    arguments, columns = model_arguments(model, batch, rng), {name: batch[name] for name in read}
    targets = batch["targets"]

    def log_probs(logits_BTV: jax.Array, targets: jax.Array) -> jax.Array:
        _, _, log_z, target = parts_of_softmax(logits_BTV, targets, vocab_size=vocab_size, temperature=temperature)
        log_p: jax.Array = target - log_z
        return log_p

    if not hasattr(model, "hidden"):
        require_whole_logits(model, chunk)
        return of_log_probs(log_probs(model(batch["tokens"], **arguments), targets), columns, divisor)
    hidden_BTD, auxiliary = hidden_and_sums(model, batch, arguments)
    if chunk is None or chunk >= targets.shape[1]:
        x_BTD, head = with_head(model, hidden_BTD)
        with jax.named_scope("log_probs"):
            sums = of_log_probs(log_probs(model.unembed(x_BTD, head), targets), columns, divisor)
        return auxiliary | sums

    x_BTD, head = jax.lax.stop_gradient(with_head(model, hidden_BTD))

    def body(done: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        x, targets_i = part(i, chunk, (x_BTD, targets))
        return with_part(done, i, log_probs(model.unembed(x, head), targets_i)), None

    with jax.named_scope("log_probs"):
        zeros = jnp.zeros_like(targets, jnp.float32)
        log_p = jax.lax.scan(body, zeros, jnp.arange(targets.shape[1] // chunk))[0]
        slopes, sums = objective_gradient(of_log_probs)(log_p, columns, divisor)

    def linear(logits_BTV: jax.Array, columns: Batch, _: jax.Array | float) -> Sums:
        return {"objective": (log_probs(logits_BTV, columns["targets"]) * columns["slopes"]).sum()}

    both = {"targets": targets, "slopes": slopes}
    tangent = chunked_sums(model, hidden_BTD, both, linear, chunk=chunk, divisor=1.0)["objective"]
    every: Sums = auxiliary | sums
    return every | {"objective": sums["objective"] + tangent - jax.lax.stop_gradient(tangent)}
