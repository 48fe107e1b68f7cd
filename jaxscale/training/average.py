"""An exponential moving average of the parameters, in float32, that never holds the random start.

    sum_t = decay * sum_{t-1} + (1 - decay) * params_t,  sum_0 = 0;  average_t = sum_t + decay^t * params_t

The sum starts at zero and holds the weight 1 - decay^t after t steps; the newest parameters get the rest. Dividing by
the weight instead (Adam's correction, arXiv:1412.6980, section 3) would give a run that is shorter than the average
mostly its own first steps. Each step counts once, also one whose update was skipped, so that the step is the only
count. Float32, as 0.999 is 1 in bfloat16.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def empty_sum(params: PyTree) -> PyTree:
    """The sum before the first step: float32 zeros in the parameters' layout."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)


def add_to_sum(total: PyTree, params: PyTree, decay: float) -> PyTree:
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p.astype(jnp.float32) - e), total, params)


def missing(decay: float, step: Any) -> jax.Array:
    """decay^step: the weight that the sum lacks after `step` steps."""
    return jnp.exp(jnp.asarray(step, jnp.float32) * math.log(decay))


def average(total: PyTree, params: PyTree, decay: float, step: Any) -> PyTree:
    """The average after `step` steps, float32; the parameters themselves before the first one."""
    rest = missing(decay, step)
    return jax.tree.map(lambda e, p: e + rest * p.astype(jnp.float32), total, params)
