"""Which steps are bad, decided inside the jitted step: a loss that is no number, or one far above its running mean.

The mean and variance are exponential moving averages over about 50 steps (z-scores against recent losses, as in OLMo
2's skipping of steps, arXiv:2501.00656, section 3.3); they are kept beside the optimizer's state, so that a run that
resumes judges as if it had never stopped.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxscale import config as cfg

WINDOW = 50  # steps that the averages are over, and that they need before they judge
LEAST_DEVIATION = 1e-4  # of the mean: below it float32 losses differ by rounding
Metrics = dict[str, jax.Array]


class Spikes(NamedTuple):
    """float32 scalars: steps that counted so far, and the mean and variance of their losses."""

    steps: jax.Array
    mean: jax.Array
    variance: jax.Array


def no_spikes() -> Spikes:
    return Spikes(jnp.float32(0), jnp.float32(0), jnp.float32(0))


def with_spikes(config: cfg.Config, opt_state: Any) -> Any:
    """The optimizer's state, and the losses' where spikes are looked for."""
    return (opt_state, no_spikes()) if config.guard.spike else opt_state


def without_spikes(config: cfg.Config, opt_state: Any) -> tuple[Any, Spikes | None]:
    return opt_state if config.guard.spike else (opt_state, None)


def names_spikes(names: Iterable[str]) -> bool:
    """Whether a state whose arrays have these names (`identity.shapes`) holds the losses' part."""
    return {f"opt_state.1.{field}" for field in Spikes._fields} <= set(names)


def judge(config: cfg.Config, metrics: Metrics, spikes: Spikes | None) -> tuple[jax.Array | None, Any, Metrics]:
    """Whether the update may be applied (None: always), the losses' new state, and metrics with `spike` (0 or 1)."""
    good = None
    if config.on_nonfinite == "skip":
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    if spikes is None:
        return good, None, metrics
    loss = metrics["loss"]
    deviation = jnp.maximum(jnp.sqrt(spikes.variance), LEAST_DEVIATION * jnp.abs(spikes.mean))
    spike = (spikes.steps >= WINDOW) & (loss > spikes.mean + (config.guard.spike or 0) * deviation)
    usual = jnp.isfinite(loss) & ~spike
    weight = jnp.maximum(1 / (spikes.steps + 1), 1 / WINDOW)
    above = loss - spikes.mean  # the difference of squares would be lost in float32 (Welford, Technometrics 4, 1962)
    variance = (1 - weight) * (spikes.variance + weight * above**2)
    new = Spikes(spikes.steps + 1, spikes.mean + weight * above, variance)
    new = jax.tree.map(lambda a, b: jnp.where(usual, a, b), new, spikes)
    if config.guard.on_spike == "skip":
        good = ~spike if good is None else good & ~spike
    return good, new, metrics | {"spike": spike.astype(jnp.float32)}
