"""The algebra of one einsum on a mesh: how its operands lie, what is gathered and what is summed. No jax.

`parallel.sharding` asks it about types while a step is traced; `blueprint.passes` asks it about names, before any
machine exists. The four cases are the scaling book's (https://jax-ml.github.io/scaling-book/sharding/).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Axes = tuple[str, ...]
Spec = Mapping[str, Axes]  # letter of a dim -> the mesh axes that split it


def kept(axes: Axes, wanted: Axes) -> Axes:
    """The axes that may go on splitting a dim during the matmul: the outermost ones that both layouts share.

    The other axes are gathered first.
    """
    same = 0
    while same < min(len(axes), len(wanted)) and axes[same] == wanted[same]:
        same += 1
    return axes[:same]


def aligned(x: Spec, w: Spec, out: Spec) -> tuple[dict[str, Axes], dict[str, Axes]]:
    """Layouts of x and w as the matmul takes them, for a result that lies as `out`.

    A dim of the result keeps the axes that the result wants; a contracted dim keeps those that split both operands.
    """
    return (
        {c: kept(axes, out[c] if c in out else w[c]) for c, axes in x.items()},
        {c: kept(axes, out[c] if c in out else x[c]) for c, axes in w.items()},
    )


def axes_in(spec: Spec) -> Axes:
    """All axes of a layout, in the order of its dims."""
    return tuple(a for axes in spec.values() for a in axes)


def partial_over(other: Spec, mine: Spec) -> Axes:
    """Axes that split the other operand but not this one: over them this operand's gradient comes as partial sums."""
    return without(axes_in(other), axes_in(mine))


def without(axes: Iterable[str], gone: Iterable[str]) -> Axes:
    gone = set(gone)
    return tuple(a for a in axes if a not in gone)


def both(axes: Iterable[str], others: Iterable[str]) -> Axes:
    others = set(others)
    return tuple(a for a in axes if a in others)


@dataclass(frozen=True)
class Cut:
    """One einsum x · w -> y on a mesh, forward. A layout that ends in `_at_rest` is the one before the matmul.

    Attributes:
        x, w: as the matmul takes them; `y`: as it leaves its result.
        summed: axes over which the devices' results are partial sums.
        y_at_rest: the result after these sums.
    """

    x_at_rest: Spec
    w_at_rest: Spec
    x: Spec
    w: Spec
    y: Spec
    y_at_rest: Spec
    summed: Axes

    @property
    def gathers_x(self) -> Axes:
        return without(axes_in(self.x_at_rest), axes_in(self.x))

    @property
    def gathers_w(self) -> Axes:
        return without(axes_in(self.w_at_rest), axes_in(self.w))

    @property
    def scatters_y(self) -> Axes:
        """Axes of the partial sums that also split the result afterwards: a reduce-scatter."""
        return both(self.summed, axes_in(self.y_at_rest))

    @property
    def reduces_y(self) -> Axes:
        """The other axes of the partial sums: an all-reduce."""
        return without(self.summed, axes_in(self.y_at_rest))

    @property
    def scatters_dx(self) -> Axes:
        """Of these partial sums, axes that x was gathered over: a reduce-scatter."""
        return both(self.sums_of_dx, self.gathers_x)

    @property
    def reduces_dx(self) -> Axes:
        """The other ones: an all-reduce."""
        return without(self.sums_of_dx, axes_in(self.x_at_rest))

    @property
    def scatters_dw(self) -> Axes:
        return both(self.sums_of_dw, self.gathers_w)

    @property
    def reduces_dw(self) -> Axes:
        return without(self.sums_of_dw, axes_in(self.w_at_rest))

    @property
    def sums_of_dx(self) -> Axes:
        """Axes over which the gradient of x comes as partial sums."""
        return partial_over(self.w, self.x)

    @property
    def sums_of_dw(self) -> Axes:
        """Axes over which the gradient of w comes as partial sums."""
        return partial_over(self.x, self.w)


def cut(x_at_rest: Spec, w_at_rest: Spec, y_at_rest: Spec, x_gathered: Spec | None = None) -> Cut:
    """What one einsum asks for.

    Args:
        x_gathered: x as several matmuls read it, where it is gathered once for all of them; None: as it lies.
    """
    x, w = aligned(x_at_rest if x_gathered is None else x_gathered, w_at_rest, y_at_rest)
    summed = tuple(a for c, axes in x.items() if c not in y_at_rest for a in axes)
    y = {c: without(axes, summed) for c, axes in y_at_rest.items()}
    return Cut(x_at_rest, w_at_rest, x, w, y, y_at_rest, summed)
