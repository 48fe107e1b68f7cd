"""Shares of a measured peak that come out above 1: the peak was too low; a better one is found, and they are scaled."""

from dataclasses import replace

import jax

from jaxscale import config as cfg
from jaxscale.bench.record import Figure, Row, is_share_of_peak
from jaxscale.training.peak import Peak, measure_peak


def against_better_peak(
    rows: list[Row], peak: Peak | None, device: jax.Device, config: cfg.Config | None
) -> tuple[list[Row], Peak | None]:
    """Rows and peak as they are, unless the peak is measured and a share of it is above 1.

    Then the peak of that dtype is the highest of the old one, a new measurement, and the record's own matmuls.
    """
    if peak is None or not peak.measured:
        return rows, peak
    first = dtype_of(rows[0], config) if rows else ""
    for dtype in sorted({dtype_of(row, config) for row in rows if impossible(row)}):
        again = measure_peak(device, dtype)
        mine = [r for r in rows if {"m", "k", "n"} <= r.labels.keys() and dtype_of(r, config) == dtype]
        best = max((r.figures["flops_per_second"].value for r in mine if "flops_per_second" in r.figures), default=0.0)
        rate = max(best, again.flops_per_second)
        rows = [scaled(row, peak, rate) if dtype_of(row, config) == dtype else row for row in rows]
        if dtype == first and rate > peak.flops_per_second:
            source = again.source if rate > best else f"best {dtype} matmul of this record"
            source += f"; the first measurement gave {peak.flops_per_second / 1e12:,.3g} TFLOP/s"
            peak = replace(peak, flops_per_second=rate, source=source)
    return rows, peak


def impossible(row: Row) -> bool:
    return any(is_of_peak(name, figure) and figure.value > 1 for name, figure in row.figures.items())


def is_of_peak(name: str, figure: Figure) -> bool:
    """Of the peak, not of a ceiling that another row of the record gives."""
    return is_share_of_peak(name, figure) and (name == "share_of_peak" or not name.startswith("share_of_"))


def scaled(row: Row, peak: Peak, rate: float) -> Row:
    """The row's shares against the higher of its own peak and `rate`."""
    row_peak = peak.flops_per_second
    if {"share_of_peak", "flops_per_second"} <= row.figures.keys():
        row_peak = row.figures["flops_per_second"].value / row.figures["share_of_peak"].value
    by = min(1.0, row_peak / rate)
    shares = {
        name: f.model_copy(update={"value": f.value * by, "samples": [s * by for s in f.samples]})
        for name, f in row.figures.items()
        if is_of_peak(name, f)
    }
    return row.model_copy(update={"figures": row.figures | shares})


def dtype_of(row: Row, config: cfg.Config | None) -> str:
    return str(row.labels.get("dtype") or (config.step.compute_dtype if config else "float32"))
