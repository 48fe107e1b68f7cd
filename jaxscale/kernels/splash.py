"""JAX's splash attention (Pallas, TPU): the whole of it, and one block of keys at a time, forward and backward."""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxscale import private
from jaxscale.kernels.plain import NEGATIVE, seen, visible
from jaxscale.kernels.splash_mask import mask_info, mask_info_dkv, stack

if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import BlockSizes
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

# The fused backward makes the scores once, not twice, and writes one dq for each block of keys before it sums them.
# Eight arrays of q's size are less than an MLP's backward holds.
FUSED_COPIES = 8


def attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    *,
    window: int | None,
    softcap: float | None,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention. Blocks above the diagonal and outside the window are never computed.

    Its output is named `attended`: remat may keep it, and then the kernel does not run again.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    T = q_BTNH.shape[1]
    masks, sizes = masks_of(np.arange(T), k_BTKH.shape, window)
    run = kernel.SplashAttentionKernel(
        *masks,
        **options(sizes, window, softcap, interpret),
        save_residuals=False,
        residual_checkpoint_name="attended",
    )
    q, k, v = heads_first(q_BTNH, k_BTKH, v_BTKH)
    out = cast(jax.Array, jax.vmap(run)(q, k, v, segment_ids(segments_BT, segments_BT)))
    return out.swapaxes(1, 2).astype(q_BTNH.dtype)


def forward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segments_BT: jax.Array | None,
    segments_BS: jax.Array | None,
    *,
    positions: np.ndarray,
    rank: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Attention over these keys, and the log of each row's sum of exponentials; `backward` has the gradient.

    Args:
        segments_BT, segments_BS: document numbers of queries and keys, or None for both.
        positions: [T], where each query stands among the keys 0..S-1: it sees those up to there, within the window.
            S - 1 or more: it sees all. Or [C, T], of every rank along a mesh axis.
        rank: this device's row of positions, where they have rows.

    Returns:
        out [B, T, N, H] in q's dtype and lse [B, T, N] in float32. A row that sees nothing has out 0, lse NEGATIVE.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    masks, sizes = masks_of(positions, k_BSKH.shape, window, rank)
    run = kernel.SplashAttentionKernel(
        *masks, **options(sizes, window, softcap, interpret), save_residuals=True, residual_checkpoint_name=None
    )
    segments = segment_ids(segments_BT, segments_BS)
    out, (lse,) = jax.vmap(run)(*heads_first(q_BTNH, k_BSKH, v_BSKH), segments)
    out_BTNH, lse_BTN = out.swapaxes(1, 2), lse.swapaxes(1, 2)
    sees = seen(lse_BTN)
    return jnp.where(sees[..., None], out_BTNH, 0).astype(q_BTNH.dtype), jnp.where(sees, lse_BTN, NEGATIVE)


def backward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segments_BT: jax.Array | None,
    segments_BS: jax.Array | None,
    out_BTNH: jax.Array,
    lse_BTN: jax.Array,
    dout_BTNH: jax.Array,
    *,
    positions: np.ndarray,
    rank: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients through these keys, given `out` and `lse` of the whole rows; the other arguments are `forward`'s.

    Returns:
        dq, dk, dv in the dtypes of q, k, v. A row with lse NEGATIVE adds nothing to them.
    """
    masks, sizes = masks_of(positions, k_BSKH.shape, window, rank)
    kernels = functools.partial(
        private.find("splash_backward"),
        **options(sizes, window, softcap, interpret),
        save_residuals=False,
        residual_checkpoint_name=None,
    )

    def row(q: Any, k: Any, v: Any, segments: Any, out: Any, lse: Any, dout: Any) -> Any:
        saved = (q, k, v, segments, None, out, lse, masks.dq, masks.dkv)
        return kernels(res=saved, do=dout)[3:6]

    q, k, v = heads_first(q_BTNH, k_BSKH, v_BSKH)
    out, dout = (x.swapaxes(1, 2).astype(q.dtype) for x in (out_BTNH, dout_BTNH))
    grads = jax.vmap(row)(q, k, v, segment_ids(segments_BT, segments_BS), out, lse_BTN.swapaxes(1, 2), dout)
    dq, dk, dv = (x.swapaxes(1, 2) for x in grads)
    return dq * q_BTNH.shape[-1] ** -0.5, dk, dv


def heads_first(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As the kernels have them, [B, N, T, H], with scaled queries: the kernels do not scale."""
    return (q_BTNH * q_BTNH.shape[-1] ** -0.5).swapaxes(1, 2), k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)


def segment_ids(segments_BT: jax.Array | None, segments_BS: jax.Array | None) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    if segments_BT is None or segments_BS is None:
        return None
    return kernel.SegmentIds(segments_BT, segments_BS)


def options(sizes: "BlockSizes", window: int | None, softcap: float | None, interpret: bool) -> dict[str, Any]:
    """What the kernels are made with, apart from the masks."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    return {
        "mask_value": kernel.DEFAULT_MASK_VALUE,
        "is_mqa": False,
        "block_sizes": sizes,
        "mask_function": mask_function(window),
        "attn_logits_soft_cap": softcap,
        "interpret": interpret,
    }


@functools.cache
def mask_function(window: int | None) -> Any:
    """One object for each window: jit knows a function that it has traced by its identity."""
    return functools.partial(visible, sliding_window=window)


def block_sizes(T: int, S: int, head_size: int = 128) -> "BlockSizes":
    """Large blocks: fewer steps, fewer partial dqs. Fused backward where FUSED_COPIES allows it. Heads of 256 have
    blocks half as long: 2,048 keys of them are 144 KiB more than v5p's 16 MiB of scoped VMEM."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    block, wide = largest((512, 256, 128), T), largest((2048, 1024, 512, 256, 128)[head_size > 128 :], S)
    compute = largest((512, 256, 128), wide)
    fused = S // wide <= FUSED_COPIES
    return kernel.BlockSizes(
        block_q=block,
        block_kv=wide,
        block_kv_compute=compute,
        block_q_dkv=block,
        block_kv_dkv=wide,
        block_kv_dkv_compute=compute,
        block_q_dq=None if fused else block,
        block_kv_dq=None if fused else largest((1024, 512, 256, 128), wide),
        use_fused_bwd_kernel=fused,
    )


def largest(sizes: tuple[int, ...], length: int) -> int:
    for size in sizes:
        if length % size == 0:
            return size
    raise ValueError(f"splash wants sequences that are a multiple of {sizes[-1]}, not {length}")


# --- masks ----------------------------------------------------------------------------------------------------


class Masks(NamedTuple):
    """What each kernel has to know of the mask; `dq` is None where the backward is fused."""

    forward: "MaskInfo"
    dq: "MaskInfo | None"
    dkv: "MaskInfo"


def masks_of(
    positions: np.ndarray, keys: tuple[int, ...], window: int | None, rank: jax.Array | None = None
) -> tuple[Masks, "BlockSizes"]:
    """Masks and block sizes for keys of shape [B, S, K, H]; of `rank`, where positions are [C, T] of all ranks: then
    shapes are the same on each."""
    positions = np.ascontiguousarray(positions, np.int32)
    if positions.ndim != (1 if rank is None else 2):
        raise ValueError(f"positions are [T], or [C, T] with a rank, not {list(positions.shape)}")
    sizes = block_sizes(positions.shape[-1], keys[1], keys[3])
    stacked = stacked_masks(positions.tobytes(), positions.shape[-1], keys[1], window, sizes)
    if rank is None:
        return jax.tree.map(lambda x: x[0], stacked), sizes
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(jnp.asarray(x), rank, keepdims=False), stacked), sizes


@functools.lru_cache(maxsize=32)  # for every layer that is traced alone
def stacked_masks(positions: bytes, T: int, S: int, window: int | None, sizes: Any) -> Masks:
    """Masks of all ranks, numpy, each array [C, ...]."""
    forward, dq, dkv = [], [], []
    for row in np.frombuffer(positions, np.int32).reshape(-1, T):
        forward.append(mask_info(row, S, window, sizes.block_q, sizes.block_kv))
        if not sizes.use_fused_bwd_kernel:
            dq.append(mask_info(row, S, window, sizes.block_q_dq, sizes.block_kv_dq))
        shrink = not sizes.use_fused_bwd_kernel  # the fused kernel writes a dq at every step of the whole grid
        dkv.append(mask_info_dkv(row, S, window, sizes.block_q_dkv, sizes.block_kv_dkv, shrink=shrink))
    return Masks(stack(forward, axis=2), stack(dq, axis=2) if dq else None, stack(dkv, axis=1))
