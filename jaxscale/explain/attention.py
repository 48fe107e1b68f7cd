"""Attention's rows, by formula: its kernels are opaque. No jax."""

import math
from collections.abc import Sequence
from dataclasses import replace

from jaxscale import config as cfg
from jaxscale.blueprint.table import Attention
from jaxscale.explain.rows import Row, Tensor
from jaxscale.predict import costs
from jaxscale.predict.attention import attention_cost


def of_keys(letters: str) -> str:
    """S where keys lie, as T is where queries do."""
    return letters.replace("T", "S")


def attention_rows(
    config: cfg.Config, mesh: dict[str, int], phase: str, heads: Sequence[Tensor], letters: Attention
) -> list[Row]:
    """Two rows forward; one backward, as `attention_cost` counts a kernel that makes the scores again.

    Args:
        heads: queries, keys and values.
    """
    cost, T, (q, k, v) = attention_cost(config, mesh), config.data.seq_len, heads
    keys, m = costs.visible_keys(config.model, T), math.prod(q.local(mesh)[:3])
    out = replace(q, name="context", letters=tuple(letters.gathered), sizes=(*q.sizes[:3], v.sizes[3]))
    layout_BNTS = (q.used[0], q.used[2], q.used[1], ())
    scores = Tensor("scores", tuple("BNTS"), (q.sizes[0], q.sizes[2], T, T), layout_BNTS, layout_BNTS, q.dtype)
    note = f"FLOPs by formula: a query sees {keys:,.0f} of {T:,} keys on average; a kernel keeps scores on the chip"
    first, second = (bytes_of(pair, mesh) for pair in ((q, k), (v, out)))
    each = cost.forward_flops / (q.sizes[3] + v.sizes[3])
    tensors = (replace(out, name="d_context"), replace(k, name="k and v"), replace(q, name="d_q, d_k, d_v"))
    formulas = [formula(q, k, scores), formula(scores, v, out)]
    rows = [
        Row(0, "scores", phase, "", 0, formulas[0], q, k, scores, m, q.sizes[3], keys, each * q.sizes[3], first),
        Row(0, "context", phase, "", 0, formulas[1], scores, v, out, m, round(keys), v.sizes[3], each * v.sizes[3],
            second),
    ]  # fmt: skip
    if phase == "backward":
        rows = [Row(0, "attention", phase, "its 5 matmuls", 0, formulas[0], *tensors, m, q.sizes[3], 5 * keys,
                    cost.backward_flops, 1.5 * (first + second))]  # fmt: skip
    return [replace(row, note=note) for row in rows]


def formula(x: Tensor, w: Tensor, out: Tensor) -> str:
    return "{},{}->{}".format(*("".join(t.letters).lower() for t in (x, w, out)))


def bytes_of(tensors: Sequence[Tensor], mesh: dict[str, int]) -> float:
    """That a device moves: a kernel keeps the scores on the chip."""
    return float(sum(t.local_bytes(mesh) for t in tensors))
