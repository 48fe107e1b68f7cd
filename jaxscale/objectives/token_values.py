"""What a model says of each token of a batch, in chunks of the sequence where asked. No gradient."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.objectives.chunks import part, with_part
from jaxscale.objectives.next_token import parts_of_softmax
from jaxscale.objectives.objective import Batch, Sums
from jaxscale.objectives.token_sums import hidden_and_sums, model_arguments, with_head


def token_values(
    model: Any, batch: Batch, *, vocab_size: int, chunk: int | None, temperature: float | jax.Array = 1.0
) -> Sums:
    """`token_scores` of a batch's targets: name -> [B, T], where the tokens lie.

    Args:
        model: as for `token_sums`.
        chunk: tokens of each row whose logits exist at one time; None: all.
        temperature: that logits are divided by, as a sampler does.
    """
    how: dict[str, Any] = {"vocab_size": vocab_size, "temperature": temperature}
    arguments, targets = model_arguments(model, batch, None), batch["targets"]
    if not hasattr(model, "hidden"):
        return token_scores(model(batch["tokens"], **arguments), targets, **how)
    hidden_BTD, _ = hidden_and_sums(model, batch, arguments)
    x_BTD, head = with_head(model, hidden_BTD)

    def scores(x: jax.Array, targets: jax.Array) -> Sums:
        return token_scores(model.unembed(x, head), targets, **how)

    if chunk is None or chunk >= x_BTD.shape[1]:
        return scores(x_BTD, targets)

    def body(done: Sums, i: jax.Array) -> tuple[Sums, None]:
        scores_i = scores(*part(i, chunk, (x_BTD, targets)))
        return {name: with_part(x, i, scores_i[name]) for name, x in done.items()}, None

    nothing = {name: jnp.zeros_like(targets, jnp.float32) for name in ("log_p", "right")}
    values: Sums = jax.lax.scan(body, nothing, jnp.arange(x_BTD.shape[1] // chunk))[0]
    return values


def token_scores(
    logits_BTV: jax.Array, targets: jax.Array, *, vocab_size: int, temperature: float | jax.Array = 1.0
) -> Sums:
    """Of each target [B, T]: `log_p`, its log-probability in nats, and `right`, 1 if it is the greedy choice.

    The greedy choice is the first of the largest logits, as `argmax` has it.
    """
    logits_BTV = logits_BTV.astype(jnp.float32) / temperature
    logits, column, log_z, target = parts_of_softmax(logits_BTV, targets, vocab_size=vocab_size)
    first = jnp.where(logits == logits.max(-1, keepdims=True), column, vocab_size).min(-1)
    return {"log_p": target - log_z, "right": (first == targets).astype(jnp.float32)}
