"""Sampling from a model with a key-value cache: a prompt pass, then one jitted loop, on any mesh."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.blueprint.cases import without
from jaxscale.blueprint.rules import Rules, count
from jaxscale.parallel.sharding import spec


def decode_rules(rules: Rules, mesh_shape: dict[str, int], batch_size: int) -> Rules:
    """The rules for decoding: one token has no sequence to split, few prompts may not fill the batch axes, and a token
    passes all layers before the next one is known, so that stages would wait for each other.
    """
    rules = rules.with_activations(sequence=(), residual_sequence=()).with_parameters(layers=())
    if batch_size % count(rules.activations["batch"], mesh_shape):
        rules = rules.with_activations(batch=())
    return experts_beside_tokens(rules)


def experts_beside_tokens(rules: Rules) -> Rules:
    """Experts split over axes that split tokens alone: over the others their matrices are kept split, and gathered."""
    experts = rules.activations["experts"]
    if not (idle := without(experts, rules.activations["batch"])):
        return rules
    kept = rules.parameters["expert_embed"]
    experts = without(experts, idle)
    return rules.with_activations(experts=experts).with_parameters(
        experts=experts, expert_embed=(*kept, *without(idle, kept))
    )


def pad_prompts(prompts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as one [B, P] array padded on the left, and a [B, P] mask that is 0 at padding."""
    longest = max(map(len, prompts))
    tokens, mask = np.zeros((2, len(prompts), longest), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return tokens, mask


def generate(
    merge: Callable,
    params: Any,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    vocab_size: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_ids: Sequence[int] = (),
) -> list[list[int]]:
    """Continue each prompt; to be called inside `on_mesh(mesh, decode_rules(...))`.

    Args:
        merge: params -> module with `empty_cache` and `decode` (as `Transformer`).
        temperature: 0 is greedy.
        top_k, top_p: sample only from the k likeliest tokens, or from the fewest that hold probability p.
        stop_ids: a sequence ends before the first of these tokens.

    Returns:
        The new tokens of each prompt.
    """
    check_sampling(prompts, max_new_tokens, temperature, top_k, top_p, vocab_size)
    tokens, mask = pad_prompts(prompts)
    pick = functools.partial(sample, temperature=temperature, top_k=top_k, top_p=top_p)
    run = functools.partial(decode_loop, merge, pick, max_new_tokens, vocab_size, tuple(stop_ids))
    out, length = jax.device_get(jax.jit(run)(params, tokens, mask, jax.random.key(seed)))
    return [row[:n].tolist() for row, n in zip(out, length, strict=True)]


def check_sampling(prompts, max_new_tokens, temperature, top_k, top_p, vocab_size) -> None:
    if not prompts or min(map(len, prompts)) < 1:
        raise ValueError("a prompt is empty; give at least one token (the document separator will do)")
    highest = max(max(p) for p in prompts)
    if highest >= vocab_size:
        raise ValueError(
            f"prompt token {highest} is beyond the model's vocab_size {vocab_size}; use the run's tokenizer"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise ValueError(
            f"temperature={temperature} is no number from 0 up; 0 is greedy, 1 samples the model's distribution"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be above 0 and at most 1")


def decode_loop(merge, pick, max_new, vocab_size, stop_ids, params, tokens, mask, key):
    """Prompt [B, P] to new tokens [B, max_new] and how many of them count; one program."""
    model = merge(params)
    B, P = tokens.shape
    tokens, mask = (jax.reshard(x, spec("batch", None)) for x in (tokens, mask))
    segments = jnp.concatenate([mask, jnp.zeros((B, max_new), jnp.int32, out_sharding=spec("batch", None))], axis=1)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    cache = model.empty_cache(B, P + max_new)
    logits, cache = model.decode(tokens, cache, positions=positions, segments=segments, start=jnp.int32(0))
    first = choose(pick, logits, key, 0, vocab_size)
    out = jnp.zeros((B, max_new), jnp.int32).at[:, 0].set(first)
    done = among(first, stop_ids)
    length = jnp.where(done, 0, 1)
    position = jax.reshard(positions[:, -1:] + 1, spec("batch", None))
    state = (jnp.int32(1), out, length, done, first, position, segments, cache)
    # its layout is given, as a slice of one row loses the mesh axis from its type in jax 0.12
    seen = jnp.ones((B, 1), jnp.int32, out_sharding=spec("batch", None))

    def going(state):
        return (state[0] < max_new) & ~state[3].all()

    def advance(state):
        i, out, length, done, last, position, segments, cache = state
        start = P + i - 1
        segments = jax.lax.dynamic_update_slice_in_dim(segments, seen, start, 1)
        last = jax.reshard(last, spec("batch"))[:, None]
        logits, cache = model.decode(last, cache, positions=position, segments=segments, start=start)
        token = choose(pick, logits, key, i, vocab_size)
        done = done | among(token, stop_ids)
        out = jax.lax.dynamic_update_slice_in_dim(out, token[:, None], i, 1)
        return i + 1, out, length + ~done, done, token, position + 1, segments, cache

    _, out, length, *_ = jax.lax.while_loop(going, advance, state)
    return out, length


def among(tokens: jax.Array, ids: tuple[int, ...]) -> jax.Array:
    """Whether each of `tokens` is one of `ids`."""
    return functools.reduce(jnp.logical_or, (tokens == i for i in ids), jnp.zeros_like(tokens, bool))


def choose(pick, logits_BV: jax.Array, key: jax.Array, i: Any, vocab_size: int) -> jax.Array:
    """One token a row, the same on every device: the logits of one position are small enough to be whole."""
    whole = jax.reshard(logits_BV, jax.P(None, None))[:, :vocab_size]
    return pick(whole, jax.random.fold_in(key, i)).astype(jnp.int32)


def sample(
    logits_BV: jax.Array, key: jax.Array, *, temperature: float, top_k: int | None, top_p: float | None
) -> jax.Array:
    if temperature == 0:
        return jnp.argmax(logits_BV, -1)
    logits = logits_BV / temperature
    if top_k is not None:
        lowest = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    if top_p is not None:
        ordered = -jnp.sort(-logits, axis=-1)
        before = jnp.cumsum(jax.nn.softmax(ordered, -1), -1) - jax.nn.softmax(ordered, -1)  # mass of likelier tokens
        lowest = jnp.where(before < top_p, ordered, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    return jax.random.categorical(key, logits, -1)
