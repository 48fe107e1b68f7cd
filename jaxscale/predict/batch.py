"""Bytes of a batch's columns. No jax."""

from collections.abc import Mapping

from jaxscale import config as cfg
from jaxscale.data.columns import DOCUMENTS, NEXT, PAIRS, SAMPLES
from jaxscale.predict.costs import rows_and_tokens

READ = {"dpo": PAIRS, "reward": PAIRS, "grpo": SAMPLES}  # by kinds of objectives; others: the next token's


def batch_bytes(config: cfg.Config, sizes: Mapping[str, int], *, documents: bool) -> int:
    """Of a device's part of a step's batch, four bytes an element: see `data.columns`."""
    rows, length = rows_and_tokens(config, sizes, config.data.batch_size)
    return rows * length * 4 * columns(config.objective, documents=documents)


def columns(objective: cfg.Objective, *, documents: bool) -> int:
    """How many columns the objective reads, with those of a reference."""
    read = READ.get(objective.kind, NEXT)
    return len({*read, *(DOCUMENTS if documents else ())}) + objective.reads_reference
