"""Topologies of chips, and how fast a mesh axis is on one: which torus dims or networks it rides. No jax.

Bandwidths are bytes/s in one direction.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxscale.hardware.chips import Chip, find_chip
from jaxscale.hardware.names import distance, read_name, valid_shapes

__all__ = [
    "Link",
    "Stage",
    "Topology",
    "assign",
    "combined",
    "distance",
    "find_topology",
    "links",
    "topology_of",
    "valid_shapes",
]


@dataclass(frozen=True)
class Topology:
    """`slices` copies of a torus of chips, or nodes of GPUs.

    Attributes:
        shape: TPU: chips along each torus dim; GPU: (nodes, GPUs of a node).
        network: bytes/s of a chip to the slow network, where it is known better than the datasheet's.
        host_memory: bytes of one host, likewise.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1
    network: float | None = None
    host_memory: float | None = None

    @property
    def name(self) -> str:
        text = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
        return text if self.slices == 1 else f"{text} x {self.slices} slices"

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def network_bandwidth(self) -> float:
        """Of a chip, as stated or by the table."""
        return self.network or self.chip.network_bandwidth

    @property
    def host_chips(self) -> int:
        """Chips of one host: those of a whole one, or of the part that is used."""
        return min(self.chip.host, self.shape[1] if self.chip.node else math.prod(self.shape))

    @property
    def host_bytes(self) -> float:
        """Memory of one host: as stated, or by the table, of which a part of a host has its share."""
        return self.host_memory or self.chip.host_bytes * self.host_chips / self.chip.host

    def on_host(self, bytes_of_device: float) -> float:
        """What a host keeps, of so much for each of its devices."""
        return bytes_of_device * self.chip.devices * self.host_chips

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Which torus dims close into rings: 3D slices made of whole 4x4x4 cubes in all, 2D ones in dims of 16."""
        if self.chip.torus_dims == 3:
            return (all(n % self.chip.wrap_multiple == 0 for n in self.shape),) * 3
        return tuple(n % self.chip.wrap_multiple == 0 for n in self.shape)

    @property
    def physical(self) -> tuple[int, ...]:
        """The dims of one slice that a mesh is laid along: the torus, and the devices of a chip where there are two."""
        return (*self.shape, self.chip.devices) if self.chip.devices > 1 else self.shape


def find_topology(name: str, slices: int = 1) -> Topology:
    """A machine by its name, in a form of `hardware.names.read_name`. Raises ValueError with the nearest valid ones."""
    named = read_name(name)
    chip = named.chip
    if slices < 1:
        raise ValueError(f"slices={slices}: at least 1")
    if slices > 1 and chip.node:
        raise ValueError(f"slices={slices}: {chip.name} has nodes, not slices; write {chip.name}:{slices}x{chip.node}")
    if slices > 1 and not chip.multislice:
        raise ValueError(f"slices={slices}: {chip.name} slices cannot be joined; take a larger slice")
    return Topology(chip, named.shape, slices)


def topology_of(devices: Sequence[Any]) -> Topology | None:
    """The topology that these `jax.Device`s are, where their chip is in the table and its shape is plain."""
    chip = find_chip(devices[0].device_kind)
    if chip is None:
        return None
    if chip.node:
        nodes, rest = divmod(len(devices), chip.node)
        name = (
            f"{chip.name}:{len(devices)}"
            if nodes == 0 or len(devices) == chip.node
            else f"{chip.name}:{nodes}x{chip.node}"
        )
        return None if nodes and rest else find_topology(name)
    coords = [getattr(d, "coords", None) for d in devices]
    if any(c is None for c in coords):
        return None
    shape = [max(c[i] for c in coords) + 1 for i in range(3)]  # type: ignore[index]
    shape = shape[: chip.torus_dims]
    fits = math.prod(shape) * chip.devices == len(devices)
    fits = fits and any(sorted(shape) == sorted(valid) for valid in valid_shapes(chip))
    return find_topology(f"{chip.name}:{'x'.join(map(str, shape))}") if fits else None


# --- how fast a mesh axis is ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One network that a mesh axis rides: `size` devices on it.

    Attributes:
        bandwidth: bytes/s at which a device takes in an all-gather on it, all physical axes and directions together.
        hop_seconds, hops: latency of a collective is their product.
        exchange: all-to-all bandwidth of a device here.
        latency: seconds of every run of a collective, on top; `measured`: by a clock, so that no share of a datasheet's
            figure is to be taken.
        whole: of whole torus dims.
    """

    kind: str
    size: int
    bandwidth: float
    hops: int
    hop_seconds: float
    exchange: float
    latency: float = 0.0
    measured: bool = False
    whole: bool = True


@dataclass(frozen=True)
class Link:
    """A mesh axis (or several together) on the machine: its networks, the fastest first."""

    stages: tuple[Stage, ...]

    @property
    def size(self) -> int:
        return math.prod(s.size for s in self.stages)

    @property
    def whole(self) -> bool:
        """Does it take whole torus dims? libtpu gathers over several axes that share one by all-reduces, which wait."""
        return all(s.whole for s in self.stages)

    def seconds(self, kind: str, size: float, reached: float = 1.0) -> dict[str, float]:
        """Seconds on each network of a collective of V = `size` bytes (see `compiled.collectives.Collective`).

        All-gather and reduce-scatter: V (n-1)/n / W, an all-reduce twice that, an all-to-all of V bytes a device
        n V / 4 W on a ring (scaling book, sharding.md), each at least its hops' latency. On several networks the
        slow one carries the shard that the fast ones leave: V / n_fast.

        Args:
            reached: share of a datasheet's bandwidth that collectives reach.
        """
        by_network: dict[str, float] = {}
        left = size
        for stage in self.stages:
            if stage.size == 1:
                continue
            share = (stage.size - 1) / stage.size
            if kind == "collective-permute":
                seconds = left / stage.bandwidth
            elif kind.endswith("all-to-all"):  # on a ring the hops of all pairs add up to n^2 / 4: no (n-1)/n there
                seconds = left * (1.0 if stage.kind == "ICI" and not stage.measured else share) / stage.exchange
            else:
                seconds = left * share / stage.bandwidth
            seconds = max(seconds, stage.hops * stage.hop_seconds) + stage.latency
            seconds *= (2 if kind == "all-reduce" else 1) / (1.0 if stage.measured else reached)
            by_network[stage.kind] = by_network.get(stage.kind, 0.0) + seconds
            if not kind.endswith(("all-to-all", "permute")):
                left /= stage.size
        return by_network


ICI_HOP, NETWORK_HOP = 1e-6, 1e-5  # about 1 us a hop on ICI (scaling book, sharding.md); 10 us through a data centre's
ORDER = ("NVLink", "xGMI", "PCIe", "network", "DCN")  # as a collective passes them, the fastest first
BETWEEN = ("network", "DCN")  # nodes or slices
# Between the two devices of a chip, this many ICI links (TPU7x: the vendor's page, "6 times faster"; v2, v3: the same)
CORE_LINK = 6.0


def links(topology: Topology, mesh: Mapping[str, int], dcn: Mapping[str, int] | None = None) -> dict[str, Link]:
    """Which network each mesh axis rides, and how fast.

    Args:
        mesh: axis -> size within a slice (GPU: over all nodes), in the mesh's order, fastest axis last.
        dcn: axis -> size over slices.
    """
    by_axis = gpu_links(topology, mesh) if topology.chip.node else tpu_links(topology, mesh)
    chip = topology.chip
    for axis, size in (dcn or {}).items():
        if size > 1:
            slow = topology.network_bandwidth / chip.devices
            stage = Stage("DCN", size, slow, 1, NETWORK_HOP * 5, slow)
            by_axis[axis] = Link((*by_axis.get(axis, Link(())).stages, stage))
    return by_axis


def combined(links: Mapping[str, Link], axes: tuple[str, ...]) -> Link:
    """Several axes as one: their ICI bandwidths add up, other networks are passed one after another."""
    stages = [s for axis in axes for s in links[axis].stages]
    ici = [s for s in stages if s.kind == "ICI"]
    rest = sorted((s for s in stages if s.kind != "ICI"), key=lambda s: ORDER.index(s.kind))
    if ici:
        one = Stage(
            "ICI",
            math.prod(s.size for s in ici),
            sum(s.bandwidth for s in ici),
            sum(s.hops for s in ici),
            ICI_HOP,
            min(s.exchange for s in ici),
            sum(s.latency for s in ici),
            all(s.measured for s in ici),
            all(s.whole for s in ici),
        )
        return Link((one, *rest))
    return Link(tuple(rest))


def tpu_links(topology: Topology, mesh: Mapping[str, int]) -> dict[str, Link]:
    """Each axis takes whole torus dims where their product fits, as `jax.make_mesh` lays it, else parts of dims.

    A ring of n takes in from both sides: W = 2 links; without wrap-around the end of a line has one: W = 1 link. Axes
    that share a torus dim have parts of it: the inner one a line, the outer one rings whose hops pass over the inner
    devices, so that they share the links.
    """
    chip, by_axis = topology.chip, {}
    parts = assign(topology.physical, mesh)
    for axis, factors in parts.items():
        stages = []
        for dim, size, stride in factors:
            whole = size * stride == topology.physical[dim]
            if dim >= len(topology.shape):  # the devices of one chip: never what a collective over chips waits for
                bandwidth, wrap = (chip.link_bandwidth * CORE_LINK if len(factors) == 1 else 0.0), False
            else:
                wrap = whole and topology.wraps[dim]
                bandwidth = chip.link_bandwidth * (2 if wrap else 1) / stride / chip.devices
            hops = (size // 2 if wrap else size - 1) * stride
            if not bandwidth:
                stages.append((size, 0.0, hops, math.inf))
                continue
            # all-to-all of S bytes a device on a ring: n S / 4 over 2 links in each direction (V/4W, scaling book)
            stages.append((size, bandwidth, hops, bandwidth * 4 / size))
        if stages:
            by_axis[axis] = Link((Stage(
                "ICI", math.prod(s[0] for s in stages), sum(s[1] for s in stages), sum(s[2] for s in stages),
                ICI_HOP, min(s[3] for s in stages),
                whole=all(size == topology.physical[dim] for dim, size, _ in factors)),))  # fmt: skip
    return by_axis


def assign(physical: tuple[int, ...], mesh: Mapping[str, int]) -> dict[str, list[tuple[int, int, int]]]:
    """axis -> the (dim, size, stride) that it takes of each torus dim; the last axis chooses first."""
    whole: dict[str, list[tuple[int, int, int]]] = {}
    free = [d for d, n in enumerate(physical) if n > 1]
    for axis, size in reversed(list(mesh.items())):
        if size == 1:
            continue
        for k in range(len(free), 0, -1):
            fits = [c for c in itertools.combinations(free, k) if math.prod(physical[d] for d in c) == size]
            if fits:
                whole[axis] = [(d, physical[d], 1) for d in fits[0]]
                free = [d for d in free if d not in fits[0]]
                break
        else:
            return assign_parts(physical, mesh)
    return whole


def assign_parts(physical: tuple[int, ...], mesh: Mapping[str, int]) -> dict[str, list[tuple[int, int, int]]]:
    """Where whole dims don't fit: axes from the last take factors of the dims, innermost first."""
    left, by_axis = list(physical), {}
    for axis, size in reversed(list(mesh.items())):
        factors: list[tuple[int, int, int]] = []
        order = sorted(range(len(left)), key=lambda d: (math.gcd(size, left[d]) != left[d], -left[d]))
        for dim in order:
            part = math.gcd(size, left[dim])
            if part > 1:
                factors.append((dim, part, physical[dim] // left[dim]))
                left[dim] //= part
                size //= part
        if size > 1:
            raise ValueError(f"mesh {dict(mesh)} does not fit a torus of {'x'.join(map(str, physical))}")
        by_axis[axis] = factors
    return by_axis


def gpu_links(topology: Topology, mesh: Mapping[str, int]) -> dict[str, Link]:
    """Ranks run along the mesh, last axis fastest: what fits the NVLink domain is on it, the rest on the network.

    On NVLink V (n-1)/n / W with W of one GPU; across nodes V / W of the node, shared by the groups that a node is in.
    """
    chip, by_axis, stride = topology.chip, {}, 1
    for axis, size in reversed(list(mesh.items())):
        if size == 1:
            continue
        # members of one group in a node, whose ranks lie `stride` apart; where nothing divides, none are counted on
        near = math.gcd(size, topology.shape[1] // stride) if topology.shape[1] % stride == 0 else 1
        stages = []
        if near > 1:
            stages.append(Stage(chip.link, near, chip.link_bandwidth, 1, ICI_HOP * 3, chip.link_bandwidth))
        if size > near:
            # the GPUs of a node that belong to one group bring their network cards together for its V / near
            slow = topology.network_bandwidth
            stages.append(Stage("network", size // near, slow, 1, NETWORK_HOP, slow))
        stride *= size
        by_axis[axis] = Link(tuple(stages))
    return by_axis
