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
LENGTH_BYTES = 4  # int32
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


class File(_Model):
    """A file that stands beside the token shards."""

    file: _FileName
    bytes: _Count
    sha256: str


class ExampleSplit(_Model):
    """What stands beside the token shards of a split of examples: for each shard a file of each kind.

    Attributes:
        examples: conversations, pairs or prompts; a pair is two documents, chosen and then rejected.
        trained: tokens that are an answer's.
        longest: tokens of the longest example.
        roles: of each token, uint8: 0 context, 1 trained, 2 trained of a rejected answer.
        lengths: tokens of each document that begins in the shard, int32.
        records: JSON lines, the other columns of each prompt that begins in the shard; of other kinds none.
    """

    examples: _Count
    trained: _Count
    longest: _Count
    roles: list[File]
    lengths: list[File]
    records: list[File] = []


class Examples(_Model):
    """That the documents are examples, and of what template.

    Attributes:
        template: a name of `data.examples.templates`, or `own`.
        stop_ids: the tokens that end an answer.
        chat: the template's text and special tokens, as a run keeps them.
    """

    kind: Literal["conversations", "pairs", "prompts"]
    template: str
    stop_ids: list[_Count]
    chat: File
    splits: dict[SplitName, ExampleSplit]


class Index(_Model):
    """A whole prepared dataset. It is written last, so a directory that has one is complete.

    ``examples`` are there where the documents are no plain text. ``notes`` tell what was left out or changed.
    """

    format: Literal["jaxscale.tokens"]
    version: Literal[1]
    dtype: Dtype
    tokenizer: TokenizerIdentity
    source: SourceIdentity
    options: Options
    splits: dict[SplitName, Split]
    validation_source: SourceIdentity | None = None
    examples: Examples | None = None
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
            if self.examples is not None:
                _check_examples(name, split, self.examples)
        return self


def _check_examples(name: SplitName, split: Split, examples: Examples) -> None:
    if name not in examples.splits:
        raise ValueError(f"examples.splits.{name} is missing")
    beside, documents = examples.splits[name], 2 if examples.kind == "pairs" else 1
    if split.documents != documents * beside.examples:
        raise ValueError(f"splits.{name}.documents is not {documents} for each example")
    if not len(split.shards) == len(beside.roles) == len(beside.lengths):
        raise ValueError(f"examples.splits.{name} has not one file of roles and of lengths for each shard")
    if len(beside.records) != (len(split.shards) if examples.kind == "prompts" else 0):
        raise ValueError(f"examples.splits.{name}.records are not one for each shard of prompts")
    for shard, roles, lengths in zip(split.shards, beside.roles, beside.lengths, strict=True):
        if roles.bytes != shard.tokens or lengths.bytes != LENGTH_BYTES * shard.documents:
            raise ValueError(f"{roles.file} or {lengths.file}: bytes are not those of {shard.file}")


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
        json.dump(index.model_dump(exclude={"examples"} if index.examples is None else None), file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
