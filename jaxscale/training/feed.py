"""From numbered rows to batches on the mesh: this process reads its rows only, ahead of the step that needs them."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

from jaxscale import config as cfg
from jaxscale.blueprint.sequence import in_zigzag, order
from jaxscale.data.opening import open_rows
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.data.tokens import RowSource, batches, open_tokenizer
from jaxscale.objectives import make_objective
from jaxscale.objectives.objective import Batch
from jaxscale.rollouts.prompts import open_prompt_rows


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


def rows_needed(
    sharding: jax.sharding.Sharding, shape: tuple[int, int, int], devices: set[jax.Device] | None = None
) -> np.ndarray:
    """Rows of the global batch that these devices hold, sorted: [microbatches, B, T] laid out by `sharding`.

    Row r of the global batch is row r % B of microbatch r // B.

    Args:
        devices: None: this process's.
    """
    everywhere = sharding.devices_indices_map(shape)
    devices = set(sharding.addressable_devices) if devices is None else devices
    rows = np.arange(shape[0] * shape[1]).reshape(shape[:2])
    return np.unique(
        np.concatenate([rows[index[:2]].ravel() for device, index in everywhere.items() if device in devices])
    )


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


def place_rows(
    local: np.ndarray, rows: np.ndarray, shape: tuple[int, int, int], sharding: jax.sharding.Sharding
) -> jax.Array:
    """This process's rows [R, T] of the global batch, whose numbers are `rows`, as its part of the global array."""

    def block(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None
        wanted = np.arange(shape[0] * shape[1]).reshape(shape[:2])[index[:2]]
        return local[np.searchsorted(rows, wanted)][..., index[2]]

    return jax.make_array_from_callback(shape, sharding, block, dtype=local.dtype)


class Feed:
    """Batches of consecutive steps, on the mesh. `wait_seconds` is what the last `next` waited for data."""

    ahead = True

    def __init__(self, source: RowSource, config: cfg.Config, sharding: jax.sharding.Sharding, *, start_step: int = 0,
                 microbatches: int = 1, stop_step: int | None = None, shuffle: bool = True,
                 offset: int = 0):  # fmt: skip
        data = config.data
        self.sharding = sharding
        self.shape = (microbatches, data.batch_size // microbatches, data.seq_len)
        self.rows = rows_needed(sharding, self.shape)
        shards = data.seq_len // sharding.shard_shape(self.shape)[2]
        self.order = order(data.seq_len, shards, zigzag=in_zigzag(config)) if shards > 1 else None
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
            rows=self.rows,
            shuffle=shuffle,
            prefetch=data.prefetch,
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        loaded = next(self.batches)
        self.wait_seconds = time.perf_counter() - start
        return {name: self.place(array) for name, array in loaded.items() if name in self.names}

    def place(self, local: np.ndarray) -> jax.Array:
        """This process's rows [R, T], in reading order, as its part of the global array."""
        if self.order is not None:
            local = local[:, self.order]
        return place_rows(local, self.rows, self.shape, self.sharding)

    def take(self, state: Any) -> Batch:
        """The next batch; which one it is does not depend on the state, as it does in `rollouts.feed`."""
        return next(self)

    def close(self) -> None:
        self.batches.close()
