"""LoRA (arXiv:2106.09685): beside x W, alpha/rank (x A) B, of the matrices that `model.lora.on` names.

Dims: Z rank, the others as in `models.block`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxscale import config as cfg
from jaxscale.blueprint.lora import a_and_b
from jaxscale.models.layers import Maker
from jaxscale.parallel.sharding import einsum

ATTENTION, MLP = ("q", "k", "v", "out"), ("gate", "up", "down")


class Adapters(nnx.Module):
    """A and B of those of the named matrices that are adapted: `q_a`, `q_b` and so on."""

    def __init__(self, model: cfg.Model, step: cfg.Step, rngs: nnx.Rngs, names: Iterable[str]):
        assert model.lora
        self.dtype, self.factor, make = jnp.dtype(step.compute_dtype), model.lora.factor, Maker(model, "float32", rngs)
        self.table = make.table
        for name in (n for n in names if n in model.lora.on):
            a, b = map(make, a_and_b(name))
            setattr(self, f"{name}_a", a)
            setattr(self, f"{name}_b", b)

    def __call__(
        self, name: str, x: jax.Array, y: jax.Array, repeat: Callable[[jax.Array, int], jax.Array] | None
    ) -> jax.Array:
        """y + alpha/rank (x A) B, laid out as y.

        Args:
            x: what W is multiplied by, where it lies between matmuls.
            repeat: how kv heads are repeated along a dim.
        """
        if not hasattr(self, f"{name}_a"):
            return y
        (of_a, out_a), (of_b, out_b) = (self.matmul(row) for row in a_and_b(name))
        # x[B, T_tensor, D] · a[D_fsdp, Z] -> z[B, T_tensor, Z]   gather a over fsdp
        z = einsum(of_a, x, self.weight(f"{name}_a"), out=out_a, name=a_and_b(name)[0])
        z = checkpoint_name(z, f"{name}_lora")
        # z[B, T_tensor, Z] · b[Z, N_tensor, H] -> y[B, T, N_tensor, H]   gather z over tensor
        b = self.weight(f"{name}_b")
        b = b if repeat is None else jax.named_scope(a_and_b(name)[1])(repeat)(b, 1)
        # The factor stands here, so that b's gradient reads the result of an operation and not a loop's carry. That has
        # no layout of its own in the program, and XLA (jax 0.10.2) would abort.
        return y + self.factor * einsum(of_b, z, b, out=out_b, name=a_and_b(name)[1])

    def matmul(self, row: str) -> tuple[str, tuple[str, ...]]:
        """The formula of a row of the table, and the logical axes of its result."""
        op = self.table.op(row)
        formula = f"{op.x},{self.table.weight(row).letters}->{op.y}".lower()
        return formula, tuple(self.table.axis(c, op.y_at) for c in op.y)

    def weight(self, name: str) -> jax.Array:
        weight: jax.Array = getattr(self, name)[...].astype(self.dtype)
        return weight


def give_adapters(block: Any, model: cfg.Model, step: cfg.Step, rngs: nnx.Rngs) -> None:
    """To a layer's attention and MLP, when all else is made: so the base is what it would be without them."""
    if model.lora is None:
        return
    for module, names in ((block.attention, ATTENTION), (block.mlp, MLP)):
        if set(names) & set(model.lora.on):
            module.lora = Adapters(model, step, rngs, names)


def adapted(
    module: nnx.Module,
    name: str,
    x: jax.Array,
    y: jax.Array,
    repeat: Callable[[jax.Array, int], jax.Array] | None = None,
) -> jax.Array:
    """y = x W of one of a module's matrices, with what LoRA adds; y itself where it has none."""
    return module.lora(name, x, y, repeat) if hasattr(module, "lora") else y
