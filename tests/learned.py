"""Batches of pairs and of samples, and every learned objective on them: what several tests share."""

import functools

import jax
import numpy as np
from support import Setup, make_config

from jaxscale.objectives import make_objective
from jaxscale.training.step import gradients

B, T = 16, 32
SAMPLED = {"max_new": 16, "reward": "a:b", "group": 4, "temperature": 0.7, "updates": 2, "clip": (0.2, 0.28)}
KINDS = {
    "sigmoid": {"kind": "dpo", "sft": 0.2, "label_smoothing": 0.1},
    "hinge": {"kind": "dpo", "loss": "hinge", "beta": 0.5},
    "ipo": {"kind": "dpo", "loss": "ipo"},
    "simpo": {"kind": "dpo", "loss": "simpo", "beta": 2.0},
    "orpo": {"kind": "dpo", "loss": "orpo"},
    "reward": {"kind": "reward", "center": 0.01},
    "grpo": {"kind": "grpo", "aggregate": "grpo", "kl": 0.1, **SAMPLED},
    "dapo": {"kind": "grpo", "aggregate": "dapo", **SAMPLED},
    "dr_grpo": {"kind": "grpo", "aggregate": "dr_grpo", **SAMPLED, "updates": 1},
    "gspo": {"kind": "grpo", "level": "sequence", "aggregate": "grpo", "kl": 0.1, **SAMPLED},
}


def pairs(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of pairs of unequal lengths, 1 to 14 tokens after the prompt, one to three pairs a row, and padding."""
    rng = np.random.default_rng(seed)
    columns = {name: np.zeros((B, T), np.int32) for name in ("segments", "positions")}
    columns |= {name: np.zeros((B, T), np.float32) for name in ("weights", "ends")}
    columns |= {name: rng.integers(0, 250, (B, T), np.int32) for name in ("tokens", "targets")}
    columns["reference"] = rng.normal(-5, 1, (B, T)).astype(np.float32)
    for row in range(B):
        lengths = [(1, 14), (14, 1), (6, 7)][row % 3], *([(2, 3)] if row % 2 else [])
        at = 0
        for number, completion in enumerate(n for pair in lengths for n in pair):
            sign, span = 1 - 2 * (number % 2), slice(at, at + completion + 2)  # two tokens of prompt
            columns["segments"][row, span] = number + 1
            columns["positions"][row, span] = np.arange(completion + 2)
            columns["weights"][row, at + 1 : span.stop - 1] = sign
            columns["ends"][row, span.stop - 1] = sign
            at = span.stop
        columns["segments"][row, at:] = number + 2
        columns["positions"][row, at:] = np.arange(T - at)
    return columns


def samples(how: str, seed: int = 0) -> dict[str, np.ndarray]:
    """One sample a row, of 1 to 16 tokens after a prompt of 8, weighted as its aggregation asks."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((B, T), np.float32)
    for row, length in enumerate(rng.integers(2, 17, B)):
        mask[row, 7 : 7 + (1 if row == 3 else length)] = 1
    advantages = np.where(mask > 0, rng.normal(0, 1, (B, 1)), 0)
    weights = mask / mask.sum(1, keepdims=True) if how == "grpo" else mask
    return {
        "tokens": rng.integers(0, 250, (B, T), np.int32),
        "targets": rng.integers(0, 250, (B, T), np.int32),
        "weights": weights.astype(np.float32),
        "advantages": advantages.astype(np.float32),
        "old": rng.normal(-5.5, 0.3, (B, T)).astype(np.float32),
        "reference": rng.normal(-5.5, 0.3, (B, T)).astype(np.float32),
    }


def configured(name: str, mesh: dict | None = None, **sections):
    return make_config(mesh, data={"batch_size": B}, init={"from": "runs/base"}, objective=KINDS[name], **sections)


def batch_of(config) -> dict[str, np.ndarray]:
    every = pairs() if config.objective.kind != "grpo" else samples(config.objective.aggregate)
    return {name: every[name] for name in make_objective(config).columns}


def run(config, params, batch=None):
    """Metrics and gradients of a batch, on the host."""
    setup = Setup(config, batch=batch_of(config) if batch is None else batch)
    with setup.context():
        placed = jax.device_put(params, jax.tree.map(lambda x: x.sharding, setup.program.abstract.params))
        grad = jax.jit(functools.partial(gradients, config, setup.program.merge))
        return jax.device_get(grad(placed, setup.batch, jax.random.key(0))[::-1])
