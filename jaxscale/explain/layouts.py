"""Every matmul of the step by the rules, for meshes that were not traced: as rows for the page. No jax.

A layout names every mesh axis that the rules know for a dim; axes of size 1 fall out. On the traced mesh the rows are
what was traced; a test holds that.
"""

from dataclasses import asdict, replace
from itertools import combinations
from typing import Any

from jaxscale import config as cfg
from jaxscale.blueprint.cases import Axes, without
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.passes import Pass, Tensor, passes
from jaxscale.blueprint.rules import EXPERT_AXES, STAGE_AXES, STEP_AXES, present

AXES = without(STEP_AXES, STAGE_AXES)  # that are explained; a pipeline's ticks are not


def axes_of(config: cfg.Config) -> Axes:
    """The axes that the page shows of a config: those of experts only where a model or a mesh has them."""
    in_mesh = any(getattr(config.mesh, axis) != 1 for axis in EXPERT_AXES)
    return AXES if in_mesh or blueprint(config.model).routed else without(AXES, EXPERT_AXES)


def layouts(config: cfg.Config) -> list[dict[str, Any]]:
    """All of them, as JSON: forward, recomputed, and the two gradients of each."""
    return [as_values(one) for one in passes(config, axes_of(config))]


def as_values(one: Pass) -> dict[str, Any]:
    """`only` is left out where every layer has the row."""
    values = asdict(one)
    return values if one.only else {k: v for k, v in values.items() if k != "only"}


def variants(config: cfg.Config) -> dict[str, list[dict[str, Any]]]:
    """Axes of a mesh, joined by + -> its rows, where they are not those of `layouts` with the other axes left out.

    Only overrides make such: two layouts may agree where an axis is missing, and not where it is there.
    """
    there, rows_by_axes = axes_of(config), {}
    every = passes(config, there)
    for number in range(len(there)):
        for axes in combinations(there, number):
            rows = passes(config, axes)
            if rows != tuple(restricted(one, axes) for one in every):
                rows_by_axes["+".join(axes)] = [as_values(one) for one in rows]
    return rows_by_axes


def restricted(one: Pass, axes: Axes) -> Pass:
    """The same row on a mesh that has only these axes."""

    def tensor(t: Tensor) -> Tensor:
        stored, used = (tuple(present(dim, axes) for dim in layout) for layout in (t.stored, t.used))
        return Tensor(t.letters, stored, used, present(t.unreduced, axes))

    sends = (replace(send, axes=present(send.axes, axes)) for send in one.sends)
    return replace(one, x=tensor(one.x), w=tensor(one.w), out=tensor(one.out), sends=tuple(s for s in sends if s.axes))
