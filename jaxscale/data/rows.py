"""Rows a model trains on: windows over stored tokens, or synthetic ones. Knows nothing of steps or processes.

A row is a dict of arrays [T], by column: see ``data.columns``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jaxscale.data import columns
from jaxscale.data.store import TokenStore


class RowSource(Protocol):
    """A numbered collection of rows, each a pure function of its number."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What each row holds; see ``data.columns``."""

    @property
    def seq_len(self) -> int: ...

    @property
    def vocab_size(self) -> int:
        """Every token id is below this."""

    @property
    def separator_id(self) -> int | None: ...

    @property
    def fingerprint(self) -> str | None:
        """The tokenizer's, None where there is none."""

    @property
    def content(self) -> str | None:
        """A hash of the tokens, by which a resumed run knows the data again; None where they are made of a seed."""

    def __len__(self) -> int: ...

    def row(self, i: int) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True, eq=False)
class Windows:
    """Row i is tokens ``i*T .. i*T+T+1`` of a store. Made by ``windows``.

    With ``rest`` the last row may be shorter: it is filled up, and what fills it weighs nothing.
    """

    store: TokenStore
    seq_len: int
    model_vocab_size: int | None = None
    mask_documents: bool = True
    rest: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        return columns.TEXT

    @property
    def vocab_size(self) -> int:
        return self.store.vocab_size

    @property
    def separator_id(self) -> int | None:
        return self.store.separator_id

    @property
    def fingerprint(self) -> str | None:
        return self.store.fingerprint

    @property
    def content(self) -> str | None:
        return self.store.content

    def __len__(self) -> int:
        targets = max(0, self.store.num_tokens - 1)
        return -(-targets // self.seq_len) if self.rest else targets // self.seq_len

    def row(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(f"window {i} is not within 0..{len(self)}")
        start = i * self.seq_len
        tokens = self.store.read(start, min(self.seq_len + 1, self.store.num_tokens - start))
        self._check_ids(tokens, i)
        if (targets := len(tokens) - 1) == self.seq_len:
            return make_row(tokens, self.store.separator_id, mask_documents=self.mask_documents)
        filled = np.pad(tokens, (0, self.seq_len - targets), mode="edge")
        row = make_row(filled, self.store.separator_id, mask_documents=self.mask_documents)
        row["weights"][targets:] = 0
        return row

    def _check_ids(self, tokens: np.ndarray, i: int) -> None:
        limit = self.vocab_size if self.model_vocab_size is None else self.model_vocab_size
        highest = int(tokens.view(np.uint32).max())  # an id beyond int32 is negative by now: also too high
        if highest < limit:
            return
        if self.model_vocab_size is None:
            raise ValueError(
                f"token id {highest} at window {i} is beyond the tokenizer's vocab_size {limit}; "
                "the tokens are damaged or were made by another tokenizer: prepare them again"
            )
        raise ValueError(
            f"token id {highest} at window {i} is beyond the model's vocab_size {limit}; "
            f"give the model a vocab_size of {highest + 1} or more, or use tokens made by its own tokenizer"
        )


def windows(
    store: TokenStore,
    seq_len: int,
    *,
    model_vocab_size: int | None = None,
    mask_documents: bool = True,
    rest: bool = False,
) -> Windows:
    """Cut a store into windows of ``seq_len`` inputs, each token a target once: (num_tokens-1) // seq_len rows.

    Args:
        model_vocab_size: checked against the store's at once and against each row when it is read.
        mask_documents: number the documents of a row in ``segments`` and restart ``positions`` in each;
            False makes a row one document.
        rest: keep the tokens after the last whole window, as a row that is filled up.

    Raises:
        ValueError: not one window (with ``rest``: not one target), or a vocabulary larger than the model's.
    """
    require_fitting(store, seq_len, model_vocab_size)
    if rest and store.num_tokens < 2:
        raise ValueError(f"{store.name} has {store.num_tokens} tokens, so none follows another; give more text")
    if not rest and store.num_tokens < seq_len + 1:
        raise ValueError(
            f"{store.name} has {store.num_tokens} tokens, one window needs seq_len + 1 = {seq_len + 1}; "
            + (f"try seq_len {store.num_tokens - 1} or more text" if store.num_tokens > 1 else "prepare more text")
        )
    return Windows(store, seq_len, model_vocab_size, mask_documents, rest)


def require_fitting(store: TokenStore, seq_len: int, model_vocab_size: int | None) -> None:
    """ValueError for rows that cannot be, or a vocabulary larger than the model's."""
    if seq_len < 1:
        raise ValueError(f"seq_len {seq_len} is not positive; try 1024")
    if model_vocab_size is not None and store.vocab_size > model_vocab_size:
        raise ValueError(
            f"the tokens of {store.name} have vocab_size {store.vocab_size}, beyond the model's vocab_size "
            f"{model_vocab_size}; give the model {store.vocab_size} or more"
        )


@dataclass(frozen=True)
class Synthetic:
    """Uniform random tokens without documents: row i is a pure function of (seed, i), on every machine."""

    vocab_size: int
    seq_len: int
    seed: int = 0
    num_rows: int = 2**40
    separator_id: None = None
    fingerprint: None = None
    content: None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return columns.TEXT

    def __len__(self) -> int:
        return self.num_rows

    def row(self, i: int) -> dict[str, np.ndarray]:
        # The bit generator alone: unlike Generator's methods, its stream never changes between numpy versions.
        bits = np.random.Philox(key=np.array([self.seed % 2**64, i], np.uint64)).random_raw(self.seq_len + 1)
        return make_row((bits % np.uint64(self.vocab_size)).astype(np.int32), None)


def make_row(tokens: np.ndarray, separator_id: int | None, *, mask_documents: bool = True) -> dict[str, np.ndarray]:
    """The row of ``tokens[T+1]``: T inputs and the same shifted by one as targets.

    A separator begins a document: ``segments`` counts up and ``positions`` restarts at 0 there. The first,
    maybe partial, document is segment 1 from position 0. The separator that ends a document is a target like
    any other, so every weight is 1.
    """
    inputs = tokens[:-1].astype(np.int32)
    arange = np.arange(len(inputs), dtype=np.int32)
    segments, positions = np.ones_like(inputs), arange
    if mask_documents and separator_id is not None:
        begins = inputs == separator_id
        begins[:1] = True
        segments = np.cumsum(begins, dtype=np.int32)
        positions = arange - np.maximum.accumulate(np.where(begins, arange, np.int32(0)))
    return {
        "tokens": inputs,
        "targets": tokens[1:].astype(np.int32),
        "segments": segments,
        "positions": positions,
        "weights": np.ones(len(inputs), np.float32),
    }


def load_rows(source: RowSource, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """Rows ``indices[R]`` of a source, stacked: each array is [R, T]; R may be 0."""
    shape = (len(indices), source.seq_len)
    loaded = {name: np.empty(shape, columns.DTYPES[name]) for name in source.columns}
    for r, i in enumerate(indices):
        row = source.row(int(i))
        for name, values in loaded.items():
            values[r] = row[name]
    return loaded
