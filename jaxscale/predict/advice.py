"""What would do where a plan has no way that fits: another batch, axis or size. Each is tried before. No jax.

A rule that is broken (something does not divide) is no lack of memory: more chips do not mend it by themselves.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from jaxscale import config as cfg
from jaxscale.blueprint.legal import require_legal
from jaxscale.blueprint.rules import STEP_AXES, count, make_rules
from jaxscale.hardware.topology import Topology, valid_shapes
from jaxscale.predict.plan import Plan, short_of
from jaxscale.predict.ways import meshes, ways, with_chunk

TRIES = 8  # of each kind; one takes less than a second
MOST_NODES = 128


def what_would_do(config: cfg.Config, plan: Plan, *, documents: bool = False) -> list[str]:
    """Changes of one thing, in words, with which the config fits; empty where none was found nearby.

    Args:
        plan: one without choices.
    """
    where, held = plan.topology, plan.held

    def fits(other: cfg.Config, topology: Topology = where, held: tuple[str, ...] = held) -> bool:
        return any_fits(other, topology, documents=documents, held=held)

    lines = [*other_axes(config, where, held, fits), *other_batches(config, plan, fits)]
    lines += larger(config, where, fits) if plan.legal else other_sizes(config, where, fits)
    if not lines and without_mesh(held) != held:
        more = what_would_do(config, replace(plan, held=without_mesh(held)), documents=documents)
        return [f"no mesh.* given, and {line}" for line in more]
    return lines


def without_mesh(held: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(h for h in held if not h.startswith("mesh"))


def any_fits(config: cfg.Config, topology: Topology, *, documents: bool, held: tuple[str, ...]) -> bool:
    """Is there a way that breaks no rule and fits? Nothing is timed."""
    try:
        for candidate, sizes, _ in ways(config, topology, held):
            try:
                require_legal(candidate, sizes)
            except ValueError:
                continue
            _, needed = with_chunk(candidate, sizes, topology, documents=documents, held=held)
            if not short_of(needed, topology):
                return True
    except ValueError:  # the held axes do not fit this topology
        return False
    return False


Fits = Callable[..., bool]


def other_axes(config: cfg.Config, topology: Topology, held: tuple[str, ...], fits: Fits) -> Iterator[str]:
    """Of each axis that is held, the nearest sizes that would do."""
    inside = topology.devices // topology.slices
    for axis in STEP_AXES:
        given = getattr(config.mesh, axis)
        if f"mesh.{axis}" not in held or given == -1:
            continue

        def with_axis(size: int, axis: str = axis) -> cfg.Config:
            return config.model_copy(update={"mesh": config.mesh.model_copy(update={axis: size})})

        sizes = [n for n in cfg.divisors(inside) if n != given]
        if near := nearest(sizes, given, lambda n: fits(with_axis(n))):
            yield f"mesh.{axis}={' or '.join(map(str, near))} in place of {given}"
    if without_mesh(held) != held and fits(config, topology, without_mesh(held)):
        yield "no mesh.* given: there are ways that fit"


def other_batches(config: cfg.Config, plan: Plan, fits: Fits) -> Iterator[str]:
    """The nearest data.batch_size that would do: one that meshes divide, or where memory is short a smaller one."""
    rows, topology, held = config.data.batch_size, plan.topology, plan.held
    parts = config.step.microbatches if {"step", "step.microbatches"} & set(held) else 1
    shards = {
        parts * count(make_rules(config.sharding).activations["batch"], m.sizes(topology.devices))
        for m in meshes(config, topology, held)
    }
    sizes: set[int] = set()
    if plan.legal < plan.considered:
        sizes |= {n for s in shards for n in (rows // s * s, -(-rows // s) * s)}
    if plan.legal:
        sizes |= {n for s in shards for n in (s, 2 * s, 4 * s, rows // 2 // s * s) if n < rows}
    sizes -= {0, rows}

    def with_rows(size: int) -> cfg.Config:
        step = config.step.model_copy(update={"microbatches": math.gcd(size, config.step.microbatches)})
        return config.model_copy(update={"data": config.data.model_copy(update={"batch_size": size}), "step": step})

    if near := nearest(sizes, rows, lambda n: fits(with_rows(n))):
        yield f"data.batch_size={' or '.join(map(str, near))} in place of {rows}"


def other_sizes(config: cfg.Config, topology: Topology, fits: Fits) -> Iterator[str]:
    """The nearest numbers of chips, fewer and more, on which the config runs as it is."""
    by_chips = {t.chips: t for t in sizes_of(topology)}
    near = nearest(by_chips, topology.chips, lambda n: fits(config, by_chips[n]))
    if near:
        yield f"--topology {' or '.join(replace(by_chips[n], slices=1).name for n in near)}"


def larger(config: cfg.Config, topology: Topology, fits: Fits) -> Iterator[str]:
    """The smallest of the next larger machines on which it fits, each about twice the last; then several slices."""
    more, doubled = sizes_of(topology), [topology]
    doubled += [t for t in more if t.chips > topology.chips and t.chips.bit_count() == 1] or more[-1:]
    if topology.chip.multislice and not topology.chip.node:
        doubled += [replace(more[-1], slices=topology.slices * n) for n in (2, 4, 8)]
    for other in doubled[1:]:
        if fits(config, other):
            yield f"more chips: it fits on {other.name} ({other.chips:,} {'GPUs' if other.chip.node else 'chips'})"
            return


def sizes_of(topology: Topology) -> list[Topology]:
    """Machines of the same chip, each number of chips once, the most even; fewest chips first."""
    chip = topology.chip
    if chip.node:
        most = 2 ** (chip.node.bit_length() - 1)  # of the 72 of a rack 64 are easier to share out
        whole = [(n, g) for g in (most, chip.node) for n in range(2, MOST_NODES + 1)]
        shapes: Iterable[tuple[int, ...]] = [*((1, n) for n in {*cfg.divisors(chip.node), *cfg.divisors(most)}), *whole]
    else:
        shapes = sorted(valid_shapes(chip), key=lambda s: -max(s))  # the last of a number of chips is the most even
    by_chips = {math.prod(s): replace(topology, shape=tuple(s)) for s in shapes}
    return [by_chips[n] for n in sorted(by_chips)]


def nearest(values: Iterable[int], given: int, works: Callable[[int], bool]) -> list[int]:
    """Of `values` the nearest below and above `given` that work, of the `TRIES` nearest of each side."""
    near = []
    for side in (sorted((n for n in values if n < given), reverse=True), sorted(n for n in values if n > given)):
        near += next(([n] for n in side[:TRIES] if works(n)), [])
    return sorted(near)
