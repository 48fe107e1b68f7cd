"""The machines that the page can choose: chips, and for every mesh how fast each of its axes is. No jax.

The page knows no topologies: what an axis rides is asked of `hardware.topology.links` here, for every chip and mesh.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxscale.blueprint.cases import Axes
from jaxscale.blueprint.rules import DEFAULT_RULES, EXPERT_AXES
from jaxscale.config.mesh_text import split_axes
from jaxscale.explain.layouts import AXES
from jaxscale.hardware.chips import CHIPS, Chip
from jaxscale.hardware.topology import Link, Topology, distance, find_topology, valid_shapes
from jaxscale.predict.forecast import axis_links
from jaxscale.predict.interval import interval
from jaxscale.predict.timing import BLOCK, rates
from jaxscale.predict.ways import FEWEST, SEQUENCE

BATCH = DEFAULT_RULES.activations["batch"]  # the axes that split it
LARGEST_OF_BATCH, LARGEST = 512, 64  # of a slider, where the mesh that is explained has no more
MOST = 2**14  # devices of a mesh


@dataclass(frozen=True)
class Explained:
    """The mesh that the page explains, and the machine that it was explained for.

    Attributes:
        tokens: of a row; `experts`: of a layer.
        axes: that have a slider.
        whole: of a pipeline, of which `mesh` is one stage's: the mesh of all stages, which the machine is for.
    """

    topology: Topology
    mesh: dict[str, int]
    over: dict[str, int]
    tokens: int = 0
    experts: int = 0
    axes: Axes = AXES
    whole: dict[str, int] | None = None


def read_topology(name: str) -> Topology:
    """As `Topology.name` writes it: `v5p:2x2x2`, `v5p:8x8x8 x 2 slices`."""
    shape, _, slices = name.partition(" x ")
    return find_topology(shape, int(slices.removesuffix(" slices") or 1))


def machines(explained: Explained) -> dict[str, Any]:
    """Chips with their rates, the sizes of each axis, and a cell for each chip and mesh.

    A cell is [topology, link of each axis in turn] as places in the lists beside it, or -1 - the place of the
    reason why there is no such machine. What an axis rides does not depend on its name: so meshes are known by the
    sizes that split something, in the mesh's order, as `4x8`. The mesh that is explained has a cell of its own.
    """
    sizes = {axis: axis_sizes(axis, explained) for axis in explained.axes}
    pool, topologies, reasons = Pool(), Pool(), Pool()
    shapes = dict.fromkeys(tuple(n for n in mesh if n > 1) for mesh in itertools.product(*sizes.values()))
    cells: dict[str, dict[str, Any]] = {}
    for chip in CHIPS:
        cells[chip.name] = {
            "x".join(map(str, shape)): cell(
                partial(elsewhere, chip, shape, explained), shape, pool, topologies, reasons
            )
            for shape in shapes
            if math.prod(shape) <= MOST
        }
    mesh = split_axes(explained.mesh)
    explained_cell = cell(
        lambda: (explained.topology, explained.over), mesh, pool, topologies, reasons, explained.whole
    )
    return {
        "chips": {chip.name: chip_figures(chip) for chip in CHIPS},
        "sizes": sizes,
        "cells": cells,
        "own": {"chip": explained.topology.chip.name, "mesh": mesh, "cell": explained_cell},
        "links": pool.values,
        "topologies": topologies.values,
        "reasons": reasons.values,
    }


def axis_sizes(axis: str, explained: Explained) -> list[int]:
    largest, size = LARGEST_OF_BATCH if axis in BATCH else LARGEST, explained.mesh.get(axis, 1)
    if axis in SEQUENCE:
        largest = max(1, min(largest, explained.tokens // FEWEST))
    if axis in EXPERT_AXES:
        largest = max(1, min(LARGEST, explained.experts))
    return sorted({*(2**i for i in range(max(largest, size).bit_length())), size})


class Pool:
    """Values that are kept once each, by their place."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        key = repr(value)
        if key not in self.places:
            self.places[key] = len(self.values)
            self.values.append(value)
        return self.places[key]


def cell(
    find: Callable[[], tuple[Topology, dict[str, int]]],
    mesh: Mapping[str, int] | tuple[int, ...],
    pool: Pool,
    topologies: Pool,
    reasons: Pool,
    whole: Mapping[str, int] | None = None,
) -> list[int] | int:
    """`mesh`: sizes above 1; where it has no names, any will do. `whole`: the mesh of which it is a part."""
    sizes = dict(mesh) if isinstance(mesh, Mapping) else named(mesh)
    try:
        topology, over = find()
        links = axis_links(topology, whole or sizes, over)
    except ValueError as error:
        return -1 - reasons.place(str(error))
    parts = math.prod(whole.values()) // math.prod(sizes.values()) if whole else 1
    name = f"a stage's part of {topology.name}" if whole else topology.name
    where = topologies.place([name, topology.chips // parts, topology.slices, *believed(topology)])
    return [where, *(pool.place(stages(links[axis])) for axis in sizes)]


def named(shape: tuple[int, ...]) -> dict[str, int]:
    return {f"axis {i}": n for i, n in enumerate(shape)}


def believed(topology: Topology) -> tuple[float, str]:
    """The ratio of the interval of a step predicted there, and what it was made from."""
    step_interval = interval(1.0, topology)
    return step_interval.ratio, step_interval.why


def machine(chip: Chip, sizes: dict[str, int], explained: Explained) -> tuple[Topology, dict[str, int]]:
    """A topology of as many devices as the mesh, and the axes over its slices: the explained one where it fits.

    Raises ValueError when no such machine can be had.
    """
    mesh = split_axes(sizes)
    if explained.topology.chip.name == chip.name and mesh == split_axes(explained.mesh):
        return explained.topology, explained.over
    return elsewhere(chip, tuple(mesh.values()), explained)


def elsewhere(chip: Chip, shape: tuple[int, ...], explained: Explained) -> tuple[Topology, dict[str, int]]:
    """The same for a mesh that is not explained, by its sizes above 1 in the mesh's order."""
    topology = explained.topology
    if topology.chip.name == chip.name and topology.slices == 1 and topology.devices == math.prod(shape):
        return topology, {}
    shapes = shapes_of(chip, math.prod(shape))
    for sizes in shapes:
        candidate = Topology(chip, sizes, network=topology.network if topology.chip.name == chip.name else None)
        try:
            axis_links(candidate, named(shape), {})
        except ValueError:
            continue
        return candidate, {}
    said = " x ".join(map(str, shape)) or "of one device"
    raise ValueError(
        f"mesh {said} does not fit a torus of {chip.name} with {math.prod(shapes[0])} chips; make the axes "
        "divisors of its dims"
    )


def shapes_of(chip: Chip, devices: int) -> list[tuple[int, ...]]:
    """Shapes of so many devices, the most even one first. Raises ValueError where there are none."""
    if chip.node:
        if devices > chip.node and devices % chip.node:
            raise ValueError(f"{devices} {chip.name} are no whole nodes of {chip.node}; take a multiple of {chip.node}")
        return [(1, devices) if devices <= chip.node else (devices // chip.node, chip.node)]
    if devices % chip.devices:
        raise ValueError(
            f"a {chip.name} chip is {chip.devices} devices, so {devices} are no whole chips; take an even number"
        )
    count = devices // chip.devices
    valid = valid_shapes(chip)
    if shapes := [s for s in valid if math.prod(s) == count]:
        return sorted(shapes, key=lambda s: distance(s, (count ** (1 / len(s)),) * len(s)))
    there = sorted({math.prod(s) for s in valid})
    near = [*[n for n in there if n < count][-1:], *[n for n in there if n > count][:1]]
    raise ValueError(f"there is no {chip.name} slice of {count} chips; the nearest have {' and '.join(map(str, near))}")


def stages(link: Link) -> list[list[Any]]:
    return [[s.kind, s.size, s.bandwidth, s.hops, s.hop_seconds, s.exchange, s.latency, s.whole] for s in link.stages]


def chip_figures(chip: Chip) -> dict[str, Any]:
    """Datasheet figures of a device, and what programs reach of them, for each dtype."""
    speeds = {dtype: rates(chip, dtype) for dtype in ("bfloat16", "float32")}
    return {
        "flops": chip.bf16_flops,
        "device_flops": chip.device_flops,
        "device_bandwidth": chip.device_bandwidth,
        "host_bandwidth": chip.host_bandwidth,
        "source": chip.source,
        "dtype": chip.dtype,
        "node": chip.node,
        "softmax": chip.fractions.softmax if chip.node else None,
        "block": BLOCK[chip.platform],
        "rates": {dtype: vars(speed) for dtype, speed in speeds.items()},
    }
