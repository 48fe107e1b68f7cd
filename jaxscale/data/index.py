"""``index.json`` of a prepared dataset: what it says, and reading and writing it. Knows nothing of tokenizing."""

import json
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jaxscale.files.reading import parse_json

FORMAT = "jaxscale.tokens"
VERSION = 1
INDEX_NAME = "index.json"
ITEM_BYTES = {"uint16": 2, "uint32": 4}
PREPARE_AGAIN = "prepare it again with `jaxscale data prepare --overwrite`"

SplitName = Literal["train", "validation"]
Dtype = Literal["uint16", "uint32"]

_Count = Annotated[int, Field(ge=0)]
# A plain file name: no directories, nothing hidden, so that an index cannot point outside its dataset.
_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class Shard(_Model):
    """One ``.bin`` file: raw little-endian token ids. ``documents`` counts the documents that begin in it."""

    file: _FileName
    tokens: Annotated[int, Field(gt=0)]
    documents: _Count
    bytes: _Count
    sha256: str


class Split(_Model):
    """The shards of train or validation, in order; documents may run across shards."""

    tokens: _Count
    documents: _Count
    shards: list[Shard]


class TokenizerIdentity(_Model):
    """Which tokenizer made the ids; ``spec`` is as the user gave it, a file by its name alone."""

    spec: str
    fingerprint: str
    vocab_size: Annotated[int, Field(gt=0)]
    separator_id: _Count
    separator: str | None


class SourceIdentity(_Model):
    """Which corpus: ``names_sha256`` over file names and sizes, ``sha256`` over names and contents."""

    kind: str
    field: str | None
    files: _Count
    bytes: _Count
    names_sha256: str
    sha256: str


class Options(_Model):
    """The other settings that decide what the shards hold.

    ``validation`` says what is held out: whole documents, the tail of each, or a source's; ``validation_fraction``
    is the share asked for, 0 with a source.
    """

    validation_fraction: float
    shard_tokens: int
    validation: Literal["documents", "tail", "source"] = "documents"


class Index(_Model):
    """A whole prepared dataset. It is written last, so a directory that has one is complete.

    ``notes`` tell what was left out or changed.
    """

    format: Literal["jaxscale.tokens"]
    version: Literal[1]
    dtype: Dtype
    tokenizer: TokenizerIdentity
    source: SourceIdentity
    options: Options
    splits: dict[SplitName, Split]
    validation_source: SourceIdentity | None = None
    notes: list[str] = []

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.tokenizer.separator_id >= self.tokenizer.vocab_size:
            raise ValueError("tokenizer.separator_id is not below tokenizer.vocab_size")
        for name, split in self.splits.items():
            if split.tokens != sum(shard.tokens for shard in split.shards):
                raise ValueError(f"splits.{name}.tokens is not the sum over its shards")
            for shard in split.shards:
                if shard.bytes != shard.tokens * ITEM_BYTES[self.dtype]:
                    raise ValueError(f"{shard.file}: bytes is not tokens * {ITEM_BYTES[self.dtype]} ({self.dtype})")
        return self


def read_index(directory: Path) -> Index:
    """The index of the dataset at ``directory``; ValueError where it is missing, unreadable or of another version."""
    path = inside(Path(directory), INDEX_NAME)
    try:
        content = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{directory} is no prepared dataset: {path} is missing; make one with `jaxscale data prepare`"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is unreadable: {error}; {PREPARE_AGAIN}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not an index of format {FORMAT!r}; name a directory `jaxscale data prepare` made")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {content.get('version')!r}, this jaxscale reads version {VERSION}; {PREPARE_AGAIN}"
        )
    try:
        return Index.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "index"
        given = f" (value {first['input']!r})" if isinstance(first["input"], str | int | float) else ""
        raise ValueError(f"{path} is damaged: {where}: {first['msg']}{given}; {PREPARE_AGAIN}") from None


def inside(directory: Path, name: str) -> Path:
    """``directory / name``, of a dataset or a run; ValueError where the name, or a link, leads elsewhere."""
    path = directory / name
    try:
        elsewhere = Path(name).name != name or path.resolve().parent != directory.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle, a NUL in the name
        elsewhere = True
    if elsewhere:
        raise ValueError(f"{path} leads out of {directory}, which must hold its files itself; copy the file into it")
    return path


def write_index(directory: Path, index: Index) -> None:
    """Write ``index.json`` and wait until it is on the disk."""
    with open(Path(directory) / INDEX_NAME, "w", encoding="utf-8") as file:
        json.dump(index.model_dump(), file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
