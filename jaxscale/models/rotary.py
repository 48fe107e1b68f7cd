"""Rotary positions: the angles of all layers of one kind, made once, and the turn of queries and keys by them."""

import math

import jax
import jax.numpy as jnp

from jaxscale import config as cfg
from jaxscale.models.on_cpu import drops_barriers, looked_up

Rope = tuple[jax.Array, jax.Array]  # sine and cosine: [B, T, 1, H/2], float32


def rotations(positions_BT: jax.Array, kind: cfg.LayerKind, head_size: int) -> Rope | None:
    """Sine and cosine of each position's angles, once for all layers of a kind; None for one without rotary positions.

    The barrier keeps XLA from computing them again in every fusion that reads them.
    """
    if not kind.rope:
        return None
    angle = positions_BT.astype(jnp.float32)[..., None, None] * rope_frequencies(kind, head_size)
    sin, cos = jax.lax.optimization_barrier((jnp.sin(angle), jnp.cos(angle)))
    return looked_up(sin, cos) if drops_barriers() else (sin, cos)


def rotate(x_BTNH: jax.Array, sin: jax.Array, cos: jax.Array) -> jax.Array:
    """Rotary positions (arXiv:2104.09864), halves paired as in Llama's published weights."""
    a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)


def rope_frequencies(kind: cfg.LayerKind, head_size: int) -> jax.Array:
    """Radians a position for each of the H/2 pairs, float32, stretched as the kind says."""
    half = head_size // 2
    frequency = kind.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    scaling = kind.rope_scaling
    if scaling is None:
        return frequency
    if scaling.kind == "linear":
        return frequency / scaling.factor
    turns = scaling.original_max_len * frequency / (2 * math.pi)  # within the context trained on first
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequency * (keep + (1 - keep) / scaling.factor)
