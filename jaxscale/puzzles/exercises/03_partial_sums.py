"""Puzzle 3, partial-sums: both operands are cut along the dim that is summed.

Case 3 of the four: x[B, F_tensor] · w[F_tensor, D]. Each device multiplies its part of F and gets a whole [B, D], but
only one of n terms of the sum: the book writes it out[B, D] {U_tensor}, unreduced. The terms must meet. How much that
costs depends on what comes next: an all-reduce leaves the sum on every device; a reduce-scatter leaves every device
its own rows of the sum, for half of the bytes.

The body of a `shard_map` is the program of one device: arrays in it are that device's blocks.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import P, lax


@partial(jax.shard_map, in_specs=(P(None, "tensor"), P("tensor", None)), out_specs=P("tensor", None))
def project(x, w):
    """x[B, F_tensor] · w[F_tensor, D] -> out[B_tensor, D]

    Comes in: this device's blocks, x float32[B, F/n] and w float32[F/n, D], of a mesh tensor=n.
    Must come out: float32[B/n, D], this device's rows of the whole sum.
    Communication that suffices: one reduce-scatter of [B, D]; each device sends (n-1)/n of it.
    """
    unreduced = x @ w  # [B, D], one of the n terms
    raise NotImplementedError("replace this line: return what this device keeps of the sum of all `unreduced`")
