"""Tokens on disk as one long array: datasets made by ``prepare`` and llm.c's ``.bin`` files.

Shards are memory-mapped, checked before use, and read across their boundaries. Knows nothing of text or batches.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from jaxscale.data import llmc
from jaxscale.data.index import PREPARE_AGAIN, File, Index, Shard, inside, read_index
from jaxscale.data.tokenizer import Tokenizer, load_tokenizer
from jaxscale.files.reading import parse_json
from jaxscale.files.whole import write_whole

Verify = Literal["always", "once", "size"]
STAMP_NAME = ".verified.json"
SAMPLED = 2**15  # tokens at each end


@dataclass(frozen=True, eq=False)
class TokenStore:
    """``num_tokens`` token ids over one or more shards; a separator begins each document.

    ``name`` is for messages; ``fingerprint`` is the tokenizer's, None where it is not known; ``content`` is a hash by
    which other tokens are told from the same ones at another place.
    """

    name: str
    shards: tuple[np.ndarray, ...]
    vocab_size: int
    separator_id: int | None
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
        check_content(directory, shards, trust_stamp=verify == "once")
    dtype = np.dtype(index.dtype).newbyteorder("<")
    return TokenStore(
        name=f"{directory} ({split})",
        shards=tuple(map_file(directory / shard.file, dtype, shard.tokens) for shard in shards),
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


def open_llmc(pattern: str | Path, *, vocab_size: int | None = None, separator_id: int | None = None) -> TokenStore:
    """llm.c's ``.bin`` token files as they are: all that match ``pattern``, in sorted order.

    Args:
        pattern: a path or glob pattern.
        vocab_size: where it is not GPT-2's or Llama-3's, which the header says; see ``llmc``. The separator is then
            not known unless it is given.
        separator_id: the token that begins each document.
    """
    paths = llmc.matching(pattern)
    headers = [llmc.read_header(path) for path in paths]
    for path, header in zip(paths, headers, strict=True):
        if header.magic != headers[0].magic:
            raise ValueError(
                f"{path} has magic {header.magic} but {paths[0]} has {headers[0].magic}; give files of one tokenizer"
            )
    form = headers[0].form
    if separator_id is None and (vocab_size is None or form.fits(vocab_size)):
        separator_id = form.separator_id
    dtype = np.dtype(form.dtype).newbyteorder("<")
    shards = [
        map_file(path, dtype, header.num_tokens, offset=llmc.HEADER_BYTES)
        for path, header in zip(paths, headers, strict=True)
    ]
    return TokenStore(
        name=str(pattern),
        shards=tuple(shard for shard in shards if len(shard)),
        vocab_size=form.vocab_size if vocab_size is None else vocab_size,
        separator_id=separator_id,
        content=content_hash(map(sampled, shards)),
    )


def content_hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def sampled(tokens: np.ndarray) -> str:
    """Length, first and last tokens of a shard that has no checksum; all of it would take as long as training on it."""
    ends = np.concatenate([tokens[:SAMPLED], tokens[-SAMPLED:]])
    return f"{len(tokens)} {hashlib.sha256(ends.tobytes()).hexdigest()}"


def check_shard_sizes(directory: Path, shards: Sequence[Shard | File]) -> None:
    """ValueError for a shard that is missing or not as long as the index says."""
    for shard in shards:
        path = inside(directory, shard.file)
        if not path.is_file():
            raise ValueError(f"shard {path} is missing, though the index names it; {PREPARE_AGAIN}")
        size = path.stat().st_size
        if size != shard.bytes:
            raise ValueError(f"shard {path} has {size} bytes, the index says {shard.bytes}; {PREPARE_AGAIN}")


def files_beside(index: Index, split: str | None = None) -> list[File]:
    """What stands beside the token shards of a dataset of examples, of one split or of all."""
    if index.examples is None:
        return []
    splits = [one for name, one in index.examples.splits.items() if split in (None, name)]
    return [index.examples.chat, *(file for one in splits for file in (*one.roles, *one.lengths, *one.records))]


def check_content(directory: Path, shards: Sequence[Shard | File], *, trust_stamp: bool) -> None:
    """ValueError for a file whose sha256 is not the index's; one that the stamp names is trusted where asked."""
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
    with suppress(OSError):
        write_whole(directory / STAMP_NAME, json.dumps(stamp))


def map_file(path: Path, dtype: np.dtype, count: int, offset: int = 0) -> np.ndarray:
    """The numbers of a file, memory-mapped."""
    if count == 0:
        return np.empty(0, dtype)
    try:
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; make it readable") from error
