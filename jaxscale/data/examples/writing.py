"""Writing one split of examples: token shards, and beside each its roles, lengths and records."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale.data.examples.masks import Marked
from jaxscale.data.index import LENGTH_BYTES, ExampleSplit, File, Shard, Split
from jaxscale.data.shards import HashedFile

LENGTHS = np.dtype(f"<i{LENGTH_BYTES}")
PARTS = ("bin", "roles", "lengths", "records")
GATHERED = 2**20  # tokens that are held before they are written


class ExampleWriter:
    """Appends examples to ``<split>-00000.bin``, ... of at most ``shard_tokens`` each.

    A document may go on in the next shard. ``records`` keeps the other columns of each example.
    """

    def __init__(self, directory: Path, split: str, *, dtype: str, shard_tokens: int, records: bool):
        self._directory, self._split, self._shard_tokens = directory, split, shard_tokens
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._parts = PARTS if records else PARTS[:3]
        self._files: dict[str, HashedFile] = {}
        self._shards: list[Shard] = []
        self._beside: dict[str, list[File]] = {part: [] for part in PARTS[1:]}
        self._held: list[tuple[Marked, bytes]] = []
        self._held_tokens = self._tokens = self._documents = 0
        self._examples = self._trained = self._longest = 0

    def add(self, documents: Sequence[Marked], record: dict[str, Any]) -> None:
        """Write the documents of one example. Raises TypeError or ValueError for a record that JSON cannot hold."""
        line = json.dumps(record).encode() + b"\n" if "records" in self._parts else b""
        size = sum(len(document.ids) for document in documents)
        self._held += [(document, line) for document in documents]
        self._held_tokens += size
        self._examples += 1
        self._longest = max(self._longest, size)
        self._trained += sum(int(np.count_nonzero(document.roles)) for document in documents)
        if self._held_tokens >= GATHERED:
            self._write()

    def finish(self) -> tuple[Split, ExampleSplit]:
        """Close the last shard; what was written, as the index describes it."""
        self._write()
        self._end_shard()
        shards = self._shards
        split = Split(
            tokens=sum(one.tokens for one in shards), documents=sum(one.documents for one in shards), shards=shards
        )
        beside = ExampleSplit(
            examples=self._examples,
            trained=self._trained,
            longest=self._longest,
            **self._beside,
        )
        return split, beside

    def close(self) -> None:
        """Let go of an unfinished shard's files."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def _write(self) -> None:
        if not self._held:
            return
        ids = np.concatenate([document.ids for document, _ in self._held])
        roles = np.concatenate([document.roles for document, _ in self._held])
        lengths = np.array([len(document.ids) for document, _ in self._held], LENGTHS)
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        lines = [line for _, line in self._held]
        self._held, self._held_tokens = [], 0
        done = documents = 0
        while done < len(ids):
            if not self._files:
                self._begin_shard()
            count = min(self._shard_tokens - self._tokens, len(ids) - done)
            until = int(np.searchsorted(starts, done + count))
            self._files["bin"].write(ids[done : done + count].astype(self._dtype).tobytes())
            self._files["roles"].write(roles[done : done + count].tobytes())
            self._files["lengths"].write(lengths[documents:until].tobytes())
            if "records" in self._files:
                self._files["records"].write(b"".join(lines[documents:until]))
            self._tokens += count
            self._documents += until - documents
            done, documents = done + count, until
            if self._tokens == self._shard_tokens:
                self._end_shard()

    def _begin_shard(self) -> None:
        stem = f"{self._split}-{len(self._shards):05d}"
        self._files = {part: HashedFile(self._directory / f"{stem}.{part}") for part in self._parts}
        self._tokens = self._documents = 0

    def _end_shard(self) -> None:
        if not self._files:
            return
        done = {part: file.finish() for part, file in self._files.items()}
        self._files = {}
        tokens = done.pop("bin")
        self._shards.append(Shard(tokens=self._tokens, documents=self._documents, **tokens.model_dump()))
        for part, file in done.items():
            self._beside[part].append(file)
