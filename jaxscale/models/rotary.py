"""Rotary positions: the angles of all layers of one kind, made once, and the turn of queries and keys by them."""

import math

import jax
import jax.numpy as jnp

from jaxscale import config as cfg
from jaxscale.models.layers import scaled
from jaxscale.models.on_cpu import drops_barriers, looked_up

Rope = tuple[jax.Array, jax.Array]  # sine and cosine: [B, T, 1, H/2], float32


def rotations(positions_BT: jax.Array, kind: cfg.LayerKind, head_size: int) -> Rope | None:
    """Sine and cosine of each position's angles, once for all layers of a kind; None for one without rotary positions.

    The barrier keeps XLA from computing them again in every fusion that reads them.
    """
    if not kind.rope:
        return None
    angle = positions_BT.astype(jnp.float32)[..., None, None] * rope_frequencies(kind, head_size)
    factor = yarn_factor(kind.rope_scaling)
    sin, cos = jax.lax.optimization_barrier((scaled(jnp.sin(angle), factor), scaled(jnp.cos(angle), factor)))
    return looked_up(sin, cos) if drops_barriers() else (sin, cos)


def rotate(x_BTNH: jax.Array, sin: jax.Array, cos: jax.Array, *, interleaved: bool = False) -> jax.Array:
    """Rotary positions (arXiv:2104.09864), halves paired as in Llama's published weights.

    Args:
        interleaved: neighbours are paired, and come out as halves: scores are the same, if queries and keys are so.
    """
    x = x_BTNH.astype(jnp.float32)
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else jnp.split(x, 2, axis=-1)
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
    if scaling.kind == "yarn":
        keep = 1 - yarn_ramp(scaling, kind.rope_theta, half)
        return frequency * (keep + (1 - keep) / scaling.factor)
    turns = scaling.original_max_len * frequency / (2 * math.pi)  # within the context trained on first
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    keep = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequency * (keep + (1 - keep) / scaling.factor)


def yarn_ramp(scaling: cfg.RopeScaling, theta: float, half: int) -> jax.Array:
    """[H/2] from 0 (a pair stays as it is) to 1 (its frequency is divided): YaRN, arXiv:2309.00071, 3.2."""

    def pair(turns: float) -> float:
        """The pair that turns so often within the original length."""
        return half * math.log(scaling.original_max_len / (turns * 2 * math.pi)) / math.log(theta)

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    return jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / max(high - low, 1e-3), 0, 1)


def yarn_factor(scaling: cfg.RopeScaling | None) -> float:
    """Of queries and of keys: longer contexts make attention flatter."""
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    return scaling.attention_factor or 1 + 0.1 * max(math.log(scaling.factor), 0)
