"""What the traced step asks for beside what the compiler really inserted. No jax.

Each collective of the compiled program says in its `op_name` which operations it comes from; one that the compiler made
of several names them all. A need is met by the one that has its name, kind, axes, bytes and number of runs; where only
some of these are the same, the difference is told, with its reason where there is one. The same sum in another form
(numbers of another width, an all-reduce and a slice for a reduce-scatter) is told apart from what really differs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from jaxscale.compiled.collectives import Collective
from jaxscale.explain.paths import name_of, phase, sources, what
from jaxscale.explain.rows import Axes, Other, Row, Send

SMALL = 4096  # bytes: scalars and vectors
WIRE = {"float32": "f32", "bfloat16": "bf16"}


@dataclass
class Found:
    """One array of a compiled collective: what it sends, and for which operation.

    Attributes:
        together: arrays of the collective.
        wire: dtype of what is sent.
    """

    name: str
    phase: str
    kind: str
    axes: Axes
    bytes: int
    times: int
    together: int
    source: str
    wire: str
    sliced: bool = False
    used: bool = False


@dataclass(frozen=True)
class Need:
    """A collective that the traced step asks for.

    Attributes:
        names: of the operations that it may be filed under.
        wire: its dtype as compiled programs write it, where it is known.
    """

    names: frozenset[str]
    phase: str
    kind: str
    axes: Axes
    bytes: int
    times: int
    wire: str = ""


def found_in(compiled: Iterable[Collective]) -> list[Found]:
    """The arrays of all collectives, one by one."""
    out = []
    for c in (c for c in compiled if c.groups > 1):  # of one device: nothing is sent
        paths = sources(c.source)
        sizes = (c.bytes,) if c.kind == "all-to-all" or not c.sizes else c.sizes  # an all-to-all may be one of parts
        paths = paths if len(paths) == len(sizes) else [paths[0]] * len(sizes)
        for path, size in zip(paths, sizes, strict=True):
            one = Found(what(path), phase(path), c.kind, c.axes, size, c.times, len(sizes), c.source, c.wire, c.sliced)
            out.append(one)
    return out


def match(
    rows: list[Row], others: list[Other], compiled: Iterable[Collective]
) -> tuple[list[Row], list[Other], list[Found]]:
    """Rows and others with what the compiler made of them; and what it inserted that nothing asked for."""
    arrays = found_in(compiled)
    needs: list[tuple[Need, int, int]] = []  # with row (-1: others) and the place in it
    for row in rows:
        for k, send in enumerate(row.sends):
            needs.append((need_of(row, send, rows), row.id, k))
    for k, other in enumerate(others):
        needs.append(
            (Need(frozenset([other.what]), other.phase, other.kind, other.axes, other.bytes, other.times), -1, k)
        )
    answers: dict[tuple[int, int], tuple[str, str]] = {}

    def try_all(*tests: Callable[[Need, list[Found]], Found | None]) -> None:
        for test in tests:
            for need, row_id, k in needs:
                if (row_id, k) not in answers and (one := test(need, arrays)):
                    one.used = True
                    answers[row_id, k] = verdict(need, one)

    try_all(exactly, other_width, by_size)
    answers |= put_together([n for n in needs if n[1:] not in answers], arrays)
    try_all(in_other_form, otherwise)
    for need, row_id, k in needs:
        if (row_id, k) not in answers:
            answers[row_id, k] = ("different", missing(need, arrays))
    matched_rows = [
        replace(
            row,
            sends=tuple(
                replace(s, compiled=answers[row.id, k][0], note=answers[row.id, k][1]) for k, s in enumerate(row.sends)
            ),
        )
        for row in rows
    ]
    rest = [replace(o, compiled=answers[-1, k][0], note=answers[-1, k][1]) for k, o in enumerate(others)]
    return matched_rows, rest, [f for f in arrays if not f.used]


def need_of(row: Row, send: Send, rows: list[Row]) -> Need:
    """A gather stands in its own scope; partial sums in that of any matmul that they are of."""
    names = {name_of(send.path), row.name} | {r.name for r in rows if r.title in send.shared}
    wire = "" if send.sent else WIRE.get(getattr(row, send.operand).dtype, "")
    return Need(frozenset(names), phase(send.path), send.kind, send.axes, send.bytes, send.times, wire)


def exactly(need: Need, arrays: list[Found]) -> Found | None:
    return pick(need, [f for f in arrays if alike(need, f) and f.phase == need.phase and f.name in need.names])


def other_width(need: Need, arrays: list[Found]) -> Found | None:
    """float32 for bfloat16, where a compiler computes none; bfloat16 for float32, where a chip multiplies in it."""
    candidates = [f for f in arrays if f.phase == need.phase and f.name in need.names]
    return pick(need, [f for f in candidates if alike(need, f, width=2) or alike(need, f, width=0.5)])


def by_size(need: Need, arrays: list[Found]) -> Found | None:
    """The compiler may file it under another name: of two equal collectives it keeps one."""
    return next(
        (one for width in (1, 2, 0.5) if (one := pick(need, [f for f in arrays if alike(need, f, width)]))), None
    )


def alike(need: Need, f: Found, width: float = 1) -> bool:
    """The same collective, of numbers `width` times as wide."""
    wire = {1: need.wire or f.wire, 2: "f32", 0.5: "bf16"}[width]
    same = (f.kind, f.axes, f.bytes, f.times, f.wire) == (need.kind, need.axes, need.bytes * width, need.times, wire)
    return same and not f.used


def pick(need: Need, candidates: list[Found]) -> Found | None:
    return max(candidates, key=lambda f: (f.name in need.names, f.phase == need.phase), default=None)


def put_together(needs: list[tuple[Need, int, int]], arrays: list[Found]) -> dict[tuple[int, int], tuple[str, str]]:
    """Needs of one kind that one collective of one array serves, as long as all of them together (a GPU's compiler
    lays arrays one after another)."""
    groups: dict[tuple, list[tuple[Need, int, int]]] = {}
    for one in needs:
        groups.setdefault((one[0].kind, one[0].axes, one[0].times, one[0].phase), []).append(one)
    answers: dict[tuple[int, int], tuple[str, str]] = {}
    for (kind, axes, times, _), group in groups.items():
        total = sum(need.bytes for need, _, _ in group)
        for f in arrays:
            if len(group) > 1 and not f.used and (f.kind, f.axes, f.times, f.bytes) == (kind, axes, times, total):
                f.used = True
                answers |= {(row, k): ("same", f"in one of {len(group)} arrays") for _, row, k in group}
                break
    return answers


def in_other_form(need: Need, arrays: list[Found]) -> Found | None:
    """A reduce-scatter as an all-reduce and a slice of it, before another need takes that all-reduce."""
    if need.kind != "reduce-scatter":
        return None
    all_reduces = (f for f in arrays if f.kind == "all-reduce" and f.name in need.names and not f.used)
    same = [f for f in all_reduces if (f.axes, f.times, f.phase) == (need.axes, need.times, need.phase)]
    return next((f for f in same if right_size(need, f)), None)


def right_size(need: Need, f: Found) -> bool:
    return f.bytes in (need.bytes, need.bytes * {"f32": 2, "bf16": 0.5}.get(f.wire, 1))


def otherwise(need: Need, arrays: list[Found]) -> Found | None:
    """Of the same operations over the same axes (or more), or of the same size: but not the same collective."""

    def likeness(f: Found) -> tuple[bool, ...]:
        size = right_size(need, f)
        alike = (f.name in need.names, f.axes == need.axes, f.phase == need.phase, size, f.kind == need.kind)
        named = f.name in need.names and set(need.axes) <= set(f.axes)
        return alike if named or (f.axes == need.axes and size and f.times == need.times) else ()

    return max((f for f in arrays if not f.used and likeness(f)), key=likeness, default=None)


def verdict(need: Need, one: Found) -> tuple[str, str]:
    """`same`, `form` (the same sums in another form) or `different`, and why."""
    notes, forms = [], []
    if one.axes != need.axes:
        notes.append(f"{one.kind} over {'+'.join(one.axes)} at once: the compiler joined it with the next one")
    elif (need.kind, one.kind) == ("reduce-scatter", "all-reduce") or one.sliced:
        forms.append("an all-reduce and a slice of it: twice the bytes on the wire")
    elif one.kind != need.kind:
        notes.append(f"{one.kind} instead{kind_reason(need.kind, one.kind)}")
    if one.bytes == 2 * need.bytes and one.wire == "f32":
        forms.append("in float32, twice the bytes: this compiler computes no bfloat16")
    elif need.bytes == 2 * one.bytes and one.wire == "bf16":
        forms.append("in bfloat16, half the bytes: this chip rounds a matmul's float32 operands to it anyway")
    elif one.bytes != need.bytes and one.axes == need.axes:
        notes.append(f"{one.bytes:,} bytes, not {need.bytes:,}")
    if one.times != need.times:
        moved = "moved out of a loop" if one.times < need.times else "not kept"
        notes.append(f"{one.times} run{'s' * (one.times > 1)}, not {need.times}: {moved}")
    if notes or forms:
        return "different" if notes else "form", "; ".join([*notes, *forms])
    return "same", f"in one of {one.together} arrays" if one.together > 1 else ""


def kind_reason(wanted: str, got: str) -> str:
    if (wanted, got) == ("all-gather", "all-reduce"):
        return " of arrays padded with zeros: twice the bytes on the wire"
    if {wanted, got} == {"all-to-all", "all-gather"}:
        return " and a slice of it"
    return ""


def missing(need: Need, arrays: list[Found]) -> str:
    """Why nothing in the program is this collective."""
    wider = [f for f in arrays if f.used and f.name in need.names and set(f.axes) > set(need.axes)]
    if wider:
        return f"part of the {wider[0].kind} over {'+'.join(wider[0].axes)}"
    if need.bytes < SMALL:
        return "joined with other small ones"
    return "not in the compiled program: another one's result is used, or nothing needs it"
