"""The figures that a reader looks for first: of one run, or the best of several with its name."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jaxscale.report.goodput import goodput
from jaxscale.report.inputs import Run, part, peak_of
from jaxscale.report.learned import unit_of
from jaxscale.report.plots import Cell, Number, Tile, finite
from jaxscale.report.steps import figure
from jaxscale.report.typical import middle, throughput

Captioned = tuple[Number, str]  # a figure, and what it is of


def headline(runs: list[Run], names: list[str]) -> list[Tile]:
    """Best loss for each unit, then speed, MFU and goodput, those that any run has."""
    tiles = []
    for unit in dict.fromkeys(unit_of(run) for run in runs):
        unit_runs = [(run, name) for run, name in zip(runs, names, strict=True) if unit_of(run) == unit]
        kinds = [
            kind for kind in ("validation", "train") if any(best_loss(run, kind)[0] is not None for run, _ in unit_runs)
        ]
        if kinds:
            label = "best validation loss" if kinds[0] == "validation" else "best training loss"
            tiles += tile(label, unit, unit_runs, partial(best_loss, kind=kinds[0]), best=min)
    every = list(zip(runs, names, strict=True))
    tiles += tile("tokens per second", "tokens/s", every, lambda run: (throughput(run), "median step"))
    tiles += tile("MFU", "share", every, lambda run: (middle(run, "mfu"), peak_of_mfu(run)))
    tiles += tile("goodput", "share", every, useful)
    return tiles


def tile(
    label: str, unit: str, runs: list[tuple[Run, str]], of: Callable[[Run], Captioned], best: Callable[..., Any] = max
) -> list[Tile]:
    """The best run's figure; its name is said where there are several runs."""
    figures = [(*of(run), name) for run, name in runs]
    there = [(value, about, name) for value, about, name in figures if value is not None]
    if not there:
        return []
    value, about, name = best(there, key=lambda item: item[0])
    return [Tile(label, Cell(value, unit), f"{name}: {about}" if len(runs) > 1 else about)]


def best_loss(run: Run, kind: str) -> Captioned:
    losses = [(v, r["step"]) for r in run.metrics if r["kind"] == kind and (v := figure(r, "loss")) is not None]
    if not losses:
        return None, ""
    value, step = min(losses)
    return value, f"step {step:,} of {planned:,}" if (planned := steps_of(run)) else f"step {step:,}"


def steps_of(run: Run) -> int | None:
    steps = part(run.config, "steps")
    return steps if isinstance(steps, int) and not isinstance(steps, bool) else None


def peak_of_mfu(run: Run) -> str:
    """Which peak the share is of, without which it says nothing."""
    peak, convention = peak_of(run), part(run.config, "metrics", "mfu")
    flops = finite(part(peak, "flops_per_second"))
    size = f"{flops / 1e12:,.4g} TFLOP/s, " if flops is not None else ""
    return f"of {size}{peak.get('source') or 'a peak that is not on record'}; convention {convention or 'unknown'}"


def useful(run: Run) -> Captioned:
    breakdown = goodput(run.events)
    if breakdown is None or not breakdown.wall_seconds:
        return None, ""
    attempts = f"{breakdown.attempts} attempt{'s' * (breakdown.attempts != 1)}"
    return breakdown.share, f"of {breakdown.wall_seconds:,.0f} s on steps that counted, {attempts}"
