"""From numbered rows to batches on the mesh: this process reads its rows only, ahead of the step that needs them."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax

from jaxscale import config as cfg
from jaxscale.data.opening import open_rows
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.data.tokens import RowSource, batches, open_tokenizer
from jaxscale.objectives import make_objective
from jaxscale.objectives.objective import Batch
from jaxscale.rollouts.prompts import open_prompt_rows
from jaxscale.training.places import Places


def open_source(config: cfg.Config, split: str, *, say: Callable[[str], None] = lambda line: None) -> RowSource | None:
    """Rows of `train` or `validation`; None where the data has no validation split, or one that is not one window.

    Args:
        say: told, in one line, why there is no validation.

    Raises:
        ValueError: data that is missing or damaged, or that lacks a column that the objective reads.
    """
    if config.objective.kind in cfg.OF_ROLLOUTS:
        return open_prompt_rows(config, split, columns=make_objective(config).reads(documents=False), say=say)
    rows = open_rows(config.data, split, vocab_size=config.model.vocab_size, seed=config.seed, say=say)
    if rows is not None:
        require_columns(config, rows)
    return rows


def require_columns(config: cfg.Config, source: RowSource) -> None:
    """ValueError where the data lacks a column that the objective reads."""
    needed = make_objective(config).reads(documents=has_documents(config, source))
    if "ends" in source.columns and "ends" not in needed:  # weights of -1 would be maximised
        raise ValueError(
            f"objective.kind={config.objective.kind} reads no pairs, which {' and '.join(config.data.places)} holds; "
            "set objective.kind=dpo or reward, or prepare conversations: `jaxscale data prepare --chat`"
        )
    if config.objective.kind == "sft" and not (hasattr(source, "reference") or config.data.mixture):
        raise ValueError(
            f"objective.kind=sft trains the answers of conversations, and data.kind={config.data.kind} here is text; "
            "give a dataset of `jaxscale data prepare --chat`, or objective.kind=next_token"
        )
    if hasattr(source, "reference"):  # the column comes once the model is there: `training.log_probs`
        needed = tuple(name for name in needed if name != "reference")
    if "ends" in needed and "ends" not in source.columns:
        raise ValueError(
            f"objective.kind={config.objective.kind} learns from pairs, and data.kind={config.data.kind} "
            f"{'at ' + ' and '.join(config.data.places) + ' ' if config.data.places else ''}holds none; give data.path "
            "with a dataset of `jaxscale data prepare --pairs`"
        )
    if missing := [name for name in needed if name not in source.columns]:
        raise ValueError(
            f"objective.kind={config.objective.kind} reads the column {missing[0]}, and data.kind={config.data.kind} "
            f"gives only {', '.join(source.columns)}; choose another objective or other data"
        )


def open_run_tokenizer(config: cfg.Config) -> Tokenizer | None:
    """The tokenizer that made the run's tokens; None for synthetic data and llm.c files, which carry none."""
    return open_tokenizer(config.data.places[0]) if config.data.kind == "tokens" else None


def has_documents(config: cfg.Config, source: RowSource) -> bool:
    """Are there several documents a row, to be masked from each other?"""
    return config.data.mask_documents and source.separator_id is not None


class Batches(Protocol):
    """Batches of consecutive steps, as the trainer takes them.

    Attributes:
        wait_seconds: what the last one cost the host.
    """

    wait_seconds: float

    @property
    def ahead(self) -> bool:
        """Can the next one be made while the step before it runs?"""
        ...

    def take(self, state: Any) -> Batch:
        """The next batch, for a step on this state."""
        ...

    def close(self) -> None: ...


class Feed:
    """Batches of consecutive steps, on the mesh. `wait_seconds` is what the last `next` waited for data."""

    ahead = True

    def __init__(self, source: RowSource, config: cfg.Config, sharding: jax.sharding.Sharding, *, start_step: int = 0,
                 microbatches: int = 1, stop_step: int | None = None, shuffle: bool = True,
                 offset: int = 0):  # fmt: skip
        data = config.data
        self.places = Places(config, sharding, microbatches=microbatches)
        # one document a row: no mask to build, and plain causal attention is all that is compiled
        self.names = make_objective(config).reads(documents=has_documents(config, source))
        self.wait_seconds = 0.0
        self.batches = batches(
            source,
            seed=config.seed,
            batch_size=data.batch_size,
            start_step=start_step,
            stop_step=stop_step,
            offset=offset,
            rows=self.places.rows,
            shuffle=shuffle,
            prefetch=data.prefetch,
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        loaded = next(self.batches)
        self.wait_seconds = time.perf_counter() - start
        return {name: self.places.own(array) for name, array in loaded.items() if name in self.names}

    def take(self, state: Any) -> Batch:
        """The next batch; which one it is does not depend on the state, as it does in `rollouts.feed`."""
        return next(self)

    def close(self) -> None:
        self.batches.close()
