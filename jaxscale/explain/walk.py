"""The matmuls of the step, read from its traced program: which operands, how split, and what is sent for each.

Explicit mesh axes put shardings into types, so the program (a jaxpr) says all of it. A walk along its equations follows
every value: a `reshard` whose types differ is a collective, and belongs to the matmul that its result goes into; one
whose operand holds partial sums belongs to the matmul that made them. Knows jax, and nothing of printing.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.table import Blueprint
from jaxscale.explain.attention import attention_rows, of_keys
from jaxscale.explain.jaxpr import (
    NOTHING,
    Formula,
    Letters,
    Move,
    Value,
    called,
    in_order,
    layout,
    living,
    local_equations,
    passed_on,
    place,
    plain,
    read_formula,
    reduced,
    sends,
    sizes_of,
    tensor,
    tensor_names,
    unreduced,
)
from jaxscale.explain.paths import FORMULA, clean, join, name_of, phase, what
from jaxscale.explain.routes import EVEN, EXPERTS, INSIDE, also_for, expert_row, ordered, scope_of, sent_of, served
from jaxscale.explain.rows import Axes, Other, Row, Send, Tensor
from jaxscale.predict import costs

# one operand, the same elements: what was sent for it was sent for the result
PASSED_ON = ("convert_element_type", "copy", "name", "transpose", "squeeze", "reshape",
             "broadcast_in_dim", "sharding_constraint", "layout_constraint", "slice", "dynamic_slice",
             "reduce_precision")  # fmt: skip
REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax", "argmin")
KERNELS = ("dot_general", "pallas_call", "dot_product_attention_fwd_wrapper", "dot_product_attention_bwd_wrapper")
COLLECTIVES = {
    "psum": "all-reduce",
    "psum_invariant": "all-reduce",
    "pmax": "all-reduce",
    "pmin": "all-reduce",
    "all_gather": "all-gather",
    "all_gather_invariant": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
    "ragged_all_to_all": "ragged-all-to-all",
    "ppermute": "collective-permute",
}


class Walk:
    """One walk along a traced step; `rows` and `others` are what it found, in the order of the program."""

    def __init__(self, config: cfg.Config, mesh: dict[str, int]):
        self.config, self.mesh = config, mesh
        self.rows: list[Row] = []
        self.moves: list[tuple[Move, str]] = []  # each with the operand that it serves
        self.others: list[Other] = []
        self.heads: list[Tensor] = []  # queries, keys and values
        self.multiplied: set[str] = set()
        self.model = model = blueprint(config.model)
        self.weights = {model.layer_shape(model.weight(op.name)) for op in model.ops if op.rows_move}

    def run(self, jaxpr: Any, given: list[Value], path: str, times: int) -> list[Value]:
        """Walk one (sub)program; the values of its results."""
        env = dict(zip(jaxpr.invars, given, strict=True))
        value = lambda v: NOTHING if hasattr(v, "val") else env.get(v, NOTHING)  # noqa: E731  literals are not hashable
        for eqn in living(jaxpr):
            here = join(path, str(eqn.source_info.name_stack))
            results = self.equation(eqn, [value(v) for v in eqn.invars], here, times)
            env.update(zip(eqn.outvars, results, strict=True))
        return [value(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, given: list[Value], path: str, times: int) -> list[Value]:
        """The values of one equation's results; `path` is its place among name scopes, `times` its runs a step."""
        name = eqn.primitive.name
        if name == "reshard":
            return [self.reshard(eqn, given[0], path, times)]
        if name == "dot_general":
            return [self.matmul(eqn, given, path, times)]
        if name == "shard_map":
            return self.shard_map(eqn, given, path, times)
        if name == "scan":
            return self.scan(eqn, given, path, times)
        if name == "while":
            body = plain(eqn.params["body_jaxpr"])
            self.run(body, [NOTHING] * len(body.invars), path, times)
        elif name == "cond":
            for branch in eqn.params["branches"]:
                self.run(plain(branch), given[1:], path, times)
        elif inner := called(eqn, len(given)):
            return self.run(inner, given, path, times)
        if name == "optimization_barrier":  # of several arrays, each as it was
            return list(given)
        if name in PASSED_ON:
            return [passed_on(eqn, given[0])] + [NOTHING] * (len(eqn.outvars) - 1)
        if name in REDUCTIONS:
            self.reduction(eqn, path, times)
        tags = frozenset().union(*(v.tags for v in given)) if given else frozenset()
        made_by = frozenset().union(*(v.made_by for v in given)) if given else frozenset()
        letters = next((v.letters for v in given if len(v.letters) == eqn.outvars[0].aval.ndim), ())
        return [
            Value(tags=tags, made_by=made_by, letters=letters) if unreduced(v.aval) else Value(tags=tags)
            for v in eqn.outvars
        ]

    def scan(self, eqn: Any, given: list[Value], path: str, times: int) -> list[Value]:
        """A loop's body once, with what is stacked over its runs taken apart."""
        body = plain(eqn.params["jaxpr"])
        inside = [
            value if outer.aval.shape == inner.aval.shape else Value(tags=value.tags)
            for outer, inner, value in zip(eqn.invars, body.invars, given, strict=True)
        ]
        results = self.run(body, inside, path, times * eqn.params["length"])
        return [Value(made_by=v.made_by, tags=v.tags, letters=v.letters) for v in results]

    # --- what is sent ---

    def reshard(self, eqn: Any, value: Value, path: str, times: int) -> Value:
        """To a matmul that reads the result belongs what gathers it; to those that made partial sums, their sum."""
        before, after = eqn.invars[0].aval, eqn.outvars[0].aval
        of = max(value.made_by, default=value.of)
        routing = sent_of(path, before.shape[-1], self.model) if before.ndim else ""
        moves = [Move(*send, times, path, of=of, sent=routing) for send in sends(before, after, self.mesh)]
        gone = unreduced(before) - unreduced(after)
        stored = value.stored or layout(before)
        if not gone:
            self.moves += [(m, "in") for m in moves]
            return replace(value, stored=stored, moves=(*value.moves, *moves), of=of)
        for move in moves:
            move.rows += [(k, "out") for k in sorted(value.made_by)]
            self.moves.append((move, "out"))
        if unreduced(after):
            return value
        for k in value.made_by:
            self.rows[k] = replace(self.rows[k], out=reduced(self.rows[k].out, value.letters, after))
        return Value(tags=value.tags, of=of)

    def reduction(self, eqn: Any, path: str, times: int) -> None:
        """A sum or a maximum along a dim that is split: each device's own, then an all-reduce of the result."""
        aval, dims = eqn.invars[0].aval, eqn.params.get("axes", ())
        axes = self.ordered([a for i in dims for a in layout(aval)[i]])
        if axes:
            out = eqn.outvars[0].aval
            size = math.prod(out.shape) * out.dtype.itemsize // self.parts([a for dim in layout(out) for a in dim])
            self.others.append(Other(what(path), "all-reduce", axes, size, times, phase(path)))

    def shard_map(self, eqn: Any, given: list[Value], path: str, times: int) -> list[Value]:
        attends = clean(path)[-1:] == ["attention"]
        if attends and any(e.primitive.name in KERNELS for e, _, _ in local_equations(eqn.params["jaxpr"], 1, "")):
            self.attention(eqn, path, times)
        if clean(path)[-1:] == [EXPERTS] and self.multiplies(eqn):
            self.experts(path)
        for inner, inner_times, inner_path in local_equations(eqn.params["jaxpr"], times, path):
            kind = COLLECTIVES.get(inner.primitive.name)
            axes = self.ordered(inner.params.get("axis_name", inner.params.get("axes", ()))) if kind else ()
            if kind and axes:
                size = local_bytes(inner, kind)
                if what(inner_path) in INSIDE:
                    routing = sent_of(inner_path, inner.invars[0].aval.shape[-1], self.model)
                    self.moves.append((Move(kind, axes, size, inner_times, inner_path, sent=routing), "in"))
                    continue
                self.others.append(Other(what(inner_path), kind, axes, size, inner_times, phase(inner_path)))
        tags = frozenset().union(*(v.tags for v in given)) if given and not attends else frozenset()
        return [Value(tags=tags) for _ in eqn.outvars]

    def ordered(self, axes: Any) -> Axes:
        axes = (axes,) if isinstance(axes, str) else tuple(axes)
        return tuple(a for a, n in self.mesh.items() if a in axes and n > 1)

    # --- matmuls ---

    def matmul(self, eqn: Any, given: list[Value], path: str, times: int) -> Value:
        """A row, where the equation is one of `sharding.einsum`'s (or any einsum of two operands on the mesh)."""
        formulas = FORMULA.findall(path)
        if not formulas:
            return NOTHING
        contracted, batch = eqn.params["dimension_numbers"]
        assert not any(batch), f"a batched matmul outside attention: {path}"
        name, avals = name_of(path), [v.aval for v in eqn.invars]
        formula = read_formula(
            formulas[-1], merged=math.prod(self.mesh.values()) == 1 and all(a.ndim == 2 for a in avals)
        )
        letters = self.operand_letters(name, formula, avals, contracted, backward=phase(path) == "backward")
        if letters is None:
            raise ValueError(f"explain cannot read the matmul {'/'.join(clean(path))} of {avals[0]} and {avals[1]}")
        left, right, gradient = letters
        names = tensor_names(name, gradient)
        operands = sorted(zip((left, right), avals, given, strict=True), key=lambda o: place(o[0], formula, gradient))
        x, w = (tensor(n, c, aval, v.stored) for n, (c, aval, v) in zip(names[:2], operands, strict=True))
        out_letters = tuple(c for c in left + right if not (c in left and c in right))
        out = tensor(names[2], out_letters, eqn.outvars[0].aval, None)
        if gradient:  # in the order of what it is the gradient of
            out = in_order(out, formula[0] if gradient == "gradient of x" else formula[1])
        einsum = f"{formulas[-1][0]},{formulas[-1][1]}->{formulas[-1][2]}"
        row = Row(
            len(self.rows), name, phase(path), gradient, times, einsum, x, w, out, *sizes_of(x, w, self.mesh), 0.0, 0.0,
            tags=tuple(sorted(operands[0][2].tags)),
        )  # fmt: skip
        moved = sum(t.local_bytes(self.mesh) for t in (x, w, out))
        self.rows.append(replace(row, flops=2.0 * row.m * row.k * row.n, hbm_bytes=float(moved)))
        for side, (_, _, value) in zip("xw", operands, strict=True):
            for move in value.moves:
                move.rows.append((row.id, side))
        return Value(made_by=frozenset([row.id]), letters=out_letters)

    def operand_letters(
        self, name: str, formula: Formula, avals: list[Any], contracted: tuple[Any, Any], *, backward: bool
    ) -> tuple[Letters, Letters, str] | None:
        """The letters of a dot's two operands, and which gradient it is: of the orders in which an einsum and its
        transposes put them, the one that contracts these dims, and whose layouts are the forward matmul's."""
        x, w, out = formula
        tries = [(out, w, "gradient of x"), (x, out, "gradient of w")] if backward else [(x, w, "")]
        forward = next((r for r in self.rows if r.name == name and not r.what), None)
        known = {x: forward.x, w: forward.w, out: forward.out} if forward else {}
        fits = []
        for left, right, gradient in [t for a, b, g in tries for t in ((a, b, g), (b, a, g))]:
            pairs = list(zip(*contracted, strict=True))
            if (len(left), len(right)) != (avals[0].ndim, avals[1].ndim):
                continue
            if {(left[i], right[j]) for i, j in pairs} != {(c, c) for c in set(left) & set(right)}:
                continue
            both = list(zip((left, right), avals, strict=True))
            if forward and any(a.shape != known[c].sizes for c, a in both):
                continue
            fits.append((sum(layout(a) == known[c].used for c, a in both) if forward else 0, left, right, gradient))
        return max(fits)[1:] if fits else None

    def attention(self, eqn: Any, path: str, times: int) -> None:
        """Its queries, keys and values are an equation's first arrays of heads."""
        letters, T = self.model.attention, self.config.data.seq_len
        assert letters is not None
        if phase(path) == "forward":
            heads = [v.aval for v in eqn.invars if v.aval.ndim == 4 and v.aval.shape[1] == T][:3]
            names = zip("qkv", (letters.q, of_keys(letters.k), of_keys(letters.values)), heads, strict=True)
            self.heads = [tensor(name, c, aval, None) for name, c, aval in names]
        rows = attention_rows(self.config, self.mesh, phase(path), self.heads, letters)
        self.rows += [replace(row, id=len(self.rows) + i, times=times) for i, row in enumerate(rows)]

    def multiplies(self, eqn: Any) -> bool:
        """Does it take weights of experts, or give their gradients?"""
        return any(v.aval.shape in self.weights for v in (*eqn.invars, *eqn.outvars))

    def experts(self, path: str) -> None:
        """Rows of the experts' matmuls, whose program knows sorted rows and not an expert's share: once for all layers,
        as remat takes a layer's program apart, and a loop's body may have several."""
        kind, routed = phase(path), self.model.routed
        if kind in self.multiplied or routed is None:
            return
        self.multiplied.add(kind)
        times = costs.layer_runs(self.config, self.mesh, routed.layers)
        whole = costs.letter_sizes(self.config, self.mesh)
        for one in costs.passes(self.config, self.mesh):
            if one.phase == kind and self.model.op(one.name).rows_move:
                names = tensor_names(one.name, one.what)
                row = expert_row(one, len(self.rows), names, whole, self.mesh, self.config.step.compute_dtype)
                self.rows.append(replace(row, times=times))

    def parts(self, axes: Iterable[str]) -> int:
        return math.prod(self.mesh[a] for a in axes)

    # --- the end ---

    def finish(self) -> tuple[list[Row], list[Other]]:
        """Rows with what is sent for them; a collective of several rows is told with the first of them."""
        for move, side in self.moves:
            if not move.rows and move.of is not None:
                move.rows.append((move.of, "out"))
            if not move.rows and (matmul := served(move.path, self.rows)):
                move.rows.append(matmul)
            if not move.rows:
                self.others.append(
                    Other(what(move.path), move.kind, move.axes, move.bytes, move.times, phase(move.path))
                )
                continue
            first, operand = move.rows[-1] if side == "out" else move.rows[0]  # partial sums are added, then sent
            shared = tuple(
                dict.fromkeys(self.rows[k].title for k, _ in move.rows if self.rows[k].title != self.rows[first].title)
            )
            of = scope_of(move.path)
            if self.rows[first].note == EVEN and not move.sent:
                shared = also_for(self.rows[first], operand, self.rows)
            send = Send(operand, move.kind, move.axes, move.bytes, move.times, move.path, shared, of=of, sent=move.sent)
            self.rows[first] = replace(self.rows[first], sends=(*self.rows[first].sends, send))
        return merged([ordered(lettered(row, self.model)) for row in self.rows]), self.others


def lettered(row: Row, model: Blueprint) -> Row:
    """With the letters of the model's table, where a module's formula has others: shared experts are an MLP."""
    op = next((op for op in model.ops if op.name == row.name), None)
    x, w, out = FORMULA.findall(row.formula)[0]
    names = (x + w + out).upper(), f"{op.x}{model.weight(op.weight_name).letters}{op.y}" if op else ""
    if op is None or len(names[0]) != len(names[1]) or names[0] == names[1] or row.note == EVEN:
        return row
    other = str.maketrans(*names)
    tensors = {
        key: replace(t, letters=tuple("".join(t.letters).translate(other)))
        for key, t in {"x": row.x, "w": row.w, "out": row.out}.items()
    }
    return replace(row, formula=row.formula.upper().translate(other).lower(), **tensors)  # type: ignore[arg-type]


def local_bytes(eqn: Any, kind: str) -> int:
    """V of a collective inside a shard_map; of rows that are sent one by one those that there are, not the room."""
    before, after = (
        sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in ends) for ends in (eqn.invars, eqn.outvars)
    )
    if kind == "ragged-all-to-all":
        rows = eqn.invars[0].aval
        return min(after, math.prod(rows.shape) * rows.dtype.itemsize)
    return after if kind == "all-gather" else before


def merged(rows: list[Row]) -> list[Row]:
    """One row of a matmul that stands in several places, such as a chunk of the loss and the loop of the others."""
    by_key: dict[tuple, Row] = {}
    for row in rows:
        key = (row.title, row.phase, str(row), row.m, row.k, row.n)
        old = by_key.get(key)
        if old:
            row = replace(old, times=old.times + row.times, sends=(*old.sends, *row.sends))
        by_key[key] = row
    return [replace(row, id=i) for i, row in enumerate(by_key.values())]
