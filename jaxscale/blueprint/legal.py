"""Which layouts cannot be: an override may ask for one that no program has. No jax."""

from collections.abc import Mapping

from jaxscale import config as cfg
from jaxscale.blueprint.cases import Axes, Spec, axes_in
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.passes import passes_of
from jaxscale.blueprint.rules import check_divides, check_replicas, make_rules


def require_legal(config: cfg.Config, sizes: Mapping[str, int]) -> None:
    """Check a config on a mesh of these sizes; raises ValueError, in one line, for what no program can be.

    Every split dim divides, and every matmul's layouts exist.
    """
    rules = make_rules(config.sharding)
    check_replicas(rules, sizes)
    check_divides(rules, sizes, config)
    keys = [f"sharding.{table}.{name}" for table, names in vars(config.sharding).items() for name in names]
    if keys and (problem := layout_problem(config, sizes)):
        raise ValueError(
            f"{', '.join(keys)}: not a layout that is supported on this mesh ({problem}); remove or change it"
        )


def layout_problem(config: cfg.Config, sizes: Mapping[str, int]) -> str | None:
    """What is wrong with a layout of some matmul, in words; None: nothing."""
    every = passes_of(config, sizes)
    for op in blueprint(config.model).ops:
        at = every.cut(op)
        layouts: dict[str, Spec] = {"the operand": at.x_at_rest, "its weight": at.w_at_rest, "the result": at.y_at_rest}
        for what, layout in layouts.items():
            if axis := twice(axes_in(layout)):
                return f"{op.name}: {axis} splits two dims of {what}"
        for letter, axes in at.y.items():
            given = at.x.get(letter, at.w.get(letter, ()))
            if given != axes:
                dim = every.model.axis(letter)
                return f"{op.name}: {'+'.join(axes)} splits {dim} in the result, and no operand is split so"
    return None


def twice(axes: Axes) -> str | None:
    return next((a for i, a in enumerate(axes) if a in axes[:i]), None)
