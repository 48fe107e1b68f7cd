"""cuDNN's fused attention on NVIDIA: the whole of it, and one block of keys at a time, forward and backward."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from jaxscale import private
from jaxscale.kernels.plain import NEGATIVE, seen

# JAX's own numbers: cuDNN makes an error where it subtracts two larger ones
HIDDEN = {"bfloat16": -(2.0**41), "float16": -(2.0**15)}


def attention(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, segments_BT: jax.Array | None, *, window: int | None
) -> jax.Array:
    """Causal attention. Documents become a [B, 1, T, T] mask; rows without any cost nothing extra."""
    mask = None if segments_BT is None else (segments_BT[:, None, :, None] == segments_BT[:, None, None, :])
    return jax.nn.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        mask=mask,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )


def forward(
    q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array | None, *, causal: bool
) -> tuple[jax.Array, jax.Array]:
    """Attention over these keys, and the log of each row's sum of exponentials; `backward` has the gradient.

    The public function rounds this sum to bfloat16 and drops its gradient.

    Args:
        mask_BTS: bool, [B or 1, T, S]: True where a query sees a key. T and S must be even then. None: it sees all.
        causal: query i sees no key after key i; the mask hides more.

    Returns:
        out [B, T, N, H] in q's dtype and lse [B, T, N] in float32. A row that sees nothing has out 0, lse NEGATIVE.
    """
    out, lse_BNT = private.find("cudnn_attention")(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        bias=bias_of(mask_BTS, q_BTNH.dtype),
        scale=q_BTNH.shape[-1] ** -0.5,
        mask_type=mask_type(causal),
        return_residual=True,
    )
    lse = lse_BNT.swapaxes(1, 2)
    if mask_BTS is None:  # each row sees its first key
        return out, lse
    sees = lse > HIDDEN[q_BTNH.dtype.name] / 2
    return jnp.where(sees[..., None], out, 0), jnp.where(sees, lse, NEGATIVE)


def backward(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask_BTS: jax.Array | None,
    out_BTNH: jax.Array,
    lse_BTN: jax.Array,
    dout_BTNH: jax.Array,
    *,
    causal: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients through these keys, given `out` and `lse` of the whole rows.

    Returns:
        dq, dk, dv in the dtypes of q, k, v. A row with lse NEGATIVE adds nothing to them.
    """
    dtype = q_BTNH.dtype
    bias, unused = bias_of(mask_BTS, dtype), jnp.zeros(0, dtype)
    lse_BNT = jnp.where(seen(lse_BTN), lse_BTN, 0).swapaxes(1, 2)  # 0: exp(HIDDEN - lse) is 0 too
    more: dict[str, Any] = {}
    if "score_mod" in inspect.signature(private.find("cudnn_attention")).parameters:  # since jax 0.12
        more["score_mod"] = None
    dq, dk, dv = private.find("cudnn_backward").bind(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        unused if bias is None else bias,
        *[unused] * 6,  # lengths and offsets of packed sequences, pages
        lse_BNT,
        out_BTNH.astype(dtype),
        dout_BTNH.astype(dtype),
        scale=q_BTNH.shape[-1] ** -0.5,
        seed=0,
        dropout_rate=0.0,
        variadic_args=(bias is not None, False),  # a bias, and no gradient of it
        mask_type=mask_type(causal),
        layout=private.find("cudnn_layout").BTNH.value,
        sliding_window_length=None,
        **more,
    )
    return dq, dk, dv


def bias_of(mask_BTS: jax.Array | None, dtype: jnp.dtype) -> jax.Array | None:
    """[B or 1, 1, T, S], added to the scores: 0 where the mask is True."""
    return None if mask_BTS is None else jnp.where(mask_BTS[:, None], 0, HIDDEN[dtype.name]).astype(dtype)


def mask_type(causal: bool) -> Any:
    kinds = private.find("cudnn_mask_type")
    return kinds.CAUSAL if causal else kinds.NO_MASK
