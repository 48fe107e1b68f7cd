"""What `explain` tells, as data: a matmul of the step, its tensors, what is sent for it. No jax.

The notation is the scaling book's (https://jax-ml.github.io/scaling-book/sharding): `w_up[D_fsdp, F_tensor]` is split
over the mesh axis fsdp along D and over tensor along F. Sizes are global, `bytes` and FLOPs are of one device and run.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

Axes = tuple[str, ...]
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "int8": 1, "float8_e4m3fn": 1, "int32": 4}
CASES = {
    1: "no contracted dim is split, and the axis splits the other dims of one operand at most: nothing is sent",
    2: "one operand's contracted dim is split: that operand is gathered first",
    3: "both contracted dims are split alike: partial sums, which are added up over the axis",
    4: "both operands' other dims are split over one axis: one of the two is gathered first",
}


@dataclass(frozen=True)
class Tensor:
    """An operand or the result of a matmul.

    Attributes:
        letters: one for each dim: B batch, T sequence, S keys, D embed, N heads, K kv heads, H head dim, F mlp,
            V vocab; of experts those of `blueprint.decoder`.
        stored: mesh axes that split each dim where the step keeps it; of a result, after its reduction.
        used: the same as the matmul takes it, or leaves it.
        unreduced: of a result, axes over which the devices hold partial sums when the matmul is done.
    """

    name: str
    letters: tuple[str, ...]
    sizes: tuple[int, ...]
    stored: tuple[Axes, ...]
    used: tuple[Axes, ...]
    dtype: str
    unreduced: Axes = ()

    def __str__(self) -> str:
        return notation(self.name, self.letters, self.stored)

    def local(self, mesh: Mapping[str, int], *, used: bool = True) -> tuple[int, ...]:
        """The sizes of a device's block."""
        layout = self.used if used else self.stored
        return tuple(n // math.prod(mesh[a] for a in axes) for n, axes in zip(self.sizes, layout, strict=True))

    def local_bytes(self, mesh: Mapping[str, int], *, used: bool = True) -> int:
        return math.prod(self.local(mesh, used=used)) * ITEM_BYTES[self.dtype]


def notation(name: str, letters: tuple[str, ...], layout: tuple[Axes, ...]) -> str:
    """`x[B_{data,fsdp}, T, D]`."""
    return f"{name}[{', '.join(dim(c, axes) for c, axes in zip(letters, layout, strict=True))}]"


def dim(letter: str, axes: Axes) -> str:
    return letter if not axes else f"{letter}_{axes[0]}" if len(axes) == 1 else f"{letter}_{{{','.join(axes)}}}"


@dataclass(frozen=True)
class Send:
    """A collective that a matmul needs: V bytes a device and run, as the scaling book counts them.

    Attributes:
        operand: `x`, `w` or `out`.
        shared: names of the other matmuls that this one collective serves.
        seconds, network: predicted.
        compiled: `same`, `form` (the same sums in another form), `different`, or `not compiled`; `note` says why.
        path: where it stands in the traced program.
        of: `dispatch` or `combine`, where rows go to experts or come back; `sent`: what is sent, if not the operand.
    """

    operand: str
    kind: str
    axes: Axes
    bytes: int
    times: int
    path: str
    shared: tuple[str, ...] = ()
    seconds: float = 0.0
    network: str = ""
    compiled: str = "not compiled"
    note: str = ""
    of: str = ""
    sent: str = ""

    @property
    def words(self) -> str:
        return f"{self.kind} {self.operand} over {'+'.join(self.axes)}"


@dataclass(frozen=True)
class Row:
    """One matmul of the step.

    Attributes:
        phase: `forward`, `recomputed` (again in the backward pass) or `backward`.
        what: of a backward one: `gradient of x` or `gradient of w`.
        times: runs a step: layers and microbatches.
        m, k, n: of a device: [m, k] · [k, n]; n may be a mean (keys that a query sees).
        seconds: predicted, of one run: compute, HBM, and each network.
    """

    id: int
    name: str
    phase: str
    what: str
    times: int
    formula: str
    x: Tensor
    w: Tensor
    out: Tensor
    m: int
    k: int
    n: float
    flops: float
    hbm_bytes: float
    sends: tuple[Send, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    note: str = ""
    tags: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.name}{', ' + self.what if self.what else ''}{' (recomputed)' * (self.phase == 'recomputed')}"

    @property
    def intensity(self) -> float:
        """FLOPs for each byte of HBM."""
        return self.flops / self.hbm_bytes

    @property
    def bound(self) -> str:
        """What takes longest, if all of it ran at the same time."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.seconds else ""

    @property
    def cases(self) -> dict[str, int]:
        """Mesh axis -> which of the scaling book's four cases it is, from where the operands are stored."""
        return {axis: case(axis, self) for axis in splits(self.x) | splits(self.w)}

    def words(self, send: Send) -> str:
        """`dispatch: all-gather x over expert`."""
        name = send.sent or getattr(self, send.operand).name
        return f"{send.of}{': ' * bool(send.of)}{send.kind} {name} over {'+'.join(send.axes)}"

    def __str__(self) -> str:
        return f"{self.x} · {self.w} -> {self.out}"


def joined(row: Row) -> Row:
    """Collectives that are the same, of layers in several loops, as one: as often as the matmul runs at most."""
    sends: list[Send] = []
    for send in row.sends:
        same = (i for i, s in enumerate(sends) if replace(s, times=send.times, path=send.path) == send)
        at = next((i for i in same if sends[i].times + send.times <= row.times), None)
        if at is None:
            sends.append(send)
        else:
            sends[at] = replace(sends[at], times=sends[at].times + send.times)
    return replace(row, sends=tuple(sends))


def splits(tensor: Tensor) -> dict[str, str]:
    """Mesh axis -> the letter that it splits where the operand is stored, or when it is used: few kv heads are stored
    whole, and each device uses one."""
    layouts = [zip(tensor.letters, layout, strict=True) for layout in (tensor.used, tensor.stored)]
    return {axis: c for layout in layouts for c, axes in layout for axis in axes}


def case(axis: str, row: Row) -> int:
    """The case of one mesh axis (scaling book, sharding.md): an axis splits each operand along one dim at most."""
    in_x, in_w = splits(row.x).get(axis), splits(row.w).get(axis)
    if {in_x, in_w} == {"N", "K"}:  # queries' heads and the kv heads that they read: one dim in groups
        return 1
    contracted = set(row.x.letters) & set(row.w.letters) - set(row.out.letters)
    if not {in_x, in_w} & contracted:
        return 4 if in_x and in_w and in_x != in_w else 1
    return 3 if in_x == in_w else 2


@dataclass(frozen=True)
class Other:
    """A collective of the step that belongs to no matmul: the lookup, norms' gradients, the loss's sums."""

    what: str
    kind: str
    axes: Axes
    bytes: int
    times: int
    phase: str
    compiled: str = "not compiled"
    note: str = ""


def from_values(values: dict[str, Any]) -> tuple[list[Row], list[Other]]:
    """The inverse of `as_values`, for what a child process wrote."""

    def tensor(v: dict[str, Any]) -> Tensor:
        layouts = {k: tuple(tuple(axes) for axes in v[k]) for k in ("stored", "used")}
        return Tensor(**v | layouts | {k: tuple(v[k]) for k in ("letters", "sizes", "unreduced")})

    def send(v: dict[str, Any]) -> Send:
        return Send(**v | {"axes": tuple(v["axes"]), "shared": tuple(v["shared"])})

    rows = [
        Row(
            **v
            | {k: tensor(v[k]) for k in ("x", "w", "out")}
            | {"sends": tuple(map(send, v["sends"]))}
            | {"tags": tuple(v["tags"])}
        )
        for v in values["rows"]
    ]
    return rows, [Other(**v | {"axes": tuple(v["axes"])}) for v in values["others"]]


def as_values(rows: list[Row], others: list[Other]) -> dict[str, Any]:
    return {"rows": [asdict(r) for r in rows], "others": [asdict(o) for o in others]}
