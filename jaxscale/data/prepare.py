"""Text -> token shards: the engine of ``jaxscale data prepare``. Memory stays flat whatever the corpus.

A dataset directory holds ``index.json``, ``train-00000.bin``, ..., ``validation-00000.bin``, ... (raw
little-endian token ids) and, unless the tokens are bytes, ``tokenizer.json``: nothing else is needed to train.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxscale.data.encode import encoded
from jaxscale.data.index import (
    Dtype,
    Index,
    SourceIdentity,
    Split,
    SplitName,
    TokenizerIdentity,
    read_index,
    write_index,
)
from jaxscale.data.notes import dataset_notes, reading_notes
from jaxscale.data.pieces import anywhere, cut_pieces
from jaxscale.data.plan import SHARD_TOKENS, Plan, make_options, make_plan
from jaxscale.data.progress import Progress, Report, reporting
from jaxscale.data.publish import check_replaceable, occupied, published
from jaxscale.data.shards import ShardWriter
from jaxscale.data.sources import Digests, Source, content_sha256, documents, names_sha256
from jaxscale.data.split import Holdout, Part, choose_holdout, tails, whole_documents
from jaxscale.data.store import check_shard_sizes, files_beside
from jaxscale.data.text_changes import TextChanges
from jaxscale.data.tokenizer import DEFAULT_SEPARATOR, Tokenizer, character_tokenizer, train_bpe

SPLITS: tuple[SplitName, ...] = ("train", "validation")
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


def prepare(
    source: Source,
    tokenizer: str | Path,
    out: str | Path,
    *,
    validation_fraction: float | None = None,
    validation_tail: float | None = None,
    validation: Source | None = None,
    separator: str | None = None,
    shard_tokens: int = SHARD_TOKENS,
    skip_bad: int = 0,
    overwrite: bool = False,
    progress: Report | None = None,
) -> Summary:
    """Tokenize ``source`` into a dataset directory at ``out``, whole or not at all.

    Args:
        source: from ``sources.text_source``, ``jsonl_source``, ``parquet_source`` or ``stdlib_source``.
        tokenizer: ``byte``, ``char`` (each character of the text a token), the path of a Hugging Face
            ``tokenizer.json``, or ``bpe:N``, which first trains a byte-level BPE of N tokens on the first
            ``BPE_SAMPLE_CHARACTERS`` characters that are for training.
        out: the directory to make. If it already holds this dataset, nothing is done.
        validation_fraction: share of the documents held out, in [0, 1); .01 where none of the three is given. See
            ``split.choose_holdout``.
        validation_tail: instead, the share of each document held out, from its end.
        validation: instead, a source whose documents are the validation split.
        separator: the token that separates documents, where the tokenizer file's own is not wanted or known.
        shard_tokens: the most tokens in one shard file.
        skip_bad: the most records that are left out as they cannot be read; one more is an error.
        overwrite: replace a dataset that stands at ``out``.
        progress: called with the counts as they grow; None shows a bar on a terminal.

    Raises:
        ValueError: something cannot be read or written, there is no text, or ``out`` is taken.
    """
    out = Path(out).resolve()
    options = make_options(validation_fraction, validation_tail, validation, shard_tokens)
    plan = make_plan(source, validation, tokenizer, separator, options, skip_bad)
    return make_dataset(plan, out, _write_dataset, overwrite=overwrite, progress=progress)


def make_dataset(
    plan: Plan,
    out: Path,
    write: Callable[[Plan, Path, Report], Index],
    *,
    differs: Callable[[Index], str | None] = lambda index: None,
    overwrite: bool = False,
    progress: Report | None = None,
) -> Summary:
    """What `write` leaves in a directory, published at ``out``; nothing where it is there already.

    ``differs`` says in what a dataset that is there is another one, beyond what every plan has.
    """
    for file in (file for source in plan.sources for file in source.files):
        if isinstance(file.path, Path) and file.path.resolve().is_relative_to(out):
            raise ValueError(f"source file {file.path} lies inside the output {out}; choose another --out")
    with reporting(progress) as report:
        if occupied(out):
            if not overwrite:
                return _already_prepared(plan, out, report, differs)
            check_replaceable(out)
        with published(out, overwrite=overwrite) as directory:
            index = write(plan, directory, report)
    return Summary(out, index, notes=tuple(index.notes))


def _already_prepared(plan: Plan, out: Path, report: Report, differs: Callable[[Index], str | None]) -> Summary:
    """The dataset at ``out`` if it is whole and the one asked for; cheap checks first, every byte of text last."""
    advice = "choose another --out, or pass --overwrite to replace it"
    try:
        index = read_index(out)
        for split in index.splits.values():
            check_shard_sizes(out, split.shards)
        check_shard_sizes(out, files_beside(index))
    except ValueError as error:
        raise ValueError(f"{out} exists and is not a whole dataset ({error}); {advice}") from error
    difference = differs(index) or _first_difference(plan, index, report)
    if difference:
        raise ValueError(f"{out} already holds another dataset: {difference}; {advice}")
    return Summary(out, index, already_prepared=True, notes=(f"already prepared: {out}", *index.notes))


def _first_difference(plan: Plan, index: Index, report: Report) -> str | None:
    there, source, options = index.tokenizer, index.source, plan.options
    pairs = [
        ("tokenizer", there.spec, plan.spec),
        ("source", source.kind, plan.source.kind),
        ("field", source.field, plan.source.field),
        ("number of files", source.files, len(plan.source.files)),
        ("bytes", source.bytes, plan.source.size_bytes),
        ("hash over file names and sizes", source.names_sha256[:12], names_sha256(plan.source)[:12]),
        ("validation", index.options.validation, options.validation),
        ("validation fraction", index.options.validation_fraction, options.validation_fraction),
        ("shard tokens", index.options.shard_tokens, options.shard_tokens),
    ]
    if plan.tokenizer is not None:
        pairs.append(("tokenizer fingerprint", there.fingerprint[:12], plan.tokenizer.fingerprint[:12]))
    else:
        pairs.append(("separator", there.separator, plan.separator or DEFAULT_SEPARATOR))
    for what, stored, wanted in pairs:
        if stored != wanted:
            return f"its {what} is {stored}, not {wanted}"
    for ours, known in ((plan.source, index.source), (plan.validation, index.validation_source)):
        if ours is None or known is None:
            continue  # both or neither are, as the way of validation is the same
        if names_sha256(ours) != known.names_sha256 or content_sha256(ours, report) != known.sha256:
            return "its text has other contents than the files now have"
    return None


def _write_dataset(plan: Plan, directory: Path, report: Report) -> Index:
    holdout: Holdout = lambda name: False  # noqa: E731
    if plan.options.validation == "documents":
        with closing(documents(plan.source, plan.progress("looking"))) as seen:
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
    progress, changes, digests = plan.progress("tokenizing"), TextChanges(tokenizer), Digests()
    corpus = encoded(_parts(plan, holdout, progress, digests), tokenizer, progress, changes)
    splits = _write_shards(corpus, writers, progress, report)
    if not progress.tokens:
        raise ValueError(f"no text in {len(plan.source.files)} files; give a corpus with at least one document")
    identities = [source_identity(source, report, digests) for source in plan.sources]
    index = Index(
        format="jaxscale.tokens",
        version=1,
        dtype=dtype,
        tokenizer=tokenizer_identity(plan.spec, tokenizer),
        source=identities[0],
        options=plan.options,
        splits=splits,
        validation_source=identities[1] if plan.validation else None,
    )
    notes = [*reading_notes(plan.sources, progress), *changes.notes(), *dataset_notes(index)]
    index = index.model_copy(update={"notes": notes})
    write_index(directory, index)
    return index


def _parts(plan: Plan, holdout: Holdout, progress: Progress, digests: Digests | None = None) -> Iterator[Part]:
    """Every document with the split that it is for; a document of which only the tail is held out comes twice."""
    corpus = documents(plan.source, progress, digests)
    if plan.options.validation == "tail":
        yield from tails(corpus, plan.options.validation_fraction)
        return
    yield from whole_documents(corpus, holdout)
    if plan.validation is not None:
        yield from (("validation", document) for document in documents(plan.validation, progress, digests))


def tokenizer_identity(spec: str, tokenizer: Tokenizer) -> TokenizerIdentity:
    return TokenizerIdentity(
        spec=spec,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        separator_id=tokenizer.separator_id,
        separator=tokenizer.separator,
    )


def source_identity(source: Source, report: Report, digests: Digests) -> SourceIdentity:
    return SourceIdentity(
        kind=source.kind,
        field=source.field,
        files=len(source.files),
        bytes=source.size_bytes,
        names_sha256=names_sha256(source),
        sha256=content_sha256(source, report, digests),
    )


def _train(plan: Plan, holdout: Holdout, report: Report) -> Tokenizer:
    """The characters of all text, or a BPE of the training documents': the validation text stays unseen."""
    separator = plan.separator or DEFAULT_SEPARATOR
    if plan.spec == "char":
        progress, characters = plan.progress("collecting characters"), set[str]()
        for _, document in _parts(plan, holdout, progress):
            for chunk in document.chunks:
                characters |= set(chunk)
                report(progress)
        return character_tokenizer(characters, separator=separator)
    progress = plan.progress("training BPE")
    progress.bytes_total = min(progress.bytes_total, BPE_SAMPLE_CHARACTERS)

    def sample() -> Iterator[str]:
        left = BPE_SAMPLE_CHARACTERS
        for split, document in _parts(plan, holdout, progress):
            # Whole texts, as the encoder will see them: only they show what follows a newline.
            for piece in cut_pieces(document.chunks, anywhere) if split == "train" else ():
                yield piece.text[:left]
                left -= len(piece.text)
                report(progress)
                if left <= 0:
                    return

    return train_bpe(sample(), int(plan.spec.removeprefix("bpe:")), separator=separator)


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
