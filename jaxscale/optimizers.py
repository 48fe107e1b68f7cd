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


class Rule(NamedTuple):
    """What is kept for a weight of any size. It is plain numbers, so that the page of `explain` reads it too.

    Attributes:
        words: what a reader calls it.
        whole: how many arrays of the weight's shape.
        factored: instead of one of them, means over each of the two largest dims, if the smaller of these has at least
            so many elements; 0: never. optax then keeps three arrays, and those that are not used have one element.
        update: a sentence on the update.
    """

    words: str
    whole: int
    factored: int = 0
    update: str = ELEMENTWISE

    def kept(self, dims: Dims, axes: Axes) -> "Kept":
        """The arrays for a weight with these dims and logical axes."""
        whole, single = Slot(dims, axes), Slot((), ())
        layout = f"{self.words} beside it, in the same layout"
        if not self.factored:
            return Kept(layout, (whole,) * self.whole, self.update)
        order = sorted(range(len(dims)), key=dims.__getitem__)
        if len(dims) < 2 or dims[order[-2]] < self.factored:
            return Kept(layout, (whole, single, single), self.update)
        update = "updated where it lies; means of its squared gradient are summed over the axes that split it"
        factors = tuple(without(dims, axes, place) for place in (order[-1], order[-2]))
        return Kept("its factors beside it, split as the weight's dims are", (*factors, single), update)


class Kept(NamedTuple):
    """What an optimizer keeps for one weight, with a sentence on that and one on the update."""

    words: str
    slots: tuple[Slot, ...]
    update: str


def without(dims: Dims, axes: Axes, place: int) -> Slot:
    return Slot(dims[:place] + dims[place + 1 :], axes[:place] + axes[place + 1 :])


@dataclass(frozen=True)
class Optimizer:
    """One row of the table.

    Attributes:
        rule: logical axes of a weight -> what is kept for it.
        scalars: bytes beside that: int32 counts of steps (the optimizer's and the schedule's), constants.
        left_out: what of its update no prediction counts; empty: nothing.
    """

    rule: Callable[[Axes], Rule]
    scalars: int
    left_out: str = ""

    def kept(self, dims: Dims, axes: Axes) -> Kept:
        return self.rule(axes).kept(dims, axes)


ADAMW = Rule("its two moments", 2)
MOMENTUM = Rule("its momentum", 1)
ADAFACTOR = Rule("its second moment", 1, factored=LEAST_FACTORED)  # arXiv:1804.04235
MUON = MOMENTUM._replace(update="made orthogonal as a whole matrix, split and gathered by the compiler")


def muon(axes: Axes) -> Rule:
    """Matrices have a momentum; all other weights are AdamW's (Jordan et al., 2024)."""
    return MUON if matrix_sides(axes) else ADAMW


def matrix_sides(axes: Axes) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The dims of each side of the matrix that Muon orthogonalises, inputs first; None for vectors and tables.

    All dims that a matmul contracts are one side and the rest the other: q is [D] x [N, H], the attention's output
    [N, H] x [D]. `layers` and `experts` are batch dims. Tables are the embedding, the positions and the unembedding.
    """
    sides = [(i, name) for i, name in enumerate(axes) if name not in BATCH]
    names = [name for _, name in sides]
    embed = tuple(i for i, name in sides if name in EMBED)
    if len(sides) < 2 or "vocab" in names or "positions" in names or not embed:
        return None
    other = tuple(i for i, name in sides if name not in EMBED)
    return (embed, other) if names[0] in EMBED else (other, embed)


BATCH, EMBED = ("layers", "experts"), ("embed", "expert_embed")  # logical axes


COUNTS = 2 * 4
OPTIMIZERS: Mapping[Name, Optimizer] = {
    "adamw": Optimizer(lambda axes: ADAMW, COUNTS),
    "lion": Optimizer(lambda axes: MOMENTUM, COUNTS),
    "adafactor": Optimizer(lambda axes: ADAFACTOR, COUNTS),
    # AdamW's counts too, and 3 coefficients of the Newton-Schulz iteration
    "muon": Optimizer(
        muon, 2 * COUNTS + 3 * 4, left_out="Muon's Newton-Schulz matmuls, what they gather, and the memory for it"
    ),
}
