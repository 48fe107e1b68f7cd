"""From numbered rows to batches on the mesh: this process reads its rows only, ahead of the step that needs them."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from jaxscale import config as cfg
from jaxscale.data.index import read_index
from jaxscale.data.store import TokenStore
from jaxscale.data.tokenizer import Tokenizer
from jaxscale.data.tokens import RowSource, Synthetic, batches, open_llmc, open_tokenizer, open_tokens, windows
from jaxscale.training.loss import Batch


def open_source(config: cfg.Config, split: str, *, say: Callable[[str], None] = lambda line: None) -> RowSource | None:
    """Rows of `train` or `validation`; None where the data has no validation split, or one that is not one window.

    Args:
        say: told, in one line, why there is no validation.
    """
    data, vocab_size = config.data, config.model.vocab_size
    if data.kind == "synthetic":
        seed = config.seed + (split == "validation")
        return Synthetic(vocab_size, data.seq_len, seed=seed)
    store = open_store(data, split)
    if store is None:
        fix = "set data.validation_path" if data.kind == "llmc" else "prepare the data with one, to have a loss of it"
        say(f"no validation loss: there is no validation split; {fix}")
        return None
    if split == "validation" and store.num_tokens < data.seq_len + 1:
        say(
            f"no validation loss: the validation split has {store.num_tokens:,} tokens, and one window needs "
            f"data.seq_len + 1 = {data.seq_len + 1:,}; hold out more when preparing the data, or lower data.seq_len"
        )
        return None
    return windows(store, data.seq_len, model_vocab_size=vocab_size, mask_documents=data.mask_documents)


def open_store(data: cfg.Data, split: str) -> TokenStore | None:
    assert data.path
    if data.kind == "llmc":
        path = data.path if split == "train" else data.validation_path
        return open_llmc(path) if path else None
    if split == "validation" and not read_index(Path(data.path)).splits["validation"].shards:
        return None  # a corpus of one document has no part to hold out
    return open_tokens(data.path, split, verify=data.verify)


def open_run_tokenizer(config: cfg.Config) -> Tokenizer | None:
    """The tokenizer that made the run's tokens; None for synthetic data and llm.c files, which carry none."""
    return open_tokenizer(config.data.path) if config.data.kind == "tokens" and config.data.path else None


def has_documents(config: cfg.Config, source: RowSource) -> bool:
    """Are there several documents a row, to be masked from each other?"""
    return config.data.mask_documents and source.separator_id is not None


def rows_needed(sharding: jax.sharding.Sharding, shape: tuple[int, int, int], devices: set | None = None) -> np.ndarray:
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


class Feed:
    """Batches of consecutive steps, on the mesh. `wait_seconds` is what the last `next` waited for data."""

    def __init__(self, source: RowSource, config: cfg.Config, sharding: jax.sharding.Sharding, *, start_step: int = 0,
                 microbatches: int = 1, stop_step: int | None = None, shuffle: bool = True):  # fmt: skip
        data = config.data
        self.sharding = sharding
        self.shape = (microbatches, data.batch_size // microbatches, data.seq_len)
        self.rows = rows_needed(sharding, self.shape)
        names = {"tokens", "targets", "weights"}
        # one document a row: no mask to build, and plain causal attention is all that is compiled
        self.names = names | {"positions", "segments"} if has_documents(config, source) else names
        self.wait_seconds = 0.0
        self.batches = batches(
            source, seed=config.seed, batch_size=data.batch_size, start_step=start_step, stop_step=stop_step,
            rows=self.rows, shuffle=shuffle, prefetch=data.prefetch,
        )  # fmt: skip

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        loaded = next(self.batches)
        self.wait_seconds = time.perf_counter() - start
        return {name: self.place(array) for name, array in loaded.items() if name in self.names}

    def place(self, local: np.ndarray) -> jax.Array:
        """This process's rows [R, T] as its part of the global array."""

        def block(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            wanted = np.arange(self.shape[0] * self.shape[1]).reshape(self.shape[:2])[index[:2]]
            return local[np.searchsorted(self.rows, wanted)][..., index[2]]

        return jax.make_array_from_callback(self.shape, self.sharding, block, dtype=local.dtype)

    def close(self) -> None:
        self.batches.close()
