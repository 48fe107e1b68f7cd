"""Attention behind one function: the reference in XLA, cuDNN's on NVIDIA, splash (Pallas) on TPU.

Masks come from three facts: causal order, a sliding window, and which document a token belongs to. Nothing here
knows of modules; the mesh is met once, in `attention`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxscale import config as cfg
from jaxscale.blueprint.sequence import way
from jaxscale.kernels import cudnn, splash
from jaxscale.kernels.blocks import KERNELS, Kernel, Seen
from jaxscale.kernels.plain import NEGATIVE, block_of, visible
from jaxscale.models.context import (
    Split,
    block_attention,
    gather_attention,
    halo_attention,
    ring_attention,
)
from jaxscale.parallel.local import on_each_device
from jaxscale.parallel.sharding import axes_of, device, in_zigzag_here, platform, shard_count, spec


@dataclass(frozen=True)
class Attention:
    """What one attention layer computes, apart from its arrays.

    Attributes:
        sliding_window: a token sees itself and the window - 1 tokens before it; None: all before it.
        softcap: scores become cap * tanh(scores / cap).
        implementation: `xla`, `cudnn`, `splash`, or `auto` (the fastest that computes this on the platform).
        split: how a sequence that is split over the mesh attends, as `blueprint.sequence.way` takes it.
    """

    sliding_window: int | None = None
    softcap: float | None = None
    implementation: str = "auto"
    split: str = "auto"


def attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    how: Attention,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
    """Causal attention within documents; heads split over the mesh. Where sequences are split, keys are sent.

    Args:
        q_BTNH: queries; N is a multiple of K, query head n reads kv head n // (N / K).
        segments_BT: document numbers: a token sees only its own document. None: one document a row.
        sinks_N: a score of each head for no token at all.

    Returns:
        What each query gathers of the values: [B, T, N, H], in q's dtype, named `attended` for remat. The last dim is
        that of the values, which may be smaller.
    """
    shards = shard_count("sequence")
    chosen = choose(how, jax.ShapeDtypeStruct(block_shape(q_BTNH.shape, shards), q_BTNH.dtype))
    if shards > 1:
        split = Split(axes_of("sequence"), shards, q_BTNH.shape[1] // shards, in_zigzag_here())
        run: Any = partial(split_attention, split=split, kernel=KERNELS[chosen](how.sliding_window, how.softcap))
    elif sinks_N is not None:
        run = partial(whole_attention, kernel=KERNELS[chosen](how.sliding_window, how.softcap))
    else:
        run = {"xla": xla_attention, "cudnn": cudnn_attention, "splash": splash_attention}[chosen]
    qs, ks = (spec("batch", "sequence", heads, None) for heads in ("heads", "kv_heads"))
    ss = spec("batch", "sequence")
    # Every device has its own heads, so the body is local, but for split sequences. shard_map, because the kernels are
    # custom calls without rules for explicit axes, and because splitting N into (K, N/K) would need one too.
    given = {"segments": (segments_BT, ss), "sinks": (sinks_N, spec("heads"))}
    given = {name: pair for name, pair in given.items() if pair[0] is not None}

    def local(q: jax.Array, k: jax.Array, v: jax.Array, *more: jax.Array) -> jax.Array:
        extras = dict(zip(given, more, strict=True))
        sinks = {"sinks": extras["sinks"]} if "sinks" in extras else {}
        out: jax.Array = run(q, k, v, extras.get("segments"), how=how, **sinks)
        return out

    with jax.named_scope("attention"):  # by this name a profile tells its time from the other matmuls'
        specs = (qs, ks, ks, *(layout for _, layout in given.values()))
        body = on_each_device(local, specs, qs, check_vma=False)
        attended: jax.Array = body(q_BTNH, k_BTKH, v_BTKH, *(array for array, _ in given.values()))
    # splash and blocks of attention name their own output: named here too, remat would keep it twice
    if not (shards > 1 or chosen == "splash" or sinks_N is not None):
        attended = checkpoint_name(attended, "attended")
    return attended


def block_shape(shape: tuple[int, ...], shards: int) -> tuple[int, ...]:
    """Of the queries that a kernel meets at one time: a chunk of a split sequence, or all."""
    parts = 1 if shards == 1 else 2 * shards if in_zigzag_here() else shards
    return (shape[0], shape[1] // parts, *shape[2:])


def split_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    documents: jax.Array | None,
    *,
    how: Attention,
    split: Split,
    kernel: Kernel,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Attention of one device's tokens to those of all devices."""
    T = split.tokens * split.shards
    chosen = way(how.split, how.sliding_window, T, zigzag=split.zigzag, kernel=kernel.name)
    if chosen == "halo":
        assert how.sliding_window
        attended: jax.Array = halo_attention(q, k, v, documents, sinks, kernel, split, how.sliding_window)
    else:
        attended = (ring_attention if chosen == "ring" else gather_attention)(q, k, v, documents, sinks, kernel, split)
    return attended


def whole_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, documents: jax.Array | None, *, how: Attention, kernel: Kernel, sinks: Any
) -> jax.Array:
    """Attention of whole sequences with sinks, by the pair of functions of a block."""
    seen = Seen(np.arange(q.shape[1], dtype=np.int32)[None])
    attended: jax.Array = block_attention(kernel, seen)(q, k, v, documents, documents, sinks)
    return attended


def choose(how: Attention, q: jax.Array | jax.ShapeDtypeStruct) -> str:
    """The implementation to use here; ValueError when the one asked for cannot compute this."""
    where = platform()
    problems = {
        "xla": None,
        "cudnn": cudnn_problem(how, q.dtype, q.shape, where),
        "splash": splash_problem(q.shape, where),
    }
    if how.implementation != "auto":
        if problem := problems[how.implementation]:
            raise ValueError(f"step.attention={how.implementation}: {problem}; use auto or xla")
        return how.implementation
    return next(name for name in ("cudnn", "splash", "xla") if problems[name] is None)


def require_attention(config: cfg.Config) -> None:
    """Ask for the attention of a config's decoder before anything is compiled; raises as `choose` does."""
    model, step = config.model, config.step
    shape = (config.data.batch_size, config.data.seq_len, model.num_heads, model.head_size)
    for window in model.windows:
        how = Attention(window, model.attention_softcap, step.attention)
        choose(how, jax.ShapeDtypeStruct(shape, step.compute_dtype))


def cudnn_problem(how: Attention, dtype: jnp.dtype, shape: tuple[int, ...], where: str) -> str | None:
    if where not in ("gpu", "cuda"):
        return f"it needs an NVIDIA GPU and this is {where}"
    capability = getattr(device(), "compute_capability", "none")  # AMD's: gfx942
    if not capability[0].isdecimal() or float(capability) < 8:
        return f"it needs an NVIDIA GPU of compute capability 8.0 (Ampere) or newer, not {capability}"
    if how.softcap:
        return "cuDNN has no soft cap on scores"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN computes in bfloat16 or float16, not {jnp.dtype(dtype).name}"
    if shape[-1] % 8 or shape[-1] > 128:
        return f"cuDNN wants a head_dim that is a multiple of 8 up to 128, not {shape[-1]}"
    return None


def splash_problem(shape: tuple[int, ...], where: str) -> str | None:
    if where != "tpu":
        return f"it needs a TPU and this is {where}"
    if (kind := device().device_kind) in ("TPU v2", "TPU v3"):
        return f"a kernel on {kind} cannot multiply bfloat16"
    if shape[1] % 128:
        return f"splash wants a sequence that is a multiple of 128, not {shape[1]}"
    return None


# --- the reference --------------------------------------------------------------------------------------------


def xla_attention(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, segments_BT: jax.Array | None, *, how: Attention
) -> jax.Array:
    """Attention in plain XLA, scores and softmax in float32; the one that the others are compared with.

    In blocks of queries, each with the keys that any of them sees: half the FLOPs of the square at most, and on a CPU
    about 1.4 times as fast, forward and backward. At most 16 blocks, as each is its own piece of the program.
    """
    T = q_BTNH.shape[1]
    block = block_of(T)
    out = []
    for start in range(0, T, block):
        stop = min(start + block, T)
        first = 0 if how.sliding_window is None else max(0, start - how.sliding_window + 1)
        mask = visible(np.arange(start, stop)[:, None], np.arange(first, stop)[None, :], how.sliding_window)[None]
        if segments_BT is not None:
            mask = mask & (segments_BT[:, start:stop, None] == segments_BT[:, None, first:stop])
        out.append(
            attend(q_BTNH[:, start:stop], k_BTKH[:, first:stop], v_BTKH[:, first:stop], mask, softcap=how.softcap)
        )
    return jnp.concatenate(out, axis=1)


def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: Any,
    *,
    softcap: float | None,
    sinks_N: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k^T / sqrt(H)) v over the visible keys; local arrays, any number of kv heads K that divides N.

    With sinks the softmax is over them too, and they have no value.

    One batch dim of B*K and the N/K queries of a kv head folded into rows: the form in which XLA's CPU backend finds
    its fast matmul (110 GFLOP/s where a batched einsum over [B, T, N, H] reached 50, of the same machine's 300).
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    G, R = B * K, N // K
    q = q_BTNH.reshape(B, T, K, R, H).transpose(0, 2, 3, 1, 4).reshape(G, R * T, H)
    k, v = (x.transpose(0, 2, 1, 3).reshape(G, S, x.shape[-1]) for x in (k_BSKH, v_BSKH))
    scores = jnp.einsum("gth,gsh->gts", q, k, preferred_element_type=jnp.float32).reshape(B, K, R, T, S) * H**-0.5
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    scores = jnp.where(mask_BTS[:, None, None], scores, NEGATIVE)
    if sinks_N is not None:
        sinks = jnp.broadcast_to(sinks_N.astype(scores.dtype).reshape(K, R, 1, 1), (B, K, R, T, 1))
        scores = jnp.concatenate([scores, sinks], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., :S].astype(q_BTNH.dtype)
    context = jnp.einsum("gts,gsh->gth", weights.reshape(G, R * T, S), v)
    return context.reshape(B, K, R, T, -1).transpose(0, 3, 1, 2, 4).reshape(B, T, N, -1)


# --- kernels --------------------------------------------------------------------------------------------------


def cudnn_attention(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, segments_BT: jax.Array | None, *, how: Attention
) -> jax.Array:
    return cudnn.attention(q_BTNH, k_BTKH, v_BTKH, segments_BT, window=how.sliding_window)


def splash_attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    *,
    how: Attention,
    interpret: bool = False,
) -> jax.Array:
    window, softcap = how.sliding_window, how.softcap
    return splash.attention(q_BTNH, k_BTKH, v_BTKH, segments_BT, window=window, softcap=softcap, interpret=interpret)
