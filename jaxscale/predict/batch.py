"""Bytes of a batch's columns. No jax."""

from collections.abc import Mapping

from jaxscale import config as cfg
from jaxscale.predict.costs import rows_and_tokens

PLAIN, MASKED, OF_PAIRS, SAMPLED = 3, 5, 6, 5  # columns of text, of several documents a row, of pairs, of samples


def batch_bytes(config: cfg.Config, sizes: Mapping[str, int], *, documents: bool) -> int:
    """Of a device's part of a step's batch, four bytes an element: see `data.columns`."""
    rows, length = rows_and_tokens(config, sizes, config.data.batch_size)
    return rows * length * 4 * columns(config.objective, documents=documents)


def columns(own: cfg.Objective, *, documents: bool) -> int:
    """How many columns the objective reads, with those of a reference."""
    kinds = {"dpo": OF_PAIRS, "reward": OF_PAIRS, "grpo": SAMPLED + (MASKED - PLAIN) * documents}
    return kinds.get(own.kind, MASKED if documents else PLAIN) + own.reads_reference
