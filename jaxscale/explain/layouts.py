"""Every matmul of the step by the default rules: how its tensors are split on any mesh, and what it sends. No jax.

For meshes that were not traced. A spec here names every mesh axis that the rules know for a dim; axes of size 1 fall out.
What is sent adds up to `analysis.traffic` (a test holds it), and on the traced mesh it is what was traced.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from jaxscale import config as cfg
from jaxscale.analysis.costs import recomputed_matmuls
from jaxscale.parallel.rules import ACTIVATIONS, PARAMETERS

Spec = list[list[str]]
MEANING = {"B": "batch", "T": "sequence", "D": "embed", "N": "heads", "K": "kv_heads", "H": "head_dim", "F": "mlp",
           "V": "vocab"}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor of a matmul. Operand: `stored`, then moved to `used`; result: left as `stored`, then moved to `used`.

    Attributes:
        unreduced: mesh axes over which the devices' results are partial sums.
    """

    letters: str
    stored: Spec
    used: Spec
    unreduced: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Send:
    """A collective of one run.

    Attributes:
        shared: another row of the same tensor has it already, so it is not counted here.
        repeated: only where kv heads are repeated, as there are fewer than shards: their copies' gradients are summed.
    """

    operand: str
    kind: str
    axes: list[str]
    shared: bool = False
    repeated: bool = False


@dataclass(frozen=True)
class Layout:
    name: str
    phase: str
    what: str
    formula: str
    x: Tensor
    w: Tensor
    out: Tensor
    sends: list[Send]


@dataclass(frozen=True)
class Matrix:
    """A weight matmul of the decoder: x[B, T, `inner`] · w -> y[B, T, `outer`].

    Attributes:
        first: of the matmuls that read the same x, the one that its gather is counted for.
    """

    name: str
    inner: str
    outer: str
    first: str
    turned: bool = False

    @property
    def letters(self) -> str:
        return self.outer + self.inner if self.turned else self.inner + self.outer

    @property
    def head(self) -> bool:
        return self.name == "unembedding"

    @property
    def column(self) -> bool:
        """Its columns are split over tensor (and x gathered), not its rows (and y's sum scattered)."""
        return self.inner == "D"


def matrices(model: cfg.Model) -> list[Matrix]:
    found = [Matrix("q", "D", "NH", "q"), Matrix("k", "D", "KH", "q"), Matrix("v", "D", "KH", "q"),
             Matrix("out", "NH", "D", "out"), Matrix("up", "D", "F", "up")]  # fmt: skip
    found += [Matrix("gate", "D", "F", "up")] if model.mlp == "swiglu" else []
    return [*found, Matrix("down", "F", "D", "down"), Matrix("unembedding", "D", "V", "unembedding",
                                                             model.tie_embeddings)]  # fmt: skip


def layouts(config: cfg.Config) -> list[dict[str, Any]]:
    """All of them, as JSON: forward, recomputed, and the two gradients of each."""
    again = recomputed_matmuls(config.step)
    keeps_all = config.step.remat == "none"
    found: list[Layout] = []
    for matrix in matrices(config.model):
        regathered = any(m.name in again for m in matrices(config.model) if m.first == matrix.first)
        found.append(forward(matrix, "forward", matrix.first))
        if matrix.name in again:
            first = next(m.name for m in matrices(config.model) if m.first == matrix.first and m.name in again)
            found.append(forward(matrix, "recomputed", first))
        found.append(gradient_of_x(matrix, gathered=matrix.head, shared=matrix.name in again))
        found.append(gradient_of_w(matrix, kept=keeps_all or matrix.head, shared=regathered))
    return [asdict(layout) for layout in found]


def parameter(letters: str) -> Spec:
    return [axes_of(PARAMETERS, c) for c in letters]


def activation(letters: str, *, residual: bool = False) -> Spec:
    """As matmuls use it, or as it lies between them: the sequence over tensor too."""
    return [axes_of(ACTIVATIONS, c, "residual_sequence" if residual and c == "T" else "") for c in letters]


def axes_of(table: Any, letter: str, name: str = "") -> list[str]:
    return [a for a in table[name or MEANING[letter]] if a in cfg.READY_AXES]


BATCH, SEQUENCE = axes_of(ACTIVATIONS, "B"), axes_of(ACTIVATIONS, "T", "residual_sequence")
FSDP = [a for a in axes_of(PARAMETERS, "D") if a in BATCH]  # what parameters are gathered over
DATA = [a for a in BATCH if a not in FSDP]  # what a scattered gradient is still to be summed over


def whole(letters: str) -> Spec:
    """A parameter as it is multiplied: gathered over the axes that split the batch."""
    return [[a for a in axes if a not in FSDP] for axes in parameter(letters)]


def outer_axes(letters: str) -> list[str]:
    return [a for axes in activation(letters.replace("B", "").replace("T", "")) for a in axes]


def formula(x: str, w: str, out: str) -> str:
    return f"{x},{w}->{out}".lower()


def gathered(operand: str, axes: list[str], shared: bool = False) -> list[Send]:
    return [Send(operand, "all-gather", axes, shared)] if axes else []


def residual_x(matrix: Matrix) -> Tensor:
    letters = "BT" + matrix.inner
    return Tensor(letters, activation(letters, residual=matrix.column), activation(letters))


def residual_y(matrix: Matrix) -> Tensor:
    """The gradient that arrives at the result."""
    letters = "BT" + matrix.outer
    return Tensor(letters, activation(letters, residual=not matrix.column), activation(letters))


def forward(matrix: Matrix, phase: str, first: str) -> Layout:
    x, letters = residual_x(matrix), "BT" + matrix.outer
    w = Tensor(matrix.letters, parameter(matrix.letters), whole(matrix.letters))
    sends = gathered("x", SEQUENCE, matrix.name != first) if matrix.column else []
    sends += gathered("w", FSDP)
    if matrix.column:
        out = Tensor(letters, activation(letters), activation(letters))
    else:
        out = Tensor(letters, activation(letters), activation(letters, residual=True), outer_axes(matrix.inner))
        sends.append(Send("out", "reduce-scatter", SEQUENCE))
    return Layout(matrix.name, phase, "", formula(x.letters, w.letters, letters), x, w, out, sends)


def gradient_of_x(matrix: Matrix, *, gathered: bool, shared: bool) -> Layout:
    """dy · w -> dx. `gathered`: w still is from the forward pass; `shared`: the recomputed matmul has gathered it."""
    dy, letters = residual_y(matrix), "BT" + matrix.inner
    stored = whole(matrix.letters) if gathered else parameter(matrix.letters)
    w = Tensor(matrix.letters, stored, whole(matrix.letters))
    sends = [] if matrix.column else [Send("x", "all-gather", SEQUENCE)]
    sends += [] if gathered else [Send("w", "all-gather", FSDP, shared)]
    if matrix.column:
        out = Tensor(letters, activation(letters), activation(letters, residual=True), outer_axes(matrix.outer))
        sends.append(Send("out", "reduce-scatter", SEQUENCE, matrix.name != matrix.first))
    else:
        out = Tensor(letters, activation(letters), activation(letters))
    return Layout(matrix.name, "backward", "gradient of x", formula(dy.letters, w.letters, letters), dy, w, out, sends)


def gradient_of_w(matrix: Matrix, *, kept: bool, shared: bool) -> Layout:
    """x · dy -> dw. `kept`: x as it was multiplied is still there; `shared`: the recomputed matmul has gathered it."""
    x, dy = residual_x(matrix), residual_y(matrix)
    sends: list[Send] = []
    if matrix.column and kept:
        x = Tensor(x.letters, x.used, x.used)
    elif matrix.column:
        sends += gathered("x", SEQUENCE, shared or matrix.name != matrix.first)
    else:
        sends += gathered("w", SEQUENCE, True)  # dy, by the gradient of x
    out = Tensor(matrix.letters, whole(matrix.letters), parameter(matrix.letters), BATCH)
    sends += [Send("out", "reduce-scatter", FSDP), Send("out", "all-reduce", DATA)]
    if "K" in matrix.letters:
        sends.append(Send("out", "all-reduce", axes_of(ACTIVATIONS, "K"), repeated=True))
    return Layout(matrix.name, "backward", "gradient of w", formula(x.letters, dy.letters, matrix.letters), x, dy, out,
                  sends)  # fmt: skip
