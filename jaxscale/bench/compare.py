"""Two records side by side: ratios with their spread, and whether a difference is inside the noise. No jax.

The spread is a bootstrap of the ratio of medians (Efron, 1979): both sides' samples are drawn again with replacement,
and the middle 95 % of the ratios are the interval. A difference whose interval holds 1 is inside the noise.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxscale.bench.record import BenchRecord, Figure, Label, Row

DRAWS = 2000


@dataclass(frozen=True)
class Ratio:
    """b : a of one figure of one row. `low`, `high`: 95 % interval; None where a side has fewer than 3 samples.

    A share of a peak says nothing where the two peaks differ: a CPU's is measured, and moves with the machine's load.
    """

    labels: dict[str, Label]
    figure: str
    unit: str
    a: Figure
    b: Figure
    value: float
    low: float | None
    high: float | None
    peaks_differ: bool = False

    @property
    def verdict(self) -> str:
        if not math.isfinite(self.value):
            return "not a number"
        if self.peaks_differ:
            return "the peaks differ"
        if self.low is None or self.high is None:
            return "no spread known"
        if self.low <= 1 <= self.high:
            return "inside the noise"
        return "higher" if self.value > 1 else "lower"


def compare(a: BenchRecord, b: BenchRecord, *, across_devices: bool = False) -> list[Ratio]:
    """Every figure that both records have, b over a, in a's order.

    Raises ValueError for records of different kinds, with no row in common, or (unless `across_devices`) of different
    devices.
    """
    if a.kind != b.kind:
        raise ValueError(f"a {a.kind} record and a {b.kind} record have nothing to compare; give two of one kind")
    devices = [f"{r.device.count} x {r.device.kind}" for r in (a, b)]
    if devices[0] != devices[1] and not across_devices:
        raise ValueError(f"measured on {devices[0]} and on {devices[1]}; to compare devices, add --across-devices")
    other = {key(row): row for row in b.rows}
    peaks = [r.peak.flops_per_second if r.peak else None for r in (a, b)]
    ratios = [
        ratio(row, name, mine, other[key(row)].figures[name], peaks_differ=peaks[0] != peaks[1])
        for row in a.rows
        if key(row) in other
        for name, mine in row.figures.items()
        if name in other[key(row)].figures and mine.unit == other[key(row)].figures[name].unit
    ]
    if not ratios:
        raise ValueError(f"the two {a.kind} records have no figure in common: no row has the same labels in both")
    return ratios


def differences(a: BenchRecord, b: BenchRecord) -> list[str]:
    """What else differs between two records, a line each: config, mesh, peak, code, versions, load, rows."""
    lines = []
    flat = [flatten({"config": r.config, "mesh": r.mesh, "versions": r.versions}) for r in (a, b)]
    for name in sorted(flat[0].keys() | flat[1].keys()):
        if flat[0].get(name) != flat[1].get(name) and name not in ("config.out", "config.name"):
            lines.append(f"{name}: {flat[0].get(name)} : {flat[1].get(name)}")
    if a.commit != b.commit:
        lines.append(f"commit: {a.commit} : {b.commit}")
    rates = [f"{r.peak.flops_per_second / 1e12:.4g} TFLOP/s" if r.peak else "none" for r in (a, b)]
    if rates[0] != rates[1]:
        lines.append(f"peak: {rates[0]} : {rates[1]}")
    lines += [f"{name} was {r.under_load}" for name, r in zip("ab", (a, b), strict=True) if r.under_load]
    only = [len({key(r) for r in x.rows} - {key(r) for r in y.rows}) for x, y in ((a, b), (b, a))]
    if any(only):
        lines.append(f"rows in one alone: {only[0]} : {only[1]}")
    return lines


def flatten(values: Any, where: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {where: values}
    return {k: v for name, x in values.items() for k, v in flatten(x, f"{where}.{name}" if where else name).items()}


def key(row: Row) -> tuple:
    return tuple(sorted((name, str(value)) for name, value in row.labels.items()))


def ratio(row: Row, name: str, a: Figure, b: Figure, *, peaks_differ: bool) -> Ratio:
    low, high = interval(a.samples, b.samples)
    value = b.value / a.value if a.value else (1.0 if b.value == a.value else math.inf)
    of_peak = name.startswith(("mfu", "hfu")) or name == "share_of_peak"
    return Ratio(row.labels, name, a.unit, a, b, value, low, high, peaks_differ and of_peak)


def interval(a: list[float], b: list[float]) -> tuple[float | None, float | None]:
    """95 % of the ratios of medians b / a, of samples drawn again; always the same draws."""
    if min(len(a), len(b)) < 3:
        return None, None
    chance = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        medians = [np.median(chance.choice(x, (DRAWS, len(x))), axis=1) for x in (np.array(a), np.array(b))]
        low, high = np.quantile(medians[1] / medians[0], (0.025, 0.975))
    return (float(low), float(high)) if np.isfinite([low, high]).all() else (None, None)
