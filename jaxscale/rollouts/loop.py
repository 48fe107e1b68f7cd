"""Sampling with a cache of keys and values: a prompt pass, then one loop over tokens, as one program on any mesh."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxscale.parallel.sharding import spec
from jaxscale.rollouts.choose import Dials, Way, choose, keys_of

Outputs = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def decode_loop(
    model: Any,
    way: Way,
    max_new: int,
    tokens: jax.Array,
    mask: jax.Array,
    alive: jax.Array,
    numbers: jax.Array,
    dials: Dials,
    stop_ids: jax.Array,
) -> Outputs:
    """New tokens of each row [B, max_new], their log-probabilities, how many count [B], and whether the last is a stop.

    Args:
        model: with `empty_cache`, `decode` and `apart`, as `Transformer`.
        tokens, mask: [B, P] prompts, padded on the left where the mask is 0.
        alive: [B]; a row that is not adds nothing, and nobody waits for it.
        numbers: of `row_keys`.
        stop_ids: a row ends with the first of these.
    """
    B, P = tokens.shape
    rows, one = spec("batch", None), spec("batch")
    tokens, mask = (jax.reshard(x, rows) for x in (tokens, mask))
    keys, alive = keys_of(numbers), jax.reshard(alive, one)
    segments = jnp.concatenate([mask, jnp.zeros((B, max_new), jnp.int32, out_sharding=rows)], axis=1)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    cache = model.empty_cache(B, P + max_new)
    logits, cache = model.decode(tokens, cache, positions=positions, segments=segments, start=jnp.int32(0))

    cache, each = model.apart(cache)

    def with_token(i: jax.Array, logits: jax.Array, out: Outputs, done: jax.Array) -> tuple[Outputs, Any, Any]:
        token, log_prob = choose(way, logits, keys, i, dials)
        out, done = written(out, i, token, log_prob, done, stop_ids)
        return out, done, token

    nothing: Any = tuple(jnp.zeros((B, max_new), dtype, out_sharding=rows) for dtype in (jnp.int32, jnp.float32))
    counts = tuple(jnp.zeros(B, dtype, out_sharding=one) for dtype in (jnp.int32, jnp.bool_))
    out, done, token = with_token(jnp.int32(0), logits, (*nothing, *counts), ~alive)
    position = jax.reshard(positions[:, -1:] + 1, rows)
    # its layout is given, as a slice of one row loses the mesh axis from its type in jax 0.12
    seen = jnp.ones((B, 1), jnp.int32, out_sharding=rows)

    def going(state: Any) -> jax.Array:
        i, _, done, *_ = state
        more: jax.Array = (i < max_new) & ~done.all()
        return more

    def advance(state: Any) -> Any:
        i, out, done, last, position, segments, cache = state
        start = P + i - 1
        segments = jax.lax.dynamic_update_slice_in_dim(segments, seen, start, 1)
        last = jax.reshard(last, one)[:, None]
        logits, cache = model.decode(last, cache, positions=position, segments=segments, start=start, each=each)
        out, done, token = with_token(i, logits, out, done)
        return i + 1, out, done, token, position + 1, segments, cache

    state = (jnp.int32(1), out, done, token, position, segments, cache)
    outputs: Outputs = jax.lax.while_loop(going, advance, state)[1]
    return outputs


def written(
    out: Outputs, i: jax.Array, token: jax.Array, log_prob: jax.Array, done: jax.Array, stop_ids: jax.Array
) -> tuple[Outputs, jax.Array]:
    """The outputs with the i-th token of rows that are not done, and which rows are done now; zeros stand behind."""
    tokens, log_probs, length, stopped = out
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, jnp.where(done, 0, token)[:, None], i, 1)
    log_probs = jax.lax.dynamic_update_slice_in_dim(log_probs, jnp.where(done, 0, log_prob)[:, None], i, 1)
    stops = ~done & (token[:, None] == stop_ids).any(1)
    return (tokens, log_probs, length + ~done, stopped | stops), done | stops
