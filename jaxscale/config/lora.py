"""The section `model.lora`: small matrices that are trained beside a model that stays as it is (arXiv:2106.09685)."""

from pydantic import model_validator

from jaxscale.config.values import Above0, Positive, Section
from jaxscale.files.spelling import nearest

MATRICES: tuple[str, ...] = ("q", "k", "v", "out", "gate", "up", "down")  # of a layer, by their names in the blueprint


class Lora(Section):
    """Beside each named matrix W, x W becomes x W + alpha/rank (x A) B. Only A and B are trained, in float32."""

    rank: Positive
    """Columns of A and rows of B, the two matrices trained for each named matrix."""
    alpha: Above0 | None = None
    """What is trained is multiplied by alpha / rank; null: 2 * rank, a factor of 2."""
    on: tuple[str, ...] = ("q", "v")
    """Matrices of a layer that get LoRA, among q, k, v, out, gate, up and down."""

    @model_validator(mode="after")
    def _fill_and_check(self) -> "Lora":
        if self.alpha is None:
            object.__setattr__(self, "alpha", 2.0 * self.rank)
        for name in self.on:
            if name not in MATRICES:
                raise ValueError(f"on: no matrix {name}{nearest(name, MATRICES)}; there are {', '.join(MATRICES)}")
        if not self.on or len(set(self.on)) < len(self.on):
            raise ValueError(f"on: [{', '.join(self.on)}] names none, or one twice; there are {', '.join(MATRICES)}")
        return self

    @property
    def factor(self) -> float:
        """What (x A) B is multiplied by."""
        assert self.alpha is not None
        return self.alpha / self.rank


def require_matrices(lora: Lora, *, mlp: str, experts: bool) -> None:
    """ValueError for a matrix that a model with such an MLP has not, or with experts has not once."""
    left_out = MATRICES[4:] if experts else MATRICES[4:5] if mlp == "gelu" else ()
    there = [name for name in MATRICES if name not in left_out]
    if missing := [name for name in lora.on if name not in there]:
        kind = "experts" if experts else f"mlp={mlp}"
        raise ValueError(f"lora.on: {missing[0]} with {kind}; LoRA is for {', '.join(there)} there, so remove it")
