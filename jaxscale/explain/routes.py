"""Rows of the experts' matmuls, and which of them a collective that moves rows to experts belongs to. No jax.

The experts' program (`models.experts`) knows sorted rows, not an expert's share. So the rules tell its matmuls.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from jaxscale.blueprint.passes import Pass
from jaxscale.blueprint.table import Blueprint
from jaxscale.explain.paths import phase, what
from jaxscale.explain.rows import Row, Tensor
from jaxscale.predict import costs

EXPERTS = "experts"  # scope of the program that rows go to experts in
INSIDE = ("dispatch", "combine")  # scopes of what it sends
ROUTING = "routing"  # what is sent with rows: their experts, weights and counts
EVEN = "C: rows of an expert where loads are even"
ROOM = "simulated devices send room for all rows to each shard, chips the rows alone (ragged-all-to-all)"
# scope -> does it serve the first matmul or the last, as which operand, and what it is of
SCOPES = {
    "gather_for_experts": (0, "x", "dispatch"),
    "dispatch": (0, "x", "dispatch"),
    EXPERTS: (-1, "out", "combine"),
    "combine": (-1, "out", "combine"),
}


def scope_of(path: str) -> str:
    """`dispatch`, `combine`, or empty."""
    return SCOPES.get(what(path), (0, "", ""))[2]


def sent_of(path: str, last_dim: int, model: Blueprint) -> str:
    """`routing` where it is no row that is sent."""
    rows = model.routed is not None and model.dims[model.routed.stream[-1]].size == last_dim
    return ROUTING if scope_of(path) and not rows else ""


def ordered(row: Row) -> Row:
    """With what is sent before its matmul first, and what is sent after it last."""
    sends = sorted(row.sends, key=lambda send: ("x", "w", "out").index(send.operand))
    return replace(row, sends=tuple(sends)) if row.note == EVEN else row


def explained(row: Row) -> Row:
    """With a note where simulated devices send otherwise than chips."""
    room = any(send.of and send.kind == "all-to-all" for send in row.sends)
    return replace(row, note=f"{row.note}; {ROOM}") if room else row


def served(path: str, rows: Iterable[Row]) -> tuple[int, str] | None:
    """The matmul of experts that a collective serves, by the name of its scope, and as which operand."""
    expert_rows = [row for row in rows if row.note == EVEN]
    if not expert_rows:
        return None
    name, kind = what(path), phase(path)
    place, side, _ = SCOPES.get(name, (0, "w", ""))
    if name in SCOPES:
        name = list(dict.fromkeys(row.name for row in expert_rows if row.phase == "forward"))[place]
    if kind == "backward":  # the transpose moves a gradient the other way
        wanted = [(name, "gradient of w", "out")] if side == "w" else [(name, "gradient of x", OTHER[side])]
    elif kind == "recomputed":  # where the matmul itself is not, a gradient reads it
        again = next((row.name for row in expert_rows if row.phase == kind and side == "x"), name)
        wanted = [(again, "", side), (name, "gradient of x" if side == "w" else "gradient of w", side)]
    else:
        wanted = [(name, "", side)]
    for name, gradient, operand in wanted:
        for row in expert_rows:
            if (row.name, row.what) == (name, gradient) and (row.phase == kind or gradient):
                return row.id, operand
    return None


OTHER = {"x": "out", "out": "x"}


def also_for(row: Row, operand: str, rows: Iterable[Row]) -> tuple[str, ...]:
    """Titles of the other matmuls of experts that have the same array, in the same pass."""
    array = getattr(row, operand)
    return tuple(
        other.title
        for other in rows
        if other.note == EVEN and other.title != row.title and (other.phase == "forward") == (row.phase == "forward")
        and any((t.name, t.letters) == (array.name, array.letters) for t in (other.x, other.w, other.out))
    )  # fmt: skip


def expert_row(
    one: Pass, number: int, names: tuple[str, str, str], whole: Mapping[str, int], mesh: Mapping[str, int], dtype: str
) -> Row:
    """A row of a pass that no equation of the program shows. C is an expert's share where loads are even."""
    x, w, out = (
        Tensor(name, tuple(t.letters), tuple(whole[c] for c in t.letters), t.stored, t.used, dtype, t.unreduced)
        for name, t in zip(names, (one.x, one.w, one.out), strict=True)
    )
    out = replace(out, stored=out.used, used=out.stored)  # a pass has a result in the order of events
    local = costs.local_sizes(one.w, whole, mesh) | costs.local_sizes(one.x, whole, mesh)
    inner = set(x.letters) - set(out.letters)
    m, k, n = (
        math.prod(local[c] for c in letters)
        for letters in (set(x.letters) - inner, inner, set(w.letters) - set(x.letters))
    )
    moved = float(sum(t.local_bytes(mesh) for t in (x, w, out)))
    return Row(
        number, one.name, one.phase, one.what, 0, one.formula, x, w, out, m, k, n, 2.0 * m * k * n, moved, note=EVEN
    )
