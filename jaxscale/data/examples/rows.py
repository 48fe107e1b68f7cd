"""Rows of whole conversations or pairs, packed: what a model trains on. Knows nothing of steps or processes.

A document of n tokens takes n positions. All its tokens are inputs; its last has no target that counts, so that a
reward can be read from the state after it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from jaxscale.data import columns
from jaxscale.data.examples.masks import REJECTED
from jaxscale.data.examples.packing import pack
from jaxscale.data.examples.store import ExampleStore
from jaxscale.data.rows import require_fitting

Say = Callable[[str], None]


class Reference(Protocol):
    """A float32 for each token of a store: its log-probability by another model."""

    def read(self, start: int, count: int) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class ExampleRows:
    """Row i holds whole examples, each document of them a segment. Made by `example_rows`.

    ``examples[begins[i]:begins[i + 1]]`` are those of row i. With ``reference`` there is a column of that name.
    """

    store: ExampleStore
    seq_len: int
    examples: np.ndarray
    begins: np.ndarray
    reference: Reference | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        names = columns.PAIRS if self.store.kind == "pairs" else columns.TEXT
        return names if self.reference is None else (*names, "reference")

    @property
    def vocab_size(self) -> int:
        return self.store.tokens.vocab_size

    @property
    def separator_id(self) -> int | None:
        return self.store.tokens.separator_id

    @property
    def fingerprint(self) -> str | None:
        return self.store.tokens.fingerprint

    @property
    def content(self) -> str:
        return self.store.content

    @property
    def num_tokens(self) -> int:
        """Of the store, those of examples that no row holds among them."""
        return self.store.tokens.num_tokens

    def __len__(self) -> int:
        return len(self.begins) - 1

    def with_reference(self, reference: Reference) -> "ExampleRows":
        """The same rows with the column `reference`."""
        return replace(self, reference=reference)

    def places(self, i: int) -> list[tuple[int, int, int]]:
        """(first token in the store, offset in the row, length) of each document of row i."""
        return [(int(self.store.starts[number]), at, length) for number, at, length in self.documents_in(i)]

    def documents_in(self, i: int) -> list[tuple[int, int, int]]:
        """(number in the store, offset in the row, length) of each document of row i, in the order of its segments."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} is not within 0..{len(self)}")
        each = self.store.per_example
        examples = self.examples[self.begins[i] : self.begins[i + 1]]
        numbers = (examples[:, None] * each + np.arange(each)).ravel()
        lengths = self.store.lengths[numbers]
        offsets = np.cumsum(lengths) - lengths
        return list(zip(numbers.tolist(), offsets.tolist(), lengths.tolist(), strict=True))

    def row(self, i: int) -> dict[str, np.ndarray]:
        documents = self.documents_in(i)
        filler = self.separator_id or 0  # an id that every model with these tokens has
        row = {name: np.zeros(self.seq_len, columns.DTYPES[name]) for name in self.columns}
        row["tokens"][:] = row["targets"][:] = filler
        row["segments"][:] = len(documents) + 1  # of the padding
        end = sum(length for _, _, length in documents)
        row["positions"][end:] = np.arange(self.seq_len - end)
        for segment, (number, offset, length) in enumerate(documents, start=1):
            tokens, roles = self.store.document(number)
            self._check_ids(tokens, number)
            place, targets = slice(offset, offset + length), slice(offset, offset + length - 1)
            row["tokens"][place] = tokens
            row["targets"][targets] = tokens[1:]
            row["segments"][place] = segment
            row["positions"][place] = np.arange(length)
            row["weights"][targets] = np.where(roles[1:] == REJECTED, -1, roles[1:] != 0)
            if "ends" in row:
                row["ends"][offset + length - 1] = 1 if segment % 2 else -1
            if self.reference is not None:
                start = int(self.store.starts[number])
                row["reference"][targets] = self.reference.read(start + 1, length - 1)
        return row

    def _check_ids(self, tokens: np.ndarray, number: int) -> None:
        highest = int(tokens.view(np.uint32).max())
        if highest >= self.vocab_size:
            raise ValueError(
                f"token id {highest} of document {number} is beyond the tokenizer's vocab_size {self.vocab_size}; "
                "the tokens are damaged or were made by another tokenizer: prepare them again"
            )


def example_rows(
    store: ExampleStore, seq_len: int, *, model_vocab_size: int | None = None, say: Say = lambda line: None
) -> ExampleRows:
    """Pack the conversations or pairs of a store into rows of `seq_len`, each once and whole, at most MOST_PAIRS a row.

    Args:
        model_vocab_size: which the tokenizer's must not exceed.
        say: told, in one line, how many examples are longer than a row, and so left out.

    Raises:
        ValueError: prompts, a vocabulary larger than the model's, or no example that fits a row.
    """
    if store.kind == "prompts":
        raise ValueError(f"{store.name} holds prompts, which have no answers to train on; give conversations or pairs")
    require_fitting(store.tokens, seq_len, model_vocab_size)
    sizes = store.sizes
    kept = np.flatnonzero(sizes <= seq_len)
    if not len(kept):
        raise ValueError(
            f"none of the {len(sizes):,} {store.kind} of {store.name} fits a row of data.seq_len={seq_len}; the "
            f"shortest needs {store.shortest:,}"
        )
    if left := len(sizes) - len(kept):
        say(
            f"{left:,} of {len(sizes):,} {store.kind} of {store.name} are longer than data.seq_len={seq_len} and are "
            f"left out; the longest has {int(sizes.max()):,} tokens"
        )
    items, begins = pack(sizes[kept], seq_len, most=columns.MOST_PAIRS if store.kind == "pairs" else None)
    return ExampleRows(store, seq_len, kept[items], begins)
