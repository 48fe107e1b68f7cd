"""Every matmul of the step by the default rules: how its tensors are split on any mesh, and what it sends. No jax.

For meshes that were not traced. A spec here names every mesh axis that the rules know for a dim; axes of size 1 fall
out. What is sent adds up to `analysis.traffic`, and on the traced mesh it is what was traced; tests hold both.
"""

from collections.abc import Sequence
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
        shared: titles of the other matmuls that this one serves too.
        repeated: only where kv heads are repeated, as there are fewer than shards: their copies' gradients are summed.
    """

    operand: str
    kind: str
    axes: list[str]
    shared: list[str] = field(default_factory=list)
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
        group: the matmuls that read the same x, in the order of the forward pass.
        again: it is recomputed in the backward pass.
    """

    name: str
    inner: str
    outer: str
    group: tuple[str, ...]
    again: bool = False
    turned: bool = False

    @property
    def letters(self) -> str:
        return self.outer + self.inner if self.turned else self.inner + self.outer

    @property
    def column(self) -> bool:
        """Its columns are split over tensor (and x gathered), not its rows (and y's sum scattered)."""
        return self.inner == "D"


def matrices(config: cfg.Config) -> list[Matrix]:
    model, again = config.model, recomputed_matmuls(config.step)
    qkv, wide = ("q", "k", "v"), ("up", "gate") if model.mlp == "swiglu" else ("up",)
    shapes = [("q", "D", "NH", qkv), ("k", "D", "KH", qkv), ("v", "D", "KH", qkv), ("out", "NH", "D", ("out",)),
              *((name, "D", "F", wide) for name in wide), ("down", "F", "D", ("down",))]  # fmt: skip
    found = [Matrix(name, inner, outer, group, name in again) for name, inner, outer, group in shapes]
    return [*found, Matrix("unembedding", "D", "V", ("unembedding",), turned=model.tie_embeddings)]


def layouts(config: cfg.Config) -> list[dict[str, Any]]:
    """All of them, as JSON: forward, recomputed, and the two gradients of each."""
    keeps_all = config.step.remat == "none"
    found: list[Layout] = []
    for matrix in (all_of_them := matrices(config)):
        again = [m.name for m in all_of_them if m.group == matrix.group and m.again]
        head = matrix.name == "unembedding"
        found.append(forward(matrix))
        if matrix.again:
            found.append(recomputed(matrix, again))
        found.append(gradient_of_x(matrix, gathers=not (head or matrix.again)))
        found.append(gradient_of_w(matrix, kept=keeps_all and not head, gathers=not (keeps_all or head or again)))
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


def summed_over(letters: str) -> list[str]:
    return [a for axes in activation(letters) for a in axes]


def formula(x: str, w: str, out: str) -> str:
    return f"{x},{w}->{out}".lower()


def titles(names: Sequence[str], what: str) -> list[str]:
    return [f"{name}{what}" for name in names]


X, W, AGAIN = ", gradient of x", ", gradient of w", " (recomputed)"


def operand(matrix: Matrix) -> Tensor:
    letters = "BT" + matrix.inner
    return Tensor(letters, activation(letters, residual=matrix.column), activation(letters))


def cotangent(matrix: Matrix) -> Tensor:
    """The gradient that arrives at the result."""
    letters = "BT" + matrix.outer
    return Tensor(letters, activation(letters, residual=not matrix.column), activation(letters))


def forward(matrix: Matrix) -> Layout:
    """A gather is told with the first matmul that it serves, a reduction with the last, in the order of the step."""
    sends = []
    if matrix.column and matrix.name == matrix.group[0]:
        served = titles(matrix.group, W) if matrix.name == "unembedding" else list(matrix.group[1:])
        sends.append(Send("x", "all-gather", SEQUENCE, served))
    sends.append(Send("w", "all-gather", FSDP, titles([matrix.name], X) if matrix.name == "unembedding" else []))
    return product(matrix, "forward", sends)


def recomputed(matrix: Matrix, again: list[str]) -> Layout:
    """`again`: of the matmuls that read the same x, those that are recomputed."""
    sends = []
    if matrix.column and matrix.name == again[0]:
        sends.append(Send("x", "all-gather", SEQUENCE, titles(again[1:], AGAIN) + titles(matrix.group[::-1], W)))
    return product(matrix, "recomputed", [*sends, Send("w", "all-gather", FSDP, titles([matrix.name], X))])


def product(matrix: Matrix, phase: str, sends: list[Send]) -> Layout:
    x, letters = operand(matrix), "BT" + matrix.outer
    w = Tensor(matrix.letters, parameter(matrix.letters), whole(matrix.letters))
    out = Tensor(letters, activation(letters), activation(letters))
    if not matrix.column:
        out = Tensor(letters, activation(letters), activation(letters, residual=True), summed_over(matrix.inner))
        sends = [*sends, Send("out", "reduce-scatter", SEQUENCE)]
    return Layout(matrix.name, phase, "", formula(x.letters, w.letters, letters), x, w, out, sends)


def gradient_of_x(matrix: Matrix, *, gathers: bool) -> Layout:
    """dy · w -> dx. `gathers`: w, as no matmul before it has."""
    dy, letters = cotangent(matrix), "BT" + matrix.inner
    w = Tensor(matrix.letters, parameter(matrix.letters), whole(matrix.letters))
    sends = [Send("w", "all-gather", FSDP)] if gathers else []
    out = Tensor(letters, activation(letters), activation(letters))
    if matrix.column:
        out = Tensor(letters, activation(letters), activation(letters, residual=True), summed_over(matrix.outer))
        if matrix.name == matrix.group[0]:
            sends.append(Send("out", "reduce-scatter", SEQUENCE, titles(matrix.group[:0:-1], X)))
    return Layout(matrix.name, "backward", "gradient of x", formula(dy.letters, w.letters, letters), dy, w, out, sends)


def gradient_of_w(matrix: Matrix, *, kept: bool, gathers: bool) -> Layout:
    """x · dy -> dw. `kept`: x as it was multiplied is still there; `gathers`: x, as no matmul before it has."""
    x, dy = operand(matrix), cotangent(matrix)
    sends: list[Send] = []
    if matrix.column and kept:
        x = Tensor(x.letters, x.used, x.used)
    elif matrix.column and gathers and matrix.name == matrix.group[-1]:
        sends.append(Send("x", "all-gather", SEQUENCE, titles(matrix.group[-2::-1], W)))
    if not matrix.column:
        sends.append(Send("w", "all-gather", SEQUENCE, titles([matrix.name], X)))
    out = Tensor(matrix.letters, whole(matrix.letters), parameter(matrix.letters), BATCH)
    sends += [Send("out", "reduce-scatter", FSDP), Send("out", "all-reduce", DATA)]
    if "K" in matrix.letters:
        sends.append(Send("out", "all-reduce", axes_of(ACTIVATIONS, "K"), repeated=True))
    return Layout(matrix.name, "backward", "gradient of w", formula(x.letters, dy.letters, matrix.letters), x, dy, out,
                  sends)  # fmt: skip
