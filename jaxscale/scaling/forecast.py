"""What a law says of a run that is not there: its loss with a 90 % interval, and how far outside the data it lies."""

import math

import numpy as np

from jaxscale import config as cfg
from jaxscale.scaling.bootstrap import INTERVAL
from jaxscale.scaling.counts import COUNTS, flops_per_token, size_of, tokens_of
from jaxscale.scaling.curves import sigmoid
from jaxscale.scaling.law import Law, Part, Point
from jaxscale.scaling.laws import form_of

Array = np.ndarray
FRONTIERS = ("isoflop", "envelope")
EXPERTS = "the model has experts, and a law of dense models knows nothing of those that a token does not go to"
FAR = 1.05  # times the largest run, from which a forecast lies outside


class Estimate(Part):
    """A number with its 90 % interval."""

    value: float
    low: float
    high: float


class Forecast(Part):
    """What a law says of one run.

    Attributes:
        basis: always `predicted`; a run's own loss is `measured`.
        model: the config's model by name; `parameters` N as `counts` says.
        loss: nats per token on held-out text; of a task's law the task's own loss.
        beyond: quantity -> how many times the largest fitted run's; below 1 it lies inside.
        left_out_error: of the largest rung, forecast from the others.
        doubts: what else weakens the forecast, a line each.
    """

    basis: str = "predicted"
    form: str
    name: str
    model: str
    counts: str
    parameters: float
    tokens: float
    unique_tokens: float | None
    flops: float
    loss: Estimate
    accuracy: Estimate | None
    beyond: dict[str, float]
    spread: float
    left_out_error: float | None
    doubts: list[str]


def forecast(
    law: Law, config: cfg.Config, *, tokens: float | None = None, unique_tokens: float | None = None
) -> Forecast:
    """The law at a config's N and D.

    Args:
        tokens: D; None: all that the config's steps see.
        unique_tokens: for the form data; None: as many as D.

    Raises:
        ValueError: the form says no loss, or a number is not above 0.
    """
    for option, number in (("--tokens", tokens), ("--unique-tokens", unique_tokens)):
        if number is not None and not 0 < number < 1e30:
            raise ValueError(f"{option} {number:g}: it must be a number of tokens above 0, e.g. 2e12")
    N, D = size_of(config, law.counts), float(tokens or tokens_of(config))
    C = flops_per_token(config) * D
    loss, accuracy = values(law, Point(N, D, C, math.nan if unique_tokens is None else float(unique_tokens)))
    return Forecast(
        form=law.form,
        name=config.name,
        model=config.model.name,
        counts=COUNTS[law.counts],
        parameters=N,
        tokens=D,
        unique_tokens=unique_tokens,
        flops=C,
        loss=loss,
        accuracy=accuracy,
        beyond=beyond(law, N, D, C),
        spread=law.spread,
        left_out_error=law.largest.error if law.largest else None,
        doubts=doubts(law, N, C, unique_tokens) + ([EXPERTS] if config.model.moe else []),
    )


def values(law: Law, at: Point) -> tuple[Estimate, Estimate | None]:
    """Loss and, of a task's law, accuracy."""
    form = form_of(law.form)
    best, drawn = form.value(law.best, at), form.value(law.drawn, at)
    loss = estimate(best, drawn)
    if law.form != "task":
        return loss, None
    return loss, estimate(sigmoid(law.best[5:], best), sigmoid(law.drawn[:, 5:], drawn))


def estimate(value: Array | float, drawn: Array) -> Estimate:
    low, high = np.percentile(drawn[np.isfinite(drawn)], INTERVAL)
    return Estimate(value=float(value), low=float(low), high=float(high))


def beyond(law: Law, N: float, D: float, C: float) -> dict[str, float]:
    """How many times the largest fitted run's FLOPs, parameters and tokens."""
    rows = law.fitted_rows
    ratios = {"FLOPs": C / max(row.flops for row in rows)}
    sizes = [row.parameters for row in rows if row.parameters is not None]
    tokens = [row.tokens for row in rows if row.tokens is not None]
    if sizes:
        ratios["parameters"] = N / max(sizes)
    if tokens:
        ratios["tokens"] = D / max(tokens)
    return ratios


def doubts(law: Law, N: float, C: float, unique_tokens: float | None) -> list[str]:
    lines = [f"not identified: {interval}" for interval in law.not_identified.values()]
    if law.form in FRONTIERS:
        best = float(form_of(law.form).size(law.best, C))  # type: ignore[misc]  # both have one
        if not 0.5 < N / best < 2:
            lines.append(
                f"{law.form} says the loss at the best size alone, {best:.3g} parameters for {C:.3g} FLOPs, and this "
                f"model has {N / best:.2g} times that"
            )
    if law.form == "compute":
        lines.append("compute knows no size: the loss is that of runs shaped as the ladder's, at the same FLOPs")
    if law.form == "data" and unique_tokens is None:
        lines.append("unique tokens are taken to be as many as tokens; give --unique-tokens where data is repeated")
    return lines + law.warnings


def beyond_words(ratios: dict[str, float]) -> str:
    """`120 times the largest run's FLOPs`, or that it lies within the data."""
    parts = [f"{times:,.3g} times the largest run's {what}" for what, times in ratios.items() if times > FAR]
    return "; ".join(parts) or "within the sizes and tokens that were fitted"
