"""Which steps are bad, decided inside the jitted step: a loss that is no number, or one far above its running mean.

The mean and variance are exponential moving averages over about 50 steps (z-scores against recent losses, as in OLMo
2's skipping of steps, arXiv:2501.00656, section 3.3). Every run keeps them in its state, so that one that resumes
judges as if it had never stopped, and one that turns the guard on has them already.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxscale import config as cfg

WINDOW = 50  # steps that the averages are over, and that they need before they judge
LEAST_DEVIATION = 1e-4  # of the mean: below it float32 losses differ by rounding
Metrics = dict[str, jax.Array]


class LossStatistics(NamedTuple):
    """float32 scalars: steps that counted so far, and the mean and variance of their losses."""

    steps: jax.Array
    mean: jax.Array
    variance: jax.Array


def no_losses() -> LossStatistics:
    return LossStatistics(jnp.float32(0), jnp.float32(0), jnp.float32(0))


def judge(
    config: cfg.Config, metrics: Metrics, losses: LossStatistics
) -> tuple[jax.Array | None, LossStatistics, Metrics]:
    """Whether the update may be applied (None: always), the new statistics, and metrics.

    With `guard.spike`, metrics have `spike` (0 or 1), and such a loss does not count.
    """
    loss, good = metrics["loss"], None
    counts = jnp.isfinite(loss)
    if config.on_nonfinite == "skip":
        good = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
    if config.guard.spike is not None:
        deviation = jnp.maximum(jnp.sqrt(losses.variance), LEAST_DEVIATION * jnp.abs(losses.mean))
        spike = (losses.steps >= WINDOW) & (loss > losses.mean + config.guard.spike * deviation)
        counts = counts & ~spike
        if config.guard.on_spike == "skip":
            good = ~spike if good is None else good & ~spike
        metrics = metrics | {"spike": spike.astype(jnp.float32)}
    return good, with_loss(losses, loss, counts), metrics


def with_loss(losses: LossStatistics, loss: jax.Array, counts: jax.Array) -> LossStatistics:
    """The statistics with one loss more, where it counts."""
    weight = jnp.maximum(1 / (losses.steps + 1), 1 / WINDOW)
    above = loss - losses.mean  # the difference of squares would be lost in float32 (Welford, Technometrics 4, 1962)
    variance = (1 - weight) * (losses.variance + weight * above**2)
    new = LossStatistics(losses.steps + 1, losses.mean + weight * above, variance)
    chosen: LossStatistics = jax.tree.map(lambda a, b: jnp.where(counts, a, b), new, losses)
    return chosen
