"""What a training step minimises, as a value. Knows nothing of optimizers, files or clocks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import jax
from flax import nnx

from jaxscale.data.columns import DOCUMENTS

Batch = dict[str, jax.Array]  # column -> [B, T]; see `data.columns`
Sums = dict[str, jax.Array]  # name -> float32 scalar; those of a model's layers may be arrays


class SumsOf(Protocol):
    """Sums over a batch, or one part of it.

    Returns those that `Objective.means` names, the auxiliary sums of the model's layers, and `objective`, which is
    differentiated. Only `objective` is divided already: so the scale of its gradient is 1, and the last matrix's
    gradient, the step's largest array, is not copied to be scaled.
    """

    def __call__(
        self, model: nnx.Module, batch: Batch, *, divisor: jax.Array | float = 1.0, rng: jax.Array | None = None
    ) -> Sums: ...


@dataclass(frozen=True)
class Objective:
    """What is read of a batch, what is summed over it, and what the sums are divided by.

    Attributes:
        columns: of a batch, those that it reads itself.
        sums: see `SumsOf`.
        finish: metrics of a step -> those that are logged; None: they are.
        of_layers: what the auxiliary sums of a model's layers add to `objective`, for a divisor; None: nothing. `sums`
            adds it where the model gives such sums.
        count: batch -> float32 scalar: of the whole batch, what its sums are divided by (1 where it is less).
        means: metric -> the sum that is divided. `loss` must be there: guard, curves and reports read it. Metrics of a
            model's layers may be arrays; see `objectives.routers`.
        unit: what is counted; the count's name among the metrics.
        validated: of `means`, those that an evaluation reports.
        flops_per_token: what it computes beyond the model, forward and backward; MFU counts it.
        frozen: parameters with one of these names in their path are not trained, as in `optimizer.no_decay`.
    """

    columns: tuple[str, ...]
    sums: SumsOf
    count: Callable[[Batch], jax.Array]
    means: Mapping[str, str]
    finish: Callable[[Sums], Sums] | None = None
    of_layers: Callable[[Sums, jax.Array | float], jax.Array] | None = None
    unit: str = "tokens"
    validated: tuple[str, ...] = ("loss",)
    flops_per_token: float = 0.0
    frozen: tuple[str, ...] = ()

    def reads(self, *, documents: bool) -> tuple[str, ...]:
        """The columns of a batch, with those that a model takes where a row holds several documents."""
        return (*self.columns, *(name for name in DOCUMENTS if documents and name not in self.columns))
