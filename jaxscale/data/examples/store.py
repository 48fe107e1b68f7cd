"""Examples on disk: the tokens of a dataset with their roles, and where each document lies. Knows nothing of text."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from jaxscale.data.chat import Chat, read_kept
from jaxscale.data.examples.records import Kind
from jaxscale.data.examples.writing import LENGTHS
from jaxscale.data.index import PREPARE_AGAIN, Examples, Index, SplitName, read_index
from jaxscale.data.store import (
    TokenStore,
    Verify,
    check_content,
    check_shard_sizes,
    content_hash,
    files_beside,
    map_file,
    open_tokens,
)


@dataclass(frozen=True, eq=False)
class ExampleStore:
    """The documents of one split, one after the other.

    Attributes:
        tokens, roles: of the same length; see `masks` for the roles.
        lengths: int64, tokens of each document.
        content: a hash of tokens, roles and lengths.
    """

    kind: Kind
    name: str
    tokens: TokenStore
    roles: TokenStore
    lengths: np.ndarray
    content: str
    stop_ids: tuple[int, ...] = ()

    @cached_property
    def starts(self) -> np.ndarray:
        """int64, where each document begins."""
        return np.cumsum(self.lengths, dtype=np.int64) - self.lengths

    @property
    def per_example(self) -> int:
        """Documents of one example."""
        return 2 if self.kind == "pairs" else 1

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.lengths) // self.per_example

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64, tokens of each example."""
        sizes: np.ndarray = self.lengths.reshape(-1, self.per_example).sum(1)
        return sizes

    @property
    def shortest(self) -> int:
        return int(self.sizes.min())

    def document(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32[n] and roles int32[n] of a document."""
        start, length = int(self.starts[number]), int(self.lengths[number])
        return self.tokens.read(start, length), self.roles.read(start, length)


def open_example_store(path: str | Path, split: SplitName = "train", *, verify: Verify = "once") -> ExampleStore:
    """One split of a dataset of examples, checked as `open_tokens` does.

    Raises:
        ValueError: no such dataset, one of text, or files that are missing or changed.
    """
    directory = Path(path)
    index = read_index(directory)
    examples = examples_of(index, directory)
    tokens = open_tokens(directory, split, verify=verify)
    beside = files_beside(index, split)
    check_shard_sizes(directory, beside)
    if verify != "size":
        check_content(directory, beside, trust_stamp=verify == "once")
    files = examples.splits[split]
    roles = tuple(map_file(directory / one.file, np.dtype(np.uint8), one.bytes) for one in files.roles)
    parts = [map_file(directory / one.file, LENGTHS, one.bytes // LENGTHS.itemsize) for one in files.lengths]
    lengths = np.concatenate(parts).astype(np.int64)
    if lengths.min(initial=1) < 1 or int(lengths.sum()) != tokens.num_tokens:
        raise ValueError(
            f"the lengths of {tokens.name} do not add up to its {tokens.num_tokens} tokens; {PREPARE_AGAIN}"
        )
    return ExampleStore(
        kind=examples.kind,
        name=tokens.name,
        tokens=tokens,
        roles=TokenStore(tokens.name, roles, vocab_size=3, separator_id=None),
        lengths=lengths,
        content=content_hash([str(tokens.content), *(one.sha256 for one in (*files.roles, *files.lengths))]),
        stop_ids=tuple(examples.stop_ids),
    )


def examples_of(index: Index, directory: Path) -> Examples:
    """That a dataset is one of examples. Raises ValueError for one of text."""
    if index.examples is None:
        raise ValueError(
            f"{directory} holds text, not conversations, pairs or prompts; make such a dataset with `jaxscale data "
            "prepare --chat`, `--pairs` or `--prompts`"
        )
    return index.examples


def template_of(path: str | Path) -> Chat | None:
    """The template that a dataset was prepared with; None of a dataset of text.

    Raises ValueError for a dataset that cannot be read, or whose template has changed.
    """
    directory = Path(path)
    index = read_index(directory)
    if index.examples is None:
        return None
    check_shard_sizes(directory, [index.examples.chat])
    check_content(directory, [index.examples.chat], trust_stamp=False)
    return read_kept(directory, index.tokenizer.fingerprint)
