"""What each optimizer keeps beside the weights: the one table of it. Knows nothing of jax.

`training.optimizer` builds the optimizers with optax, and a test compares its state with this table. Predictions count
what is here. A new optimizer is a row here and its construction there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Name = Literal["adamw", "lion", "adafactor", "muon"]
Dims = tuple[int, ...]
Axes = tuple[str, ...]
# Adafactor keeps the means of rows and columns where the smaller of the two largest dims has at least so many elements
LEAST_FACTORED = 128


class Slot(NamedTuple):
    """A float32 array that is kept: its dims and their logical axes. Without dims it is a single number."""

    dims: Dims
    axes: Axes


ELEMENTWISE = "updated where it lies, each device its own block; nothing is sent"


class Kept(NamedTuple):
    """What an optimizer keeps for one weight, with a sentence on that and one on the update."""

    words: str
    slots: tuple[Slot, ...]
    update: str = ELEMENTWISE


@dataclass(frozen=True)
class Optimizer:
    """One row of the table.

    Attributes:
        kept: (dims, logical axes) of a weight -> what is kept for it.
        scalars: bytes beside that: int32 counts of steps (the optimizer's and the schedule's), constants.
        left_out: what of its update no prediction counts; empty: nothing.
    """

    kept: Callable[[Dims, Axes], Kept]
    scalars: int
    left_out: str = ""


def adamw(dims: Dims, axes: Axes) -> Kept:
    return Kept("its two moments beside it, in the same layout", (Slot(dims, axes),) * 2)


def momentum(dims: Dims, axes: Axes) -> Kept:
    return Kept("its momentum beside it, in the same layout", (Slot(dims, axes),))


def muon(dims: Dims, axes: Axes) -> Kept:
    """Matrices have a momentum; all other weights are AdamW's (Jordan et al., 2024)."""
    if not matrix_sides(axes):
        return adamw(dims, axes)
    return momentum(dims, axes)._replace(update="made orthogonal as a whole matrix, split and gathered by the compiler")


def matrix_sides(axes: Axes) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The dims of each side of the matrix that Muon orthogonalises, inputs first; None for vectors and tables.

    All dims that a matmul contracts are one side and the rest the other: q is [D] x [N, H], the attention's output
    [N, H] x [D]. `layers` is a batch dim. Tables are the embedding, the positions and the unembedding.
    """
    sides = [(i, name) for i, name in enumerate(axes) if name != "layers"]
    names = [name for _, name in sides]
    if len(sides) < 2 or "vocab" in names or "positions" in names or "embed" not in names:
        return None
    embed = tuple(i for i, name in sides if name == "embed")
    other = tuple(i for i, name in sides if name != "embed")
    return (embed, other) if names[0] == "embed" else (other, embed)


def adafactor(dims: Dims, axes: Axes) -> Kept:
    """Means of the squared gradient over each of the two largest dims, or the whole second moment (arXiv:1804.04235).

    optax keeps all three arrays for each weight; those that are not used have one element.
    """
    order = sorted(range(len(dims)), key=dims.__getitem__)
    if len(dims) < 2 or dims[order[-2]] < LEAST_FACTORED:
        return Kept("its second moment beside it, in the same layout", (Slot(dims, axes), Slot((), ()), Slot((), ())))
    slots = (without(dims, axes, order[-1]), without(dims, axes, order[-2]), Slot((), ()))
    update = "updated where it lies; means of its squared gradient are summed over the axes that split it"
    return Kept("its factors beside it, split as the weight's dims are", slots, update)


def without(dims: Dims, axes: Axes, place: int) -> Slot:
    return Slot(dims[:place] + dims[place + 1 :], axes[:place] + axes[place + 1 :])


COUNTS = 2 * 4
OPTIMIZERS: Mapping[Name, Optimizer] = {
    "adamw": Optimizer(adamw, COUNTS),
    "lion": Optimizer(momentum, COUNTS),
    "adafactor": Optimizer(adafactor, COUNTS),
    # AdamW's counts too, and 3 coefficients of the Newton-Schulz iteration
    "muon": Optimizer(
        muon, 2 * COUNTS + 3 * 4, left_out="Muon's Newton-Schulz matmuls, what they gather, and the memory for it"
    ),
}
