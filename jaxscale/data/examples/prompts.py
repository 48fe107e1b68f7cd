"""Prompts to sample answers to: their tokens, up to where an answer begins, and the other columns of their records."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale.data.examples.store import ExampleStore, examples_of, open_example_store
from jaxscale.data.index import SplitName, read_index
from jaxscale.data.store import Verify, map_file
from jaxscale.files.reading import parse_json


@dataclass(frozen=True, eq=False)
class Prompts:
    """One split of a dataset of prompts. Made by `open_prompts`."""

    store: ExampleStore
    lines: tuple[np.ndarray, ...]  # the files of records, uint8
    ends: tuple[np.ndarray, ...]  # where each record of a file ends
    before: np.ndarray  # int64, prompts before each file

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return self.store.stop_ids

    @property
    def vocab_size(self) -> int:
        return self.store.tokens.vocab_size

    @property
    def fingerprint(self) -> str | None:
        return self.store.tokens.fingerprint

    @property
    def content(self) -> str:
        return self.store.content

    def __len__(self) -> int:
        return len(self.store.lengths)

    def tokens(self, i: int) -> list[int]:
        """The tokens after which an answer is sampled."""
        self._check(i)
        ids: list[int] = self.store.document(i)[0].tolist()
        return ids

    def record(self, i: int) -> dict[str, Any]:
        """The other columns of the record."""
        self._check(i)
        file = int(np.searchsorted(self.before, i, side="right")) - 1
        ends, line = self.ends[file], i - int(self.before[file])
        start = int(ends[line - 1]) if line else 0
        columns = parse_json(self.lines[file][start : int(ends[line])].tobytes())
        if not isinstance(columns, dict):
            raise ValueError(f"record {i} of {self.store.name} is damaged; prepare the prompts again")
        return columns

    def _check(self, i: int) -> None:
        if not 0 <= i < len(self):
            raise IndexError(f"prompt {i} is not within 0..{len(self)}")


def open_prompts(path: str | Path, split: SplitName = "train", *, verify: Verify = "once") -> Prompts:
    """The prompts of one split of a dataset.

    Raises:
        ValueError: no such dataset, one of another kind, or files that are missing or changed.
    """
    directory = Path(path)
    examples = examples_of(read_index(directory), directory)
    if examples.kind != "prompts":
        raise ValueError(
            f"{directory} holds {examples.kind}, not prompts; make some with `jaxscale data prepare --prompts`"
        )
    store = open_example_store(directory, split, verify=verify)
    files = examples.splits[split].records
    lines = tuple(map_file(directory / one.file, np.dtype(np.uint8), one.bytes) for one in files)
    ends = tuple(np.flatnonzero(one == ord("\n")).astype(np.int64) + 1 for one in lines)
    counts = [len(one) for one in ends]
    if sum(counts) != len(store.lengths):
        raise ValueError(f"the records of {store.name} are not one for each prompt; prepare the prompts again")
    return Prompts(store, lines, ends, np.cumsum([0, *counts[:-1]]))
