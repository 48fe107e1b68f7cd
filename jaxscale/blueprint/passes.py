"""Every matmul of a step by the rules: forward, recomputed and its two gradients, with what each sends. No jax.

The rows follow from the model's table (`blueprint.table`), the rules and the algebra of one einsum (`blueprint.cases`).
They need no sizes, only which mesh axes there are: predictions count them, `explain` draws them.
"""

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jaxscale import config as cfg
from jaxscale.blueprint.cases import Axes, Cut, Spec, both, cut
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.rules import (
    REPLICA_AXES,
    Overrides,
    Rules,
    few_axes,
    make_rules,
    overrides_of,
    present,
    rules_with,
    split_by,
)
from jaxscale.blueprint.table import Blueprint, Op

X, W, AGAIN = ", gradient of x", ", gradient of w", " (recomputed)"
FORWARD, RECOMPUTED, BACKWARD = "forward", "recomputed", "backward"


@dataclass(frozen=True)
class Tensor:
    """A tensor of a matmul. Operand: `stored`, then moved to `used`; result: left as `stored`, then moved to `used`.

    Attributes:
        letters: one a dim; `stored` and `used` give the mesh axes that split each.
        unreduced: mesh axes over which the devices' results are partial sums.
    """

    letters: str
    stored: tuple[Axes, ...]
    used: tuple[Axes, ...]
    unreduced: Axes = ()


@dataclass(frozen=True)
class Send:
    """A collective of one run of a matmul.

    Attributes:
        operand: `x`, `w` or `out`: what is sent.
        shared: titles of the other matmuls that this one serves too.
        overlaps: other matmuls of the step do not wait for it.
    """

    operand: str
    kind: str
    axes: Axes
    shared: tuple[str, ...] = ()
    overlaps: bool = True


@dataclass(frozen=True)
class Pass:
    """One matmul of one pass. `phase`: forward, recomputed or backward; `what`: which gradient, if it is one.

    Attributes:
        weight: the name of its weight.
        stacked: it runs in every layer, or with `only` in every layer of that kind.
    """

    name: str
    phase: str
    what: str
    formula: str
    x: Tensor
    w: Tensor
    out: Tensor
    sends: tuple[Send, ...]
    weight: str = field(compare=False)
    stacked: bool = field(compare=False)
    only: str = field(compare=False, default="")


Remat = str | Mapping[str, str]  # as `step.remat`


def kept(remat: Remat, model: Blueprint) -> dict[str, str] | None:
    """Activation -> `save` or `offload`, of those that the backward pass finds; None: all are kept (remat none)."""
    if remat == "none":
        return None
    if remat == "full":
        return {}
    if remat == "dots":
        return dict.fromkeys(model.saved_by_dots, "save")
    assert not isinstance(remat, str), remat
    there = {a.name for a in model.activations}
    return {name: action for name, action in remat.items() if action != "recompute" and name in there}


def recomputed_matmuls(names: Collection[str] | None, model: Blueprint) -> set[str]:
    """Matmuls that run again in the backward pass: those whose result it reads and remat did not keep.

    Args:
        names: what is kept; see `kept`.
    """
    if names is None:
        return set()
    return {op.name for op in model.ops if op.stacked and op.needed and op.saves not in names}


def passes(config: cfg.Config, axes: Axes, few: frozenset[str] = frozenset()) -> tuple[Pass, ...]:
    """Every matmul with a weight, in the order of the step's forward pass.

    Args:
        axes: the mesh's.
        few: logical axes that are kept whole as parameters and repeated where used (`rules.few_kept_whole`).
    """
    remat = config.step.remat
    key = remat if isinstance(remat, str) else tuple(remat.items())
    return _passes(blueprint(config.model), key, overrides_of(config.sharding), axes, few)


def passes_of(config: cfg.Config, sizes: Mapping[str, int]) -> "Passes":
    """The passes of a config on a mesh of these sizes."""
    model, rules = blueprint(config.model), make_rules(config.sharding)
    axes = split_by(cfg.AXES, sizes)
    return Passes(model, rules, kept(config.step.remat, model), axes, few_axes(rules, sizes, model))


@functools.lru_cache(maxsize=4096)  # a plan asks thousands of times
def _passes(
    model: Blueprint, remat: str | tuple[tuple[str, str], ...], overrides: Overrides, axes: Axes, few: frozenset[str]
) -> tuple[Pass, ...]:
    kept_names = kept(remat if isinstance(remat, str) else dict(remat), model)
    return tuple(Passes(model, rules_with(overrides), kept_names, axes, few))


class Passes:
    """The passes of one model on the axes of one mesh."""

    def __init__(self, model: Blueprint, rules: Rules, names: Collection[str] | None, axes: Axes, few: frozenset[str]):
        self.model, self.rules, self.axes, self.few = model, rules, axes, few
        self.keeps_all = names is None
        self.again = recomputed_matmuls(names, model)

    def __iter__(self) -> Iterator[Pass]:
        for op in self.model.ops:
            again = [o.name for o in self.group(op) if o.name in self.again]
            yield self.forward(op)
            if op.name in self.again:
                yield self.recomputed(op, again)
            yield self.gradient_of_x(op, gathers=not (op.once or op.name in self.again or self.keeps_gathered(op)))
            if not self.trained(op):
                continue
            x_is_there = op.once or self.keeps_all or bool(again)
            yield self.gradient_of_w(op, gathered=self.keeps_all and not op.once, gathers=not x_is_there)

    def group(self, op: Op) -> list[Op]:
        """The matmuls that read the same x."""
        return [o for o in self.model.ops if o.group == op.group]

    def trained(self, op: Op) -> bool:
        """Has its weight a gradient?"""
        return self.model.weight(op.weight_name).trained

    def gradients_of_w(self, ops: Sequence[Op]) -> tuple[str, ...]:
        """Titles of those that there are."""
        return titles([o.name for o in ops if self.trained(o)], W)

    def keeps_gathered(self, op: Op) -> bool:
        """Remat `none` keeps gathered weights too, but those gathered over tokens' axes: see `Transformer.remat`."""
        tokens = [a for name in ("batch", "sequence") for a in self.of(self.rules.activations, name)]
        return self.keeps_all and not both(self.cut(op).gathers_w, tokens)

    # --- layouts ---

    def activation(self, letters: str, at: str) -> dict[str, Axes]:
        return {c: self.of(self.rules.activations, self.model.axis(c, at)) for c in letters}

    def parameter(self, letters: str) -> dict[str, Axes]:
        """As the matmul's weight lies; few kv heads as they are repeated."""
        stored, used = self.rules.parameters, self.rules.activations
        return {c: self.of(used if (a := self.model.axis(c)) in self.few else stored, a) for c in letters}

    def of(self, table: Mapping[str, Axes], name: str) -> Axes:
        return present(table[name], self.axes)

    def cut(self, op: Op) -> Cut:
        letters = self.model.weight(op.weight_name).letters
        at_rest, gathered = self.activation(op.x, op.x_at), self.activation(op.x, op.x_in)
        return cut(at_rest, self.parameter(letters), self.activation(op.y, op.y_at), gathered)

    def ordered(self, axes: Sequence[str]) -> Axes:
        """In the mesh's order, those over which anything is sent: replicas keep their gradients to themselves."""
        return tuple(a for a in self.axes if a in axes and a not in REPLICA_AXES)

    # --- passes ---

    def forward(self, op: Op) -> Pass:
        """A gather is listed with the first matmul that it serves, a sum with the last, in the order of the step."""
        at, group, sends = self.cut(op), [o.name for o in self.group(op)], []
        if op.name == group[0]:
            served = self.gradients_of_w(self.group(op)) if op.once else tuple(group[1:])
            sends += self.sends("x", at.gathers_x, served, FORWARD not in op.exposed)
        served = titles([op.name], X) if op.once else ()
        sends += self.sends("w", at.gathers_w, served, not op.once)
        return self.product(op, at, FORWARD, sends)

    def recomputed(self, op: Op, again: list[str]) -> Pass:
        """`again`: of the matmuls that read the same x, those that are recomputed."""
        at, sends = self.cut(op), []
        if op.name == again[0]:
            served = titles(again[1:], AGAIN) + self.gradients_of_w(self.group(op)[::-1])
            sends += self.sends("x", at.gathers_x, served, RECOMPUTED not in op.exposed)
        return self.product(op, at, RECOMPUTED, [*sends, *self.sends("w", at.gathers_w, titles([op.name], X))])

    def product(self, op: Op, at: Cut, phase: str, sends: list[Send]) -> Pass:
        out = tensor(op.y, at.y, at.y_at_rest, self.ordered(at.summed))
        if not op.rows_move:
            sends = [*sends, *self.sums(at.scatters_y, at.reduces_y)]
        return self.one(op, phase, "", self.x(op, at), self.w(op, at), out, sends)

    def gradient_of_x(self, op: Op, *, gathers: bool) -> Pass:
        """dy · w -> dx. `gathers`: w, as no matmul before it has."""
        at, first = self.cut(op), self.group(op)[0].name == op.name
        sends = self.sends("w", at.gathers_w) if gathers else []
        if not self.trained(op):  # else the gradient of w has it, which comes first
            sends = [*self.sends("x", at.scatters_y, (), BACKWARD not in op.exposed), *sends]
        after = at.x_at_rest if at.sums_of_dx else at.x
        out = tensor(op.x, at.x, after, self.ordered(at.sums_of_dx))
        if first and not op.rows_move:
            others = titles([o.name for o in self.group(op)][:0:-1], X)
            sends += self.sums(at.scatters_dx, at.reduces_dx, others)
        return self.one(op, BACKWARD, "gradient of x", self.dy(op, at), self.w(op, at), out, sends)

    def gradient_of_w(self, op: Op, *, gathered: bool, gathers: bool) -> Pass:
        """x · dy -> dw. `gathered`: x as it was multiplied is still there; `gathers`: x, as no matmul before it has."""
        at, group = self.cut(op), [o.name for o in self.group(op)]
        x, sends = self.x(op, at), []
        if gathered:
            x = replace(x, stored=x.used)
        elif gathers and op.name == group[-1]:
            sends += self.sends(
                "x", at.gathers_x, titles(group[-2::-1], W), RECOMPUTED not in self.group(op)[0].exposed
            )
        sends += self.sends("w", at.scatters_y, titles([op.name], X), BACKWARD not in op.exposed)
        out = tensor(self.letters(op), at.w, at.w_at_rest, self.ordered(at.sums_of_dw))
        sends += self.sums(at.scatters_dw, at.reduces_dw)
        return self.one(op, BACKWARD, "gradient of w", x, self.dy(op, at), out, sends)

    # --- tensors and collectives ---

    def letters(self, op: Op) -> str:
        return self.model.weight(op.weight_name).letters

    def x(self, op: Op, at: Cut) -> Tensor:
        return tensor(op.x, at.x_at_rest, at.x)

    def w(self, op: Op, at: Cut) -> Tensor:
        return tensor(self.letters(op), at.w_at_rest, at.w)

    def dy(self, op: Op, at: Cut) -> Tensor:
        """The gradient that arrives at the result."""
        return tensor(op.y, at.y_at_rest, at.y)

    def sends(self, operand: str, axes: Axes, shared: tuple[str, ...] = (), overlaps: bool = True) -> list[Send]:
        over = self.ordered(axes)
        return [Send(operand, "all-gather", over, shared, overlaps)] if over else []

    def sums(self, scattered: Axes, reduced: Axes, shared: tuple[str, ...] = ()) -> list[Send]:
        """What adds up the partial sums of a result."""
        kinds = (("reduce-scatter", self.ordered(scattered)), ("all-reduce", self.ordered(reduced)))
        return [Send("out", kind, axes, shared) for kind, axes in kinds if axes]

    def one(self, op: Op, phase: str, what: str, x: Tensor, w: Tensor, out: Tensor, sends: list[Send]) -> Pass:
        formula = f"{x.letters},{w.letters}->{out.letters}".lower()
        return Pass(op.name, phase, what, formula, x, w, out, tuple(sends), op.weight_name, op.stacked, op.only)


def tensor(letters: str, stored: Spec, used: Spec, unreduced: Axes = ()) -> Tensor:
    return Tensor(letters, tuple(stored[c] for c in letters), tuple(used[c] for c in letters), unreduced)


def titles(names: Sequence[str], what: str) -> tuple[str, ...]:
    return tuple(f"{name}{what}" for name in names)
