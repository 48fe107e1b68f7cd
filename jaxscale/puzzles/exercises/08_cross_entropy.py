"""Puzzle 8, cross-entropy: a softmax over a dim that nobody has whole.

The last matmul of a transformer gives logits[B, V_tensor]: each device has all rows, and its own part of the
vocabulary. Logits are the largest array of the whole step; gathering them would cost more than everything else. The
loss of a row is

    log(sum of exp(logits)) - logits[target]

and that needs three numbers of a row, each of them put together from one number per device: the largest logit (without
it exp overflows), the sum of the exponentials, and the logit of the target, which one device has.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import P, lax


# check_vma=False: that all devices return the same is for you to see to
@partial(jax.shard_map, in_specs=(P(None, "tensor"), P()), out_specs=P(), check_vma=False)
def cross_entropy(logits, targets):
    """logits[B, V_tensor], targets[B] -> loss[B]

    Comes in: logits float32[B, V/n], this device's part of the vocabulary, of any size; targets int32[B], indices into
    the whole vocabulary, the same on each device, of a mesh tensor=n.
    Must come out: float32[B], each row's loss, the same on each device.
    Communication that suffices: three all-reduces of [B].
    """
    width = logits.shape[1]
    mine = targets - lax.axis_index("tensor") * width  # the target's place in this device's part, if 0 <= mine < width
    raise NotImplementedError("replace this line, by several: largest, total, target's logit; return the loss")
