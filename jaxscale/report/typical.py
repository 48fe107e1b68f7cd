"""A run's speed in one figure each: medians over its steps."""

import statistics

from jaxscale.report.inputs import Run
from jaxscale.report.learned import samples_of
from jaxscale.report.plots import Number
from jaxscale.report.steps import figure, tokens_per_step


def middle(run: Run, *keys: str) -> Number:
    """The median over training steps of the keys' sum, of the steps that hold the first key."""
    figures = [[figure(r, key) for key in keys] for r in run.metrics if r["kind"] == "train"]
    sums = [sum(v for v in values if v is not None) for values in figures if values[0] is not None]
    return statistics.median(sums) if sums else None


def step_seconds(run: Run) -> Number:
    """The wait of a run that trains on samples is their making, a part of its step."""
    return middle(run, "step_seconds", *(["data_wait_seconds"] if samples_of(run) else []))


def throughput(run: Run) -> Number:
    """Tokens per second at the median step."""
    seconds, tokens = step_seconds(run), tokens_per_step(run)
    return tokens / seconds if tokens and seconds else middle(run, "tokens_per_second")
