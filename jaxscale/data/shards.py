"""Writing one split's token shards. Knows nothing of text."""

import hashlib
import os
from pathlib import Path
from typing import IO

import numpy as np

from jaxscale.data.index import File, Shard, Split


class HashedFile:
    """A new file that knows its size and sha256."""

    def __init__(self, path: Path):
        self.name, self.bytes, self._digest = path.name, 0, hashlib.sha256()
        self._file: IO[bytes] = open(path, "wb")  # noqa: SIM115 (closed by finish or close)

    def write(self, raw: bytes) -> None:
        self._file.write(raw)
        self._digest.update(raw)
        self.bytes += len(raw)

    def finish(self) -> File:
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        return File(file=self.name, bytes=self.bytes, sha256=self._digest.hexdigest())

    def close(self) -> None:
        self._file.close()


class ShardWriter:
    """Appends tokens to ``<split>-00000.bin``, ``<split>-00001.bin``, ... of at most ``shard_tokens`` each."""

    def __init__(self, directory: Path, split: str, *, dtype: str, separator_id: int, shard_tokens: int):
        self._directory = directory
        self._split = split
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._separator_id = separator_id
        self._shard_tokens = shard_tokens
        self._shards: list[Shard] = []
        self._file: HashedFile | None = None
        self._tokens = self._documents = 0

    def append(self, tokens: np.ndarray) -> None:
        """Write ``tokens[n]``; a document may go on in the next shard."""
        while len(tokens):
            file = self._file or self._begin_shard()
            part = tokens[: self._shard_tokens - self._tokens]
            tokens = tokens[len(part) :]
            file.write(part.astype(self._dtype).tobytes())
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

    def _begin_shard(self) -> HashedFile:
        self._file = HashedFile(self._directory / f"{self._split}-{len(self._shards):05d}.bin")
        self._tokens = self._documents = 0
        return self._file

    def _end_shard(self) -> None:
        if self._file is not None:
            written = self._file.finish().model_dump()
            self._file = None
            self._shards.append(Shard(tokens=self._tokens, documents=self._documents, **written))
