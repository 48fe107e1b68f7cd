"""Links as a clock found them: a latency and a bandwidth for each mesh axis, in place of the datasheet's. No jax.

A pair stands for the networks that its axis rode when it was measured; it is used for an axis of the same name that
rides the same networks, and for no other.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxscale.hardware.topology import Link, Stage, Topology, find_topology, links


@dataclass(frozen=True)
class Pair:
    """t = latency + bytes on the wire / bandwidth, for one phase of a ring; `exchange`: bytes/s of an all-to-all."""

    latency: float
    bandwidth: float
    exchange: float


@dataclass(frozen=True)
class Measured:
    """What a record of `bench collectives` says of its axes.

    Attributes:
        networks: axis -> the networks it rode, e.g. ("NVLink", "network"); `sizes`: its devices then.
    """

    source: str
    pairs: dict[str, Pair]
    networks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    def apply(self, nominal: Mapping[str, Link]) -> dict[str, Link]:
        """`nominal` links (the datasheet's), with measured ones where there are any."""
        return {axis: self.link(axis, link) if self.covers(axis, link) else link for axis, link in nominal.items()}

    def covers(self, axis: str, link: Link) -> bool:
        return axis in self.pairs and self.networks[axis] == kinds(link)

    def link(self, axis: str, link: Link) -> Link:
        pair = self.pairs[axis]
        kind, figures = link.stages[-1].kind, (pair.bandwidth, 0, 0.0, pair.exchange, pair.latency)
        stage = Stage(kind, link.size, *figures, measured=True, whole=link.whole)
        return Link((stage,))


def kinds(link: Link) -> tuple[str, ...]:
    return tuple(s.kind for s in link.stages)


def read_measured(record: dict, source: str, topology: Topology) -> Measured:
    """The fits of a record (`bench.record.BenchRecord` as plain values) of the chip of `topology`.

    Raises ValueError for a record of another kind or chip, or one without fits.
    """
    if record["kind"] != "collectives":
        raise ValueError(f"{source} is a {record['kind']} record; --measured takes one of `jaxscale bench collectives`")
    where = None if record["topology"] is None else find_topology(record["topology"])
    if where is None or where.chip.name != topology.chip.name:
        raise ValueError(
            f"{source} was measured on {record['device']['kind']}, and the plan is for {topology.chip.name}: "
            "measure on that chip, or leave --measured out"
        )
    fits = [r for r in record["rows"] if r["labels"].get("fit")]
    pairs = {}
    for axis in dict.fromkeys(str(r["labels"].get("axis")) for r in fits):
        figures = {r["labels"].get("collective"): r["figures"] for r in fits if r["labels"].get("axis") == axis}
        ring = figures.get("ring", {})
        if "bandwidth" in ring and "latency_seconds" in ring:
            latency, bandwidth = (float(ring[name]["value"]) for name in ("latency_seconds", "bandwidth"))
            exchange = float(figures.get("all-to-all", {}).get("bandwidth", ring["bandwidth"])["value"])
            if not (0 <= latency < math.inf and 0 < bandwidth < math.inf and 0 < exchange < math.inf):
                raise ValueError(f"{source}: a fit of {axis} is {latency} s and {bandwidth} bytes/s; measure it again")
            pairs[axis] = Pair(latency, bandwidth, exchange)
    if not pairs:
        raise ValueError(
            f"{source} has no fitted latency and bandwidth: sizes that tell them apart were not measured, or it was "
            "interrupted; measure again, with larger sizes too"
        )
    rode = {axis: kinds(link) for axis, link in links(where, record["mesh"]).items()}
    return Measured(source, {a: p for a, p in pairs.items() if a in rode}, rode, dict(record["mesh"]))
