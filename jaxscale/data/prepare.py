"""Text -> token shards: the engine of ``jaxscale data prepare``. Memory stays flat whatever the corpus.

A dataset directory holds ``index.json``, ``train-00000.bin``, ..., ``validation-00000.bin``, ... (raw
little-endian token ids) and, unless the tokens are bytes, ``tokenizer.json``: nothing else is needed to train.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxscale.data.encode import encoded
from jaxscale.data.index import (
    Dtype,
    Index,
    Options,
    SourceIdentity,
    Split,
    SplitName,
    TokenizerIdentity,
    read_index,
    write_index,
)
from jaxscale.data.progress import Progress, Report, reporting
from jaxscale.data.publish import check_replaceable, occupied, published
from jaxscale.data.shards import ShardWriter
from jaxscale.data.sources import Source, content_sha256, documents, names_sha256
from jaxscale.data.split import Holdout, choose_holdout
from jaxscale.data.store import check_shard_sizes
from jaxscale.data.tokenizer import DEFAULT_SEPARATOR, Tokenizer, load_tokenizer, train_bpe

SPLITS: tuple[SplitName, ...] = ("train", "validation")
SHARD_TOKENS = 2**27
BPE_SAMPLE_CHARACTERS = 2**28  # a BPE learns nothing more from the rest of a corpus


@dataclass(frozen=True)
class Summary:
    """What a preparation made, or found already made. ``notes`` are sentences a person should see."""

    path: Path
    index: Index
    already_prepared: bool = False
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(split.tokens for split in self.index.splits.values())

    @property
    def documents(self) -> int:
        return sum(split.documents for split in self.index.splits.values())

    @property
    def shards(self) -> dict[str, int]:
        return {name: len(split.shards) for name, split in self.index.splits.items()}


@dataclass(frozen=True)
class _Plan:
    """What the user asked for, before any document is read; the tokenizer is None where it is yet to be trained."""

    source: Source
    spec: str
    tokenizer: Tokenizer | None
    separator: str | None
    options: Options


def prepare(
    source: Source,
    tokenizer: str | Path,
    out: str | Path,
    *,
    validation_fraction: float = 0.01,
    separator: str | None = None,
    shard_tokens: int = SHARD_TOKENS,
    overwrite: bool = False,
    progress: Report | None = None,
) -> Summary:
    """Tokenize ``source`` into a dataset directory at ``out``, whole or not at all.

    Args:
        source: from ``sources.text_source``, ``jsonl_source``, ``parquet_source`` or ``stdlib_source``.
        tokenizer: ``byte``, the path of a Hugging Face ``tokenizer.json``, or ``bpe:N``, which first trains a
            byte-level BPE of N tokens on the first ``BPE_SAMPLE_CHARACTERS`` characters that are for training.
        out: the directory to make. If it already holds this dataset, nothing is done.
        validation_fraction: share of the documents held out, in [0, 1). See ``split.choose_holdout``.
        separator: the token that separates documents, where the tokenizer file's own is not wanted or known.
        shard_tokens: the most tokens in one shard file.
        overwrite: replace a dataset that stands at ``out``.
        progress: called with the counts as they grow; None shows a bar on a terminal.

    Raises:
        ValueError: something cannot be read or written, there is no text, or ``out`` is taken.
    """
    out = Path(out).resolve()
    plan = _plan(
        source, tokenizer, separator, Options(validation_fraction=validation_fraction, shard_tokens=shard_tokens)
    )
    for file in source.files:
        if file.path.resolve().is_relative_to(out):
            raise ValueError(f"source file {file.path} lies inside the output {out}; choose another --out")
    with reporting(progress) as report:
        if occupied(out):
            if not overwrite:
                return _already_prepared(plan, out, report)
            check_replaceable(out)
        with published(out, overwrite=overwrite) as directory:
            index, notes = _write_dataset(plan, directory, report)
    return Summary(out, index, notes=notes)


def _plan(source: Source, spec: str | Path, separator: str | None, options: Options) -> _Plan:
    if not 0 <= options.validation_fraction < 1:
        raise ValueError(f"validation_fraction {options.validation_fraction} is not in [0, 1); try 0.01")
    if options.shard_tokens < 1:
        raise ValueError(f"shard_tokens {options.shard_tokens} is not positive; try {SHARD_TOKENS}")
    name = str(spec)
    if name.startswith("bpe:"):
        if not name.removeprefix("bpe:").isdecimal() or int(name.removeprefix("bpe:")) < 257:
            raise ValueError(f"tokenizer {name!r}: bpe:N takes a whole number N >= 257 (256 bytes + 1); try bpe:4096")
        return _Plan(source, name, None, separator, options)
    tokenizer = load_tokenizer(spec, separator=separator)
    return _Plan(source, name if name == "byte" else Path(spec).name, tokenizer, separator, options)


def _already_prepared(plan: _Plan, out: Path, report: Report) -> Summary:
    """The dataset at ``out`` if it is whole and the one asked for; cheap checks first, every byte of text last."""
    advice = "choose another --out, or pass --overwrite to replace it"
    try:
        index = read_index(out)
        for split in index.splits.values():
            check_shard_sizes(out, split.shards)
    except ValueError as error:
        raise ValueError(f"{out} exists and is not a whole dataset ({error}); {advice}") from error
    difference = _first_difference(plan, index, report)
    if difference:
        raise ValueError(f"{out} already holds another dataset: {difference}; {advice}")
    return Summary(out, index, already_prepared=True, notes=(f"already prepared: {out}",))


def _first_difference(plan: _Plan, index: Index, report: Report) -> str | None:
    there, source, options = index.tokenizer, index.source, plan.options
    pairs = [
        ("tokenizer", there.spec, plan.spec),
        ("source", source.kind, plan.source.kind),
        ("field", source.field, plan.source.field),
        ("number of files", source.files, len(plan.source.files)),
        ("bytes", source.bytes, plan.source.size_bytes),
        ("hash over file names and sizes", source.names_sha256[:12], names_sha256(plan.source)[:12]),
        ("validation fraction", index.options.validation_fraction, options.validation_fraction),
        ("shard tokens", index.options.shard_tokens, options.shard_tokens),
    ]
    if plan.tokenizer is not None:
        pairs.append(("tokenizer fingerprint", there.fingerprint[:12], plan.tokenizer.fingerprint[:12]))
    else:
        pairs.append(("separator", there.separator, plan.separator or DEFAULT_SEPARATOR))
    for what, found, wanted in pairs:
        if found != wanted:
            return f"its {what} is {found}, not {wanted}"
    content = content_sha256(plan.source, report)
    return None if content == source.sha256 else "its text has other contents than the files now have"


def _write_dataset(plan: _Plan, directory: Path, report: Report) -> tuple[Index, tuple[str, ...]]:
    source = plan.source
    with closing(documents(source, Progress("looking", source.size_bytes))) as seen:
        holdout = choose_holdout(seen, plan.options.validation_fraction)
    tokenizer = plan.tokenizer or _train(plan, holdout, report)
    tokenizer.save(directory)
    dtype: Dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    writers: dict[SplitName, ShardWriter] = {
        split: ShardWriter(
            directory,
            split,
            dtype=dtype,
            separator_id=tokenizer.separator_id,
            shard_tokens=plan.options.shard_tokens,
        )
        for split in SPLITS
    }
    progress = Progress("tokenizing", source.size_bytes)
    corpus = encoded(documents(source, progress), tokenizer, holdout, progress)
    splits = _write_shards(corpus, writers, progress, report)
    if not progress.tokens:
        raise ValueError(f"no text in {len(source.files)} files; give a corpus with at least one document")
    index = Index(
        format="jaxscale.tokens",
        version=1,
        dtype=dtype,
        tokenizer=_tokenizer_identity(plan.spec, tokenizer),
        source=_source_identity(source, report),
        options=plan.options,
        splits=splits,
    )
    write_index(directory, index)
    return index, _notes(plan, index, progress)


def _tokenizer_identity(spec: str, tokenizer: Tokenizer) -> TokenizerIdentity:
    return TokenizerIdentity(
        spec=spec,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        separator_id=tokenizer.separator_id,
        separator=tokenizer.separator,
    )


def _source_identity(source: Source, report: Report) -> SourceIdentity:
    return SourceIdentity(
        kind=source.kind,
        field=source.field,
        files=len(source.files),
        bytes=source.size_bytes,
        names_sha256=names_sha256(source),
        sha256=content_sha256(source, report),
    )


def _train(plan: _Plan, holdout: Holdout, report: Report) -> Tokenizer:
    """A BPE of the training documents' text: the validation text stays unseen."""
    progress = Progress("training BPE", min(plan.source.size_bytes, BPE_SAMPLE_CHARACTERS))

    def sample() -> Iterator[str]:
        left = BPE_SAMPLE_CHARACTERS
        for document in documents(plan.source, progress):
            for piece in () if holdout(document.name) else document.pieces:
                yield piece[:left]
                left -= len(piece)
                report(progress)
                if left <= 0:
                    return

    # The pieces come to the trainer as lines, which it can count in parallel and forget.
    lines = (line for piece in sample() for line in piece.splitlines(keepends=True))
    vocab_size = int(plan.spec.removeprefix("bpe:"))
    return train_bpe(lines, vocab_size, separator=plan.separator or DEFAULT_SEPARATOR)


def _write_shards(
    corpus: Iterator[dict[SplitName, np.ndarray]],
    writers: dict[SplitName, ShardWriter],
    progress: Progress,
    report: Report,
) -> dict[SplitName, Split]:
    with ExitStack() as stack:
        for writer in writers.values():
            stack.callback(writer.close)
        for tokens_by_split in corpus:
            for split, tokens in tokens_by_split.items():
                writers[split].append(tokens)
                progress.tokens += len(tokens)
            report(progress)
        return {split: writer.finish() for split, writer in writers.items()}


def _notes(plan: _Plan, index: Index, progress: Progress) -> tuple[str, ...]:
    notes = []
    if progress.undecodable_files:
        notes.append(f"{progress.undecodable_files} files were skipped: not UTF-8")
    if progress.empty_documents:
        notes.append(f"{progress.empty_documents} documents without text were left out")
    if plan.options.validation_fraction and not index.splits["validation"].tokens:
        notes.append("no validation split: there is only one document")
    if plan.tokenizer is None and plan.spec != f"bpe:{index.tokenizer.vocab_size}":
        notes.append(f"{plan.spec} ran out of pairs to merge: its vocabulary is {index.tokenizer.vocab_size}")
    return tuple(notes)
