"""One token of each row from its logits: each row by a key of its own, on the devices that hold it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.parallel.local import on_each_device
from jaxscale.parallel.sharding import spec

BLOCK = 128  # tokens


@dataclass(frozen=True)
class Way:
    """What of sampling is part of a program.

    Attributes:
        vocab_size: tokens beyond it are not chosen.
        greedy: the likeliest token.
        top_k: only the k likeliest tokens; None: all.
        nucleus: only the fewest that hold probability `Dials.top_p`.
    """

    vocab_size: int
    greedy: bool
    top_k: int | None
    nucleus: bool


class Dials(NamedTuple):
    """What of sampling may change from call to call: float32 scalars."""

    temperature: Any
    top_p: Any


def row_keys(seed: int, *numbers: Sequence[int]) -> np.ndarray:
    """What the rows' keys are made of: key(seed), into which each row's own numbers are folded, one after another.

    `row_keys(seed, prompts, samples)` for rollouts, `row_keys(seed, [step] * B, prompts, samples)` in training. A row's
    sample depends on its prompt and these numbers alone.

    Returns:
        [B, 1 + len(numbers)] uint32.
    """
    for number in (seed, *(n for column in numbers for n in column)):
        if not 0 <= int(number) < 2**32:
            raise ValueError(f"seed or number {number} of a key is not from 0 to 2**32 - 1")
    columns = np.array([list(column) for column in numbers], np.uint32).T
    return np.concatenate([np.full((len(columns), 1), seed, np.uint32), columns], axis=1)


def keys_of(numbers_BK: jax.Array) -> jax.Array:
    """Key data [B, ...] of `row_keys`, made where the rows lie."""

    def of_row(numbers: jax.Array) -> jax.Array:
        key = functools.reduce(jax.random.fold_in, numbers[1:], jax.random.key(numbers[0]))
        return jax.random.key_data(key)

    rows = spec("batch", None)
    made: jax.Array = on_each_device(jax.vmap(of_row), (rows,), rows, check_vma=False)(jax.reshard(numbers_BK, rows))
    return made


def choose(way: Way, logits_BV: jax.Array, keys: jax.Array, i: jax.Array, dials: Dials) -> tuple[jax.Array, jax.Array]:
    """The i-th new token of each row and its log-probability, [B] each.

    A row's logits are gathered over the axes that split the vocabulary; rows stay where they are.
    """
    rows, one, none = spec("batch", None), spec("batch"), spec()
    logits_BV = jax.reshard(logits_BV, rows)[:, : way.vocab_size]

    def local(
        logits: jax.Array, keys: jax.Array, i: jax.Array, temperature: jax.Array, top_p: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        scores = truncated(way, logits, Dials(temperature, top_p))
        if way.greedy:
            tokens = jnp.argmax(scores, -1)
        else:
            tokens = jax.vmap(draw)(keys, scores, jnp.broadcast_to(i, len(keys)))
        log_probs = jnp.take_along_axis(scores, tokens[:, None], -1)[:, 0] - jax.nn.logsumexp(scores, -1)
        return tokens.astype(jnp.int32), log_probs

    run = on_each_device(local, (rows, rows, none, none, none), (one, one), check_vma=False)
    with jax.named_scope("choose_tokens"):
        chosen: tuple[jax.Array, jax.Array] = run(logits_BV, keys, i, *dials)
        return chosen


def draw(key: jax.Array, scores_V: jax.Array, i: jax.Array) -> jax.Array:
    """A token of the softmax of `scores` by two uniform numbers: first a block of tokens, then one within it.

    Noise for every token, as `jax.random.categorical` adds it, took three times as long on a CPU. A number of 23 bits
    chooses among the blocks, and another within one, so rare tokens keep their share.
    """
    chances = jnp.exp(scores_V - scores_V.max())
    blocks = jnp.pad(chances, (0, -len(chances) % BLOCK)).reshape(-1, BLOCK)
    key = jax.random.fold_in(jax.random.wrap_key_data(key), i)
    first, second = jax.random.uniform(key, (2,))
    block = below(jnp.cumsum(blocks.sum(-1)), first)
    token = block * BLOCK + below(jnp.cumsum(blocks[block]), second)
    # where sums are rounded upwards over tokens without a chance
    return jnp.where(chances[jnp.minimum(token, len(chances) - 1)] > 0, token, jnp.argmax(scores_V))


def below(sums: jax.Array, uniform: jax.Array) -> jax.Array:
    """The number of the part in which this share of the whole lies."""
    part: jax.Array = jnp.minimum((sums <= uniform * sums[-1]).sum(), len(sums) - 1)
    return part


def truncated(way: Way, logits_BV: jax.Array, dials: Dials) -> jax.Array:
    """Logits of the distribution that is sampled: -inf for tokens that are left out. Greedy: the model's own."""
    if way.greedy:
        return logits_BV
    logits = logits_BV / dials.temperature
    if way.top_k is not None:
        lowest = jax.lax.top_k(logits, min(way.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    if way.nucleus:
        ordered = -jnp.sort(-logits, axis=-1)
        before = jnp.cumsum(jax.nn.softmax(ordered, -1), -1) - jax.nn.softmax(ordered, -1)  # mass of likelier tokens
        lowest = jnp.where(before < dials.top_p, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    return logits
