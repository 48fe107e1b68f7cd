"""Tokens on disk as one long array: datasets made by ``prepare`` and llm.c's ``.bin`` files.

Shards are memory-mapped, checked before use, and read across their boundaries. Knows nothing of text or batches.
"""

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from jaxscale.data.index import ITEM_BYTES, PREPARE_AGAIN, Shard, inside, read_index
from jaxscale.data.tokenizer import Tokenizer, load_tokenizer
from jaxscale.reading import parse_json

Verify = Literal["always", "once", "size"]
STAMP_NAME = ".verified.json"
SAMPLED = 2**15  # tokens at each end
_LLMC_HEADER_BYTES = 256 * 4
# magic: (version, dtype, separator, vocabulary size). GPT-2 and Llama-3, from llm.c's dev/data/data_common.py.
_LLMC_FORMATS = {20240520: (1, "uint16", 50256, 50257), 20240801: (7, "uint32", 128000, 128256)}


@dataclass(frozen=True, eq=False)
class TokenStore:
    """``num_tokens`` token ids over one or more shards; a separator begins each document.

    ``name`` is for messages; ``fingerprint`` is the tokenizer's, None where it is not known; ``content`` is a hash by
    which other tokens are told from the same ones at another place.
    """

    name: str
    shards: tuple[np.ndarray, ...]
    vocab_size: int
    separator_id: int
    fingerprint: str | None = None
    content: str | None = None

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(shard) for shard in self.shards], dtype=np.int64)

    @property
    def num_tokens(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens ``start .. start+count``, int32[count], across shard boundaries."""
        if start < 0 or count < 0 or start + count > self.num_tokens:
            raise IndexError(f"tokens {start}..{start + count} are not all within 0..{self.num_tokens}")
        out = np.empty(count, np.int32)
        shard = int(np.searchsorted(self._ends, start, side="right"))
        done = 0
        while done < count:
            offset = start + done - (int(self._ends[shard]) - len(self.shards[shard]))
            part = self.shards[shard][offset : offset + count - done]
            out[done : done + len(part)] = part
            done += len(part)
            shard += 1
        return out


def open_tokens(path: str | Path, split: str = "train", *, verify: Verify = "once") -> TokenStore:
    """One split of a dataset made by ``prepare``.

    Args:
        path: the dataset directory; it may be read-only.
        split: ``train`` or ``validation``.
        verify: ``always`` hashes every shard; ``once`` hashes those whose size or mtime changed since they
            were last verified (remembered in ``.verified.json`` where the directory can be written); ``size``
            looks at sizes only.

    Raises:
        ValueError: no dataset there, or its index or a shard is missing, truncated or changed.
    """
    directory = Path(path)
    if verify not in ("always", "once", "size"):
        raise ValueError(f"verify {verify!r} is not one of always, once, size; try once")
    index = read_index(directory)
    if split not in index.splits:
        raise ValueError(f"{directory} has no split {split!r}, only {', '.join(index.splits)}; name one of these")
    shards = index.splits[split].shards
    if not shards:
        raise ValueError(
            f"{directory} has no {split} tokens; prepare it again with more documents and a higher "
            "`--validation-fraction`, or do without that split"
        )
    check_shard_sizes(directory, shards)
    if verify != "size":
        _check_content(directory, shards, trust_stamp=verify == "once")
    dtype = np.dtype(index.dtype).newbyteorder("<")
    return TokenStore(
        name=f"{directory} ({split})",
        shards=tuple(_map(directory / shard.file, dtype, shard.tokens) for shard in shards),
        vocab_size=index.tokenizer.vocab_size,
        separator_id=index.tokenizer.separator_id,
        fingerprint=index.tokenizer.fingerprint,
        content=content_hash(f"{shard.tokens} {shard.sha256}" for shard in shards),
    )


def open_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of the dataset at ``path``, checked to be the one that made its tokens."""
    directory = Path(path)
    identity = read_index(directory).tokenizer
    if identity.separator is None:  # only bytes have no spelling for it
        tokenizer = load_tokenizer("byte")
    else:
        tokenizer = load_tokenizer(inside(directory, "tokenizer.json"), separator=identity.separator)
    if tokenizer.fingerprint != identity.fingerprint:
        raise ValueError(
            f"{directory / 'tokenizer.json'} is not the tokenizer that made these tokens (fingerprint "
            f"{tokenizer.fingerprint[:12]}, the index says {identity.fingerprint[:12]}); {PREPARE_AGAIN}"
        )
    return tokenizer


def open_llmc(pattern: str | Path, *, vocab_size: int | None = None) -> TokenStore:
    """llm.c's ``.bin`` token files as they are: all that match ``pattern``, in sorted order.

    A file is a header of 256 int32 (magic, version, number of tokens) and then the tokens: magic 20240520
    version 1 is GPT-2's uint16, magic 20240801 version 7 is Llama-3's uint32.

    Args:
        pattern: a path or glob pattern.
        vocab_size: where it is not 50257 (GPT-2) or 128256 (Llama-3).
    """
    paths = sorted(Path(match) for match in glob.glob(str(pattern)))
    if not paths:
        raise ValueError(f"{str(pattern)!r} matches no file; give llm.c token files, e.g. 'fineweb_train_*.bin'")
    opened = [_open_llmc_file(path) for path in paths]
    magic, shards = opened[0][0], tuple(shard for _, shard in opened)
    for path, (other, _) in zip(paths, opened, strict=True):
        if other != magic:
            raise ValueError(f"{path} has magic {other} but {paths[0]} has {magic}; give files of one tokenizer")
    _, _, separator_id, default_vocab_size = _LLMC_FORMATS[magic]
    return TokenStore(
        name=str(pattern),
        shards=tuple(shard for shard in shards if len(shard)),
        vocab_size=default_vocab_size if vocab_size is None else vocab_size,
        separator_id=separator_id,
        content=content_hash(map(sampled, shards)),
    )


def content_hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def sampled(tokens: np.ndarray) -> str:
    """Length, first and last tokens of a shard that has no checksum; all of it would take as long as training on it."""
    ends = np.concatenate([tokens[:SAMPLED], tokens[-SAMPLED:]])
    return f"{len(tokens)} {hashlib.sha256(ends.tobytes()).hexdigest()}"


def check_shard_sizes(directory: Path, shards: Sequence[Shard]) -> None:
    """ValueError for a shard that is missing or not as long as the index says."""
    for shard in shards:
        path = inside(directory, shard.file)
        if not path.is_file():
            raise ValueError(f"shard {path} is missing, though the index names it; {PREPARE_AGAIN}")
        size = path.stat().st_size
        if size != shard.bytes:
            raise ValueError(f"shard {path} has {size} bytes, the index says {shard.bytes}; {PREPARE_AGAIN}")


def _check_content(directory: Path, shards: Sequence[Shard], *, trust_stamp: bool) -> None:
    stamp = _read_stamp(directory)
    fresh = dict(stamp)
    for shard in shards:
        path = directory / shard.file
        state = path.stat()
        entry = [state.st_size, state.st_mtime_ns, shard.sha256]
        if trust_stamp and stamp.get(shard.file) == entry:
            continue
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ValueError(f"cannot read shard {path}: {error.strerror}; make it readable") from error
        if digest != shard.sha256:
            raise ValueError(
                f"shard {path} has changed since it was made (sha256 {digest[:12]}, the index says "
                f"{shard.sha256[:12]}); {PREPARE_AGAIN}"
            )
        fresh[shard.file] = entry
    if fresh != stamp:
        _write_stamp(directory, fresh)


def _read_stamp(directory: Path) -> dict[str, list]:
    try:
        stamp = parse_json(inside(directory, STAMP_NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(directory: Path, stamp: dict[str, list]) -> None:
    """Whole or not at all, as other processes may be verifying too; a read-only dataset does without."""
    temporary = directory / f"{STAMP_NAME}.{os.getpid()}"
    try:
        with open(temporary, "x") as file:  # never through a link that stands there
            json.dump(stamp, file)
        os.replace(temporary, directory / STAMP_NAME)
    except OSError:
        with suppress(OSError):  # on a read-only file system even this is refused
            temporary.unlink()


def _open_llmc_file(path: Path) -> tuple[int, np.ndarray]:
    try:
        header = np.fromfile(path, dtype="<i4", count=256)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; give llm.c token files") from error
    if len(header) < 256 or int(header[0]) not in _LLMC_FORMATS:
        known = ", ".join(map(str, _LLMC_FORMATS))
        found = int(header[0]) if len(header) else "nothing"
        raise ValueError(f"{path} is no llm.c token file: it begins with {found}, not {known}; give another file")
    magic, version, num_tokens = (int(value) for value in header[:3])
    wanted_version, dtype, _, _ = _LLMC_FORMATS[magic]
    if version != wanted_version:
        raise ValueError(f"{path} has version {version}, magic {magic} goes with {wanted_version}; make it again")
    size, wanted = path.stat().st_size, _LLMC_HEADER_BYTES + num_tokens * ITEM_BYTES[dtype]
    if size != wanted:
        raise ValueError(
            f"{path} has {size} bytes, its header ({num_tokens} tokens) says {wanted}; download or make it again"
        )
    return magic, _map(path, np.dtype(dtype).newbyteorder("<"), num_tokens, offset=_LLMC_HEADER_BYTES)


def _map(path: Path, dtype: np.dtype, count: int, offset: int = 0) -> np.ndarray:
    if count == 0:
        return np.empty(0, dtype)
    try:
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; make it readable") from error
