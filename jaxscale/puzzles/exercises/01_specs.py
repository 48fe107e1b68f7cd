"""Puzzle 1, specs: which device holds which block of a result?

A mesh gives every device a place along named axes; here they are data=2 and tensor=4 (and once 4 and 2). The scaling
book writes a layout by hanging axes on dims: in `out[i_data, k_tensor]` dim i is cut over axis data and dim k over
axis tensor, and each device holds one block. A dim with no axis is whole on every device; `k_{data,tensor}` is cut over
both axes, data first. JAX writes the same as `P`: one entry a dim, in order: an axis, `None`, or a tuple of axes.

In the three matmuls below nobody cuts the dim that is summed, j: each device has all that its own block needs. That is
case 1 of the four: nothing is sent, if the result stays where it is made.
"""

from jax import P


def specs():
    """The layout of `out[i, k]` in each of three matmuls.

        x[i_data, j]   · w[j, k_tensor]        -> out[i_data, k_tensor]
        x[i, j]        · w[j, k_{data,tensor}] -> out[i, k_{data,tensor}]
        x[i_tensor, j] · w[j, k]               -> out[i_tensor, k]

    Comes in: nothing.
    Must come out: three `P`, in this order, each with an entry for i and one for k.
    Communication that suffices: none.
    """
    raise NotImplementedError("replace this line: return P(...), P(...), P(...)")
