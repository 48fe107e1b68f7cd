"""How far a predicted step time is to be believed: an interval, made from what published runs took. No jax.

The constants are derived by `benchmarks/published.py`, which prints them; a test holds that they are what it derives.
"""

from dataclasses import dataclass

from jaxscale.hardware.topology import Topology

COVERED = 0.9  # share of published runs that lie within
# chip, or chip over several slices or nodes -> (ratio, runs that it was made from): measured seconds lie between
# predicted / ratio and predicted * ratio. A platform's stands for its chips with few runs of their own.
CLASSES: dict[str, tuple[float, int]] = {
    "a100": (1.123, 44),
    "a100, all": (1.123, 59),
    "a100, several nodes": (1.147, 15),
    "gpu": (1.123, 148),
    "h100": (1.138, 55),
    "h100, all": (1.133, 85),
    "h100, several nodes": (1.133, 30),
    "tpu": (1.083, 72),
    "v5e, all": (1.094, 26),
    "v5e, several slices": (1.094, 22),
    "v5p, all": (1.123, 14),
    "v6e": (1.083, 16),
    "v6e, all": (1.083, 18),
}
# Chips with fewer than three runs: rows predicted with another chip's fractions, every way round, within the platform.
UNKNOWN: dict[str, float] = {"tpu": 1.291, "gpu": 1.556}

FEW = frozenset({"h200", "tpu7x", "v4"})  # chips with three runs or more, too few for a class of their own


@dataclass(frozen=True)
class Interval:
    """`low` to `high` seconds: nine of ten published runs of `basis` were within.

    Attributes:
        ratio: high / predicted and predicted / low.
        runs: published runs that the ratio was made from; 0: fewer than three of this chip, so the widest
            class stands for it.
    """

    low: float
    high: float
    ratio: float
    runs: int
    basis: str

    @property
    def why(self) -> str:
        """`nine of ten of 16 published runs on v6e were within 9 %`."""
        share = f"{self.ratio - 1:.0%}".replace("%", " %")
        if self.runs:
            return f"nine of ten of {self.runs} published runs on {self.basis} were within {share}"
        return f"fewer than three published runs on {self.basis}: the widest class, {share}"

    @property
    def words(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g} s ({self.why})"


def name_of(topology: Topology) -> str:
    """The class of a topology: `v5e`, `v5e, several slices`, `h100, several nodes`."""
    if topology.chip.node:
        return f"{topology.chip.name}, several nodes" if topology.shape[0] > 1 else topology.chip.name
    return f"{topology.chip.name}, several slices" if topology.slices > 1 else topology.chip.name


def ratio_of(topology: Topology) -> tuple[float, int, str]:
    """(ratio, runs, of what): its own class, else its chip's, else its platform's, else the widest one."""
    platform = topology.chip.platform
    for name in (name_of(topology), f"{topology.chip.name}, all"):
        if name in CLASSES:
            return *CLASSES[name], name.removesuffix(", all")
    if topology.chip.name in FEW:
        return *CLASSES[platform], {"tpu": "all TPUs", "gpu": "all GPUs"}[platform]
    return UNKNOWN[platform], 0, topology.chip.name


def interval(seconds: float, topology: Topology) -> Interval:
    """Of a predicted step time on a topology."""
    ratio, runs, basis = ratio_of(topology)
    return Interval(seconds / ratio, seconds * ratio, ratio, runs, basis)
