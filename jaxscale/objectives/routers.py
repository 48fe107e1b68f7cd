"""What the routers of experts add to an objective, and what is logged of them. L layers with experts, E experts."""

import jax
import jax.numpy as jnp

from jaxscale import config as cfg
from jaxscale.objectives.objective import Sums
from jaxscale.parallel.sharding import shard_count

Metrics = dict[str, jax.Array]
# Means over tokens of what layers with experts sum up: of each layer and expert [L, E], or of each layer [L]
LOAD, PROBABILITY, COUNTS = "router_load", "router_probability", "router_counts"
ROUTERS = {
    LOAD: COUNTS,
    PROBABILITY: "router_probabilities",
    "router_z": "router_z",
    "router_entropy": "router_entropy",
}

EVEN = 1e-6  # of the mean: a smaller difference is rounding, whose sign depends on the mesh


def with_routers(sums: Sums, loss: cfg.Loss, divisor: jax.Array | float) -> Sums:
    """The sums with the routers' losses in the objective, where the model's layers have routers."""
    return sums | {"objective": sums["objective"] + of_routers(sums, loss, divisor)} if COUNTS in sums else sums


def router_means(config: cfg.Config) -> dict[str, str]:
    """Metric -> sum, as `Objective.means` has them."""
    return ROUTERS if config.model.moe else {}


def per_token(metrics: Metrics, top_k: int) -> Metrics:
    """The routers' metrics as means over tokens, where an objective divides by something else."""
    tokens = metrics[LOAD][0].sum() / top_k
    return metrics | {name: metrics[name] / jnp.maximum(tokens, 1e-30) for name in ROUTERS}


def of_routers(sums: Sums, loss: cfg.Loss, divisor: jax.Array | float) -> jax.Array:
    """The weighted losses of the routers.

    Args:
        divisor: what all tokens of the batch count; the balance is a product of two means over them.
    """
    total = loss.router_z * sums["router_z"].mean() / divisor
    if loss.balance:
        load, probability = (sums[ROUTERS[name]] / divisor for name in (LOAD, PROBABILITY))
        total = total + loss.balance * balance(load, probability)
    return total


def balance(load: jax.Array, probability: jax.Array) -> jax.Array:
    """E/k sum over experts of load times mean probability, the mean over layers: 1 where both are even.

    Switch Transformers (arXiv:2101.03961, section 2.2), over all tokens of the batch. The load has no gradient.

    Args:
        load: [L, E] the share of tokens that choose each expert; it sums to k.
    """
    load = jax.lax.stop_gradient(load)
    choices = jnp.maximum(load.sum(-1), 1e-30)
    mean: jax.Array = (load.shape[-1] / choices * (load * probability).sum(-1)).mean()
    return mean


def logged(metrics: Metrics) -> Metrics:
    """The metrics with what layers sum up as figures of a step.

    `expert_load` and `device_load` are the largest load over the mean, of experts and of the devices that hold them,
    in the worst layer. `empty_experts`: of all layers' experts, those that no token chose.
    """
    if LOAD not in metrics:
        return metrics
    load, probability = metrics[LOAD], metrics[PROBABILITY]
    layers = load.shape[0]
    of_devices = load.reshape(layers, shard_count("experts"), -1).sum(-1)
    figures = {
        "balance": balance(load, probability),
        "router_z": metrics["router_z"].mean(),
        "router_entropy": metrics["router_entropy"].mean(),
        "expert_load": unevenness(load),
        "device_load": unevenness(of_devices),
        "empty_experts": (load == 0).sum().astype(jnp.float32),
    }
    return {name: x for name, x in metrics.items() if name not in ROUTERS} | figures


def unevenness(load: jax.Array) -> jax.Array:
    """The largest over the mean, of the worst row."""
    worst: jax.Array = (load.max(-1) / jnp.maximum(load.mean(-1), 1e-30)).max()
    return worst


def moved(bias: jax.Array, load: jax.Array | None, rate: float) -> jax.Array:
    """Biases [L, E] of the choice after a step: up where the load is below the mean, down where above.

    Balance without a loss (arXiv:2408.15664): the bias moves by `rate`, whatever the difference is.
    """
    assert load is not None  # a model with such biases sums up loads
    load = jax.reshard(load, jax.typeof(bias).sharding.spec)
    missing = load.mean(-1, keepdims=True) - load
    return bias + rate * jnp.where(jnp.abs(missing) > EVEN * load.mean(-1, keepdims=True), jnp.sign(missing), 0)
