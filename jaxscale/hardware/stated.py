"""Figures of a machine that a user states, as a topology takes them: a network's bandwidth, a host's memory. No jax."""

import re
from dataclasses import replace

from jaxscale.hardware.names import read_name
from jaxscale.hardware.topology import Topology, find_topology

PREFIX = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
NUMBER = r"(\d+(?:\.\d+)?)\s*([kKmMgGtT]i?)"
BANDWIDTH = re.compile(rf"{NUMBER}(b|bit|B|byte)s?(?:/s|ps)(?:\s*(?:/|a |per )\s*(node|host|chip|gpu))?")
MEMORY = re.compile(rf"{NUMBER}B(?:\s*(?:/|a |per )\s*(node|host|chip|gpu))?")
LEAST_HOST = 1e9  # bytes: less is a slip of the unit


def read_topology(
    name: str, slices: int = 1, *, network: str | None = None, host_memory: str | None = None
) -> tuple[Topology, list[str]]:
    """The topology of a name with what is stated of it, and lines that say how both were read, where that is news."""
    topology = with_stated(find_topology(name, slices), network, host_memory)
    how = read_name(name).how
    said = stated_text(topology)
    return topology, [line for line in (how and f"topology {name}: {how}", said and f"stated: {said}") if line]


def with_stated(topology: Topology, network: str | None, host_memory: str | None) -> Topology:
    """`topology` with what `--network` and `--host-memory` say; ValueError for what has no unit, or cannot be."""
    if network is not None:
        topology = replace(topology, network=read_network(network, topology))
    if host_memory is not None:
        topology = replace(topology, host_memory=read_host_memory(host_memory, topology))
    return topology


def read_network(text: str, topology: Topology) -> float:
    """Bytes/s of a chip: `800Gb/s` a node (TPU: a host), `100GB/s/node`, `400Gb/s/gpu`. Gb are bits, GB bytes."""
    match, chip = BANDWIDTH.fullmatch(text.strip()), topology.chip
    if not match:
        raise ValueError(
            f"--network {text!r}: give number and unit, as 800Gb/s (bits) or 100GB/s (bytes) a node, or 400Gb/s/chip"
        )
    value = float(match[1]) * PREFIX[match[2].lower()] / (8 if match[3] in ("b", "bit") else 1)
    value /= 1 if match[4] in ("chip", "gpu") else topology.host_chips
    fastest = f"its {chip.link}" if chip.node else "a link of its torus"
    if not 0 < value <= chip.link_bandwidth:
        raise ValueError(
            f"--network {text!r} is {value / 1e9:,.4g} GB/s for each {chip.name}, and {fastest} has "
            f"{chip.link_bandwidth / 1e9:,.4g}; give what lies between nodes or slices, Gb/s for bits"
        )
    return value


def read_host_memory(text: str, topology: Topology) -> float:
    """Bytes of one host: `448GB`, `2TB`, `64GiB/gpu`."""
    match = MEMORY.fullmatch(text.strip())
    if not match:
        raise ValueError(f"--host-memory {text!r}: give number and unit, as 448GB or 64GB/gpu")
    value = float(match[1]) * PREFIX[match[2].lower()] * (topology.host_chips if match[3] in ("chip", "gpu") else 1)
    if value < LEAST_HOST:
        raise ValueError(f"--host-memory {text!r} is {value / 1e9:.3g} GB; give a host's memory, as 448GB")
    return value


def stated_text(topology: Topology) -> str:
    """What was stated, in words; empty where nothing was."""
    parts = []
    unit = "GPU" if topology.chip.node else "chip"
    if topology.network:
        node = topology.network * topology.host_chips
        parts.append(f"network {topology.network / 1e9:,.4g} GB/s a {unit}, {node * 8 / 1e9:,.4g} Gb/s a node")
    if topology.host_memory:
        chips = f"{topology.host_chips} {unit}{'s' if topology.host_chips > 1 else ''}"
        parts.append(f"host memory {topology.host_memory / 1e9:,.4g} GB a host of {chips}")
    return "; ".join(parts)
