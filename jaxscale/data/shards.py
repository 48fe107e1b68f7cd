"""Writing one split's token shards. Knows nothing of text."""

import hashlib
import os
from pathlib import Path
from typing import IO

import numpy as np

from jaxscale.data.index import Shard, Split


class ShardWriter:
    """Appends tokens to ``<split>-00000.bin``, ``<split>-00001.bin``, ... of at most ``shard_tokens`` each."""

    def __init__(self, directory: Path, split: str, *, dtype: str, separator_id: int, shard_tokens: int):
        self._directory = directory
        self._split = split
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._separator_id = separator_id
        self._shard_tokens = shard_tokens
        self._shards: list[Shard] = []
        self._file: IO[bytes] | None = None
        self._name = ""
        self._tokens = self._documents = 0
        self._digest = hashlib.sha256()

    def append(self, tokens: np.ndarray) -> None:
        """Write ``tokens[n]``; a document may go on in the next shard."""
        while len(tokens):
            file = self._file or self._begin_shard()
            part = tokens[: self._shard_tokens - self._tokens]
            tokens = tokens[len(part) :]
            raw = part.astype(self._dtype).tobytes()
            file.write(raw)
            self._digest.update(raw)
            self._tokens += len(part)
            self._documents += int(np.count_nonzero(part == self._separator_id))
            if self._tokens == self._shard_tokens:
                self._end_shard()

    def finish(self) -> Split:
        """Close the last shard; what was written, as the index describes it."""
        self._end_shard()
        return Split(
            tokens=sum(shard.tokens for shard in self._shards),
            documents=sum(shard.documents for shard in self._shards),
            shards=self._shards,
        )

    def close(self) -> None:
        """Let go of an unfinished shard's file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin_shard(self) -> IO[bytes]:
        self._name = f"{self._split}-{len(self._shards):05d}.bin"
        self._file = open(self._directory / self._name, "wb")  # noqa: SIM115 (closed by _end_shard or close)
        self._tokens = self._documents = 0
        self._digest = hashlib.sha256()
        return self._file

    def _end_shard(self) -> None:
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        self._shards.append(
            Shard(
                file=self._name,
                tokens=self._tokens,
                documents=self._documents,
                bytes=self._tokens * self._dtype.itemsize,
                sha256=self._digest.hexdigest(),
            )
        )
