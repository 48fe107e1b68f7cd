"""Puzzle 2, operands: a matmul without communication, and without a byte that is not needed.

Puzzle 1 asked where the result is; this one goes the other way. The result's layout is given, and the operands are to
be laid out so that each device can make its block alone (case 1 of the four). Copies of everything everywhere would do
that too, but a device's memory is what we are cutting the model for: hold only what your own block is made of.

The matmul is attention's first: scores of every query with every key, for each row of the batch and each head.
"""

from jax import P


def layouts():
    """Layouts of q and k for scores that are split over both axes of a mesh data=2, tensor=4 (and once 4 and 2).

        q[B, T, N, H] · k[B, S, N, H] -> scores[B_data, N_tensor, T, S]        summed over H

    B batch, T queries, S keys, N heads, H the head's size.

    Comes in: nothing.
    Must come out: the `P` of q and the `P` of k, each with four entries.
    Communication that suffices: none. Memory that suffices: each device 1/8 of q and 1/8 of k.
    """
    raise NotImplementedError("replace this line: return P(...), P(...)")
