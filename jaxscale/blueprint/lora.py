"""LoRA as rows of a model's table: A and B beside each matrix that it is for, and the matmuls with them. No jax.

x is multiplied by A where it lies between matmuls. So what tensor parallelism sends has LoRA's rank and not the model's
width. Letters: Z the rank.
"""

import math
from dataclasses import replace

from jaxscale import config as cfg
from jaxscale.blueprint.table import RESIDUAL, Activation, Blueprint, Dim, Op, Weight

RANK = "Z"
PART, SCORE = "lora", "score"  # of a table of parameters; the second is trained beside LoRA


def adapted(base: Blueprint, lora: cfg.Lora) -> Blueprint:
    """A model whose own weights stay as they are; A and B are trained, and a reward model's vector."""
    pairs = {op.name: matmuls(op) for op in base.ops if op.name in lora.on}
    return replace(
        base,
        dims={**base.dims, RANK: Dim("rank", lora.rank, "model.lora.rank")},
        weights=(
            *(replace(w, trained=w.part == SCORE) for w in base.weights),
            *(row for name in pairs for row in weights(base.op(name), base)),
        ),
        ops=tuple(row for op in base.ops for row in (op, *pairs.get(op.name, ()))),
        activations=(*base.activations, *(Activation(a.saves, a.y, a.y_at, only=a.only) for a, _ in pairs.values())),
        parts=(*base.parts, PART),
    )


def a_and_b(name: str) -> tuple[str, str]:
    """Names of the rows for a matrix."""
    return f"{name}_lora_a", f"{name}_lora_b"


def sides(op: Op, letters: str) -> tuple[str, str]:
    """Of a matrix: the letters that are summed over, and those that it gives."""
    return "".join(c for c in letters if c in op.x), "".join(c for c in letters if c not in op.x)


def weights(op: Op, base: Blueprint) -> tuple[Weight, Weight]:
    """A begins normal, 1/sqrt(fan in); B begins at zero."""
    before, after = sides(op, base.weight(op.weight_name).letters)
    std = math.prod(base.dims[c].size for c in before) ** -0.5
    a, b = a_and_b(op.name)
    return (
        Weight(a, PART, f"{before}{RANK}", only=op.only, std=std, float32=True),
        Weight(b, PART, f"{RANK}{after}", only=op.only, scale=0, float32=True),
    )


def matmuls(op: Op) -> tuple[Op, Op]:
    """x A, on each device's own tokens; and that times B, which is added to the matmul's result."""
    a, b = a_and_b(op.name)
    low = f"BT{RANK}"
    return (
        Op(a, op.x, low, f"{op.name}_lora", a, x_at=op.x_at, x_in=op.x_at, y_at=RESIDUAL, only=op.only),
        Op(b, low, op.y, op.saves, b, x_at=RESIDUAL, x_in=op.y_at, y_at=op.y_at, needed=op.needed, only=op.only),
    )
