"""Reading the types and equations of a traced program (a jaxpr): layouts, what two types send, letters of dims."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from jaxscale.explain.paths import join
from jaxscale.explain.rows import Axes, Tensor
from jaxscale.parallel.sharding import dims_of_type

Letters = tuple[str, ...]  # one for each dim; `bt` is B and T merged
Formula = tuple[Letters, Letters, Letters]
DISPLAY = {"out": ("context", "y"), "down": ("h", "y"), "unembedding": ("x", "logits")}  # operand and result, by matmul


@dataclass(eq=False)
class Move:
    """A collective that a reshard is, and the matmuls that it serves; `sent`: as `rows.Send.sent`."""

    kind: str
    axes: Axes
    bytes: int
    times: int
    path: str
    rows: list[tuple[int, str]] = field(default_factory=list)  # each with the operand that it is there
    of: int | None = None  # the matmul whose result is moved
    sent: str = ""


@dataclass(frozen=True)
class Value:
    """What is known of an array of the program.

    Attributes:
        stored: layout before the moves.
        moves: what was sent to bring it into the layout it has.
        made_by: matmuls whose partial sums it holds.
        tags: names of activations (`config.ACTIVATIONS`) that it is made of, since the last matmul.
        letters: of a matmul's result, the names of its dims, until they are merged.
        of: the matmul whose result it is, nothing else since.
    """

    stored: tuple[Axes, ...] | None = None
    moves: tuple[Move, ...] = ()
    made_by: frozenset[int] = frozenset()
    tags: frozenset[str] = frozenset()
    letters: Letters = ()
    of: int | None = None


NOTHING = Value()


def layout(aval: Any) -> tuple[Axes, ...]:
    """The mesh axes that split each dim of an array's type; those of size 1 split nothing."""
    sizes = aval.sharding.mesh.shape
    return tuple(tuple(a for a in axes if sizes[a] > 1) for axes in dims_of_type(aval))


def unreduced(aval: Any) -> frozenset[str]:
    sharding = getattr(aval, "sharding", None)
    return frozenset(sharding.spec.unreduced) if sharding is not None else frozenset()


def sends(before: Any, after: Any, mesh: dict[str, int]) -> Iterator[tuple[str, Axes, int]]:
    """The collectives between two types of one array: (kind, axes, V bytes of a device)."""
    old, new = layout(before), layout(after)
    size = math.prod(before.shape) * before.dtype.itemsize
    held = {a for axes in old for a in axes}
    kept = {a for axes in new for a in axes}
    order = lambda axes: tuple(a for a, n in mesh.items() if a in axes and n > 1)  # noqa: E731
    local = size // math.prod(mesh[a] for a in held)
    gone = unreduced(before) - unreduced(after)
    if scattered := order((gone & kept) - held):
        yield "reduce-scatter", scattered, local
        local //= math.prod(mesh[a] for a in scattered)
    if summed := order(gone - kept):
        yield "all-reduce", summed, local
    if traded := order(a for i, axes in enumerate(old) for a in axes if a in kept and a not in new[i]):
        yield "all-to-all", traded, local
    if gathered := order(held - kept):
        yield "all-gather", gathered, local * math.prod(mesh[a] for a in gathered)


def tensor(name: str, letters: Iterable[str], aval: Any, stored: tuple[Axes, ...] | None) -> Tensor:
    used, left = layout(aval), tuple(sorted(unreduced(aval)))
    keep = stored if stored is not None and len(stored) == len(used) else used
    return Tensor(name, tuple(c.upper() for c in letters), tuple(aval.shape), keep, used, aval.dtype.name, left)


def reduced(out: Tensor, letters: Letters, after: Any) -> Tensor:
    """A result as it is after its reduction: its dims may have been turned meanwhile (a weight's gradient's are)."""
    turned = in_order(out, letters)
    return replace(turned, stored=layout(after)) if len(letters) == after.ndim == len(out.letters) else out


def passed_on(eqn: Any, value: Value) -> Value:
    """The same elements in another form: what was sent for the operand was sent for the result."""
    name = eqn.primitive.name
    if name == "transpose":
        value = replace(value, letters=tuple(value.letters[i] for i in eqn.params["permutation"] if value.letters))
    elif eqn.outvars[0].aval.shape != eqn.invars[0].aval.shape:
        value = replace(value, letters=())
    return replace(value, tags=value.tags | {eqn.params["name"]}) if name == "name" else value


def read_formula(subscripts: tuple[str, str, str], *, merged: bool) -> Formula:
    """The letters of an einsum's dims; merged as `on_cpu.flat_matmul` merges them, on one device."""
    x, w, out = (tuple(letters) for letters in subscripts)
    if not merged:
        return x, w, out
    inner, outer = [c for c in x if c not in out], [c for c in w if c in out]
    rows, k, columns = ("".join(c) for c in ([c for c in x if c in out], inner, outer))
    return (rows, k), (k, columns) if w[0] == inner[0] else (columns, k), (rows, columns)


def sizes_of(x: Tensor, w: Tensor, mesh: dict[str, int]) -> tuple[int, int, int]:
    """m, k and n of a device: [m, k] · [k, n]."""
    local = {c: n for t in (x, w) for c, n in zip(t.letters, t.local(mesh), strict=True)}
    inner = set(x.letters) & set(w.letters)
    return (
        math.prod(local[c] for c in x.letters if c not in inner),
        math.prod(local[c] for c in inner),
        math.prod(local[c] for c in w.letters if c not in inner),
    )


def in_order(tensor: Tensor, wanted: Letters) -> Tensor:
    """The same tensor with its dims in another order; as it is where these are not its dims."""
    names = tuple(c.upper() for c in wanted)
    if sorted(names) != sorted(tensor.letters):
        return tensor
    turned = [tensor.letters.index(c) for c in names]
    stored, used = (tuple(layout[i] for i in turned) for layout in (tensor.stored, tensor.used))
    return replace(tensor, letters=names, sizes=tuple(tensor.sizes[i] for i in turned), stored=stored, used=used)


def place(letters: Letters, formula: Formula, gradient: str) -> int:
    """x before w, the incoming gradient before w and after x."""
    x, w, out = formula
    return {"gradient of x": [out, w], "gradient of w": [x, out]}.get(gradient, [x, w]).index(letters)


def tensor_names(name: str, gradient: str) -> tuple[str, str, str]:
    x, out = DISPLAY.get(name, ("x", name))
    if gradient == "gradient of x":
        return f"d_{out}", f"w_{name}", f"d_{x}"
    return (x, f"d_{out}", f"d_w_{name}") if gradient else (x, f"w_{name}", out)


def plain(jaxpr: Any) -> Any:
    """A jaxpr without its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def living(jaxpr: Any) -> list[Any]:
    """The equations that something reads: a traced program has others too (of derivatives that nobody asked for)."""
    needed, kept = {id(v) for v in jaxpr.outvars}, []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(id(v) in needed for v in eqn.outvars):
            kept.append(eqn)
            needed |= {id(v) for v in eqn.invars}
    return kept[::-1]


def called(eqn: Any, operands: int) -> Any:
    """The program that an equation calls with its own operands (jit, checkpoint, custom derivatives); None: no call."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = plain(eqn.params.get(key))
        if hasattr(inner, "eqns") and len(inner.invars) == operands:
            return inner
    return None


def local_equations(jaxpr: Any, times: int, path: str) -> Iterator[tuple[Any, int, str]]:
    """All equations of a shard_map's body, those of its loops with how often they run."""
    for eqn in jaxpr.eqns:
        here = join(path, str(eqn.source_info.name_stack))
        yield eqn, times, here
        more = times * eqn.params.get("length", 1) if eqn.primitive.name == "scan" else times
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if hasattr(plain(inner), "eqns"):
                    yield from local_equations(plain(inner), more, here)
