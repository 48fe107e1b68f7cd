"""From work to seconds: what a chip reaches of its datasheet, how long matmuls, kernels and collectives take.

One set of fractions a chip, fitted to published runs (`benchmarks/published.py` has them, and the errors that remain);
everything else is physics: FLOPs, bytes and links. No jax.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jaxscale.hardware import Chip
from jaxscale.topology import Link, combined


@dataclass(frozen=True)
class Fractions:
    """What a chip reaches of its datasheet.

    Attributes:
        matmul: of the dense bf16 peak, in the matmuls of a decoder.
        attention: of the same peak, in its attention kernel.
        memory: of HBM bandwidth.
        network: of links.
        overlap: share of the communication that could be hidden, which is.
        elementwise: HBM traffic outside matmuls, times what a well-fused program needs.
    """

    matmul: float
    attention: float
    memory: float = 0.8
    network: float = 0.85
    overlap: float = 0.8
    elementwise: float = 1.0


# v4, a100 and b200 have no published run in `benchmarks/published.py`: theirs are their neighbours'
FRACTIONS: dict[str, Fractions] = {
    "v4": Fractions(0.75, 0.4),
    "v5e": Fractions(0.75, 0.4),
    "v5p": Fractions(0.85, 0.4),
    "v6e": Fractions(0.62, 0.35),
    "tpu7x": Fractions(0.70, 0.35),
    "a100": Fractions(0.72, 0.5, elementwise=1.8),
    "h100": Fractions(0.64, 0.5, elementwise=1.8),
    "h200": Fractions(0.62, 0.5, elementwise=1.8),
    "b200": Fractions(0.62, 0.45, elementwise=1.8),
    # No published run: their neighbours'. On PCIe a byte passes the host's memory: half of the datasheet's bandwidth
    "v2": Fractions(0.75, 0.4),
    "v3": Fractions(0.75, 0.4),
    "a100-40gb": Fractions(0.72, 0.5, elementwise=1.8),
    "b300": Fractions(0.62, 0.45, elementwise=1.8),
    "gb200": Fractions(0.62, 0.45, elementwise=1.8),
    "gb300": Fractions(0.62, 0.45, elementwise=1.8),
    "mi300x": Fractions(0.5, 0.4, elementwise=1.8),  # assumed below NVIDIA's: nothing to fit it to
    "v100": Fractions(0.72, 0.4, elementwise=1.8),
    "v100-32gb": Fractions(0.72, 0.4, elementwise=1.8),
    "t4": Fractions(0.6, 0.4, network=0.5, elementwise=1.8),  # 70 W: below its clock in long matmuls
    "l4": Fractions(0.6, 0.4, network=0.5, elementwise=1.8),  # 72 W
    "a10g": Fractions(0.72, 0.5, network=0.5, elementwise=1.8),
    "l40s": Fractions(0.64, 0.5, network=0.5, elementwise=1.8),
    "a6000": Fractions(0.72, 0.5, network=0.5, elementwise=1.8),
    "rtx-pro-6000": Fractions(0.64, 0.45, network=0.5, elementwise=1.8),
    "rtx-pro-6000-server": Fractions(0.64, 0.45, network=0.5, elementwise=1.8),
    "rtx3090": Fractions(0.72, 0.5, network=0.5, elementwise=1.8),
    "rtx4090": Fractions(0.72, 0.5, network=0.5, elementwise=1.8),
    "rtx5090": Fractions(0.72, 0.5, network=0.5, elementwise=1.8),
}


@dataclass(frozen=True)
class Rates:
    """Seconds of a device's work. FLOP/s and bytes/s are achievable ones."""

    matmul_flops: float
    attention_flops: float
    memory: float
    network: float
    overlap: float
    elementwise: float

    def seconds(self, flops: float, moved: float) -> float:
        """Roofline: of matmul FLOPs and HBM bytes, the slower (Williams et al., CACM 52(4), 2009)."""
        return max(flops / self.matmul_flops, moved / self.memory)


def rates(chip: Chip, dtype: str = "bfloat16", *, quantized: bool = False, power: float = 1.0) -> Rates:
    """int8 or fp8 matmuls run at twice bf16's rate where `quantized`.

    Float32 ones are told at jax's default precision, which nothing here changes: a TPU rounds their operands to bf16
    and runs as fast; an NVIDIA GPU takes TF32, half as fast (its datasheets). `jax_default_matmul_precision=highest`
    would take six bf16 passes on a TPU, and is not predicted.
    """
    own = FRACTIONS[chip.name]
    peak = chip.device_flops * chip.share(dtype) * power
    return Rates(
        peak * own.matmul * (2 if quantized else 1),
        peak * own.attention,
        chip.device_bandwidth * own.memory,
        own.network,
        own.overlap,
        own.elementwise,
    )


@dataclass(frozen=True)
class Sent:
    """A collective with its time: `seconds` of one step on each network it uses, and how much work can hide it."""

    kind: str
    axes: tuple[str, ...]
    bytes: float
    times: int
    seconds: float
    network: str
    hidden: float
    asynchronous: bool
    what: str = ""

    @property
    def exposed(self) -> float:
        return self.seconds - self.hidden


def collective_seconds(
    kind: str, axes: tuple[str, ...], size: float, links: Mapping[str, Link], network: float
) -> tuple[float, str]:
    """Seconds of one run, and the network on which most of them go."""
    link = combined(links, tuple(a for a in axes if a in links))
    parts = link.seconds(kind, size, network)
    return sum(parts.values()), max(parts, key=parts.__getitem__, default="none")


# part of a step -> what it keeps busy
WHOLE = {"matmuls": "compute", "attention": "compute", "elementwise": "HBM", "optimizer": "HBM"}


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step.

    Attributes:
        overlapped, nothing_overlapped: bounds; `best`: the estimate between them.
        parts: seconds by what they go to, without overlap.
        sums: the same with compute as a whole, HBM as a whole, and each network's axes.
        binds: the longest of the sums.
    """

    overlapped: float
    nothing_overlapped: float
    best: float
    parts: dict[str, float]
    exposed: float

    @property
    def sums(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, seconds in self.parts.items():
            found[WHOLE.get(name, name)] = found.get(WHOLE.get(name, name), 0.0) + seconds
        return found

    @property
    def binds(self) -> str:
        return max(self.sums, key=self.sums.__getitem__)


def step_time(compute: Mapping[str, float], sent: Iterable[Sent]) -> StepTime:
    """Compute runs one after another; collectives of one network too; networks and compute beside each other."""
    sent = list(sent)
    busy = sum(compute.values())
    by_network: dict[str, float] = {}
    for s in sent:
        name = f"{s.network} ({'+'.join(s.axes) or 'all'})"
        by_network[name] = by_network.get(name, 0.0) + s.seconds
    networks: dict[str, float] = {}
    for s in sent:
        networks[s.network] = networks.get(s.network, 0.0) + s.seconds
    exposed = sum(s.exposed for s in sent)
    total = sum(networks.values())
    lower = max(busy, *networks.values()) if networks else busy
    return StepTime(lower, busy + total, max(lower, busy + exposed), dict(compute) | by_network, exposed)
