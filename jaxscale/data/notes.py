"""What a person should know of a preparation: what was left out of it, and what its splits are fit for."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from jaxscale.data.index import Index
from jaxscale.data.progress import Progress
from jaxscale.data.sources import Source

NAMED = 20  # of the files or records of one kind
SEQ_LEN = 1024  # the default of data.seq_len


def reading_notes(sources: Iterable[Source], progress: Progress) -> list[str]:
    """What was not read: files of a folder, bad records, files that are not UTF-8, documents without text."""
    notes = []
    by_reason: dict[str, list[str]] = defaultdict(list)
    for source in sources:
        for name, reason in source.unread:
            by_reason[reason].append(name)
    for reason, names in by_reason.items():
        notes.append(f"{_count(len(names), 'file')} not read ({reason}): {_listed(names)}")
    if bad := progress.bad.reasons:
        notes.append(f"{_count(len(bad), 'bad record')} skipped (--skip-bad {progress.bad.allowed}): {_listed(bad)}")
    if progress.undecodable_files:
        notes.append(f"{progress.undecodable_files} files were skipped: not UTF-8")
    if progress.empty_documents:
        notes.append(f"{progress.empty_documents} documents without text were left out")
    return notes


def dataset_notes(index: Index) -> list[str]:
    """Where the splits or the vocabulary are not what was asked for."""
    notes = []
    share, validation = index.options.validation_fraction, index.splits["validation"]
    tokens = sum(split.tokens for split in index.splits.values())
    wanted = share > 0 or index.options.validation == "source"
    if wanted and not validation.tokens:
        only_one = index.options.validation == "documents"
        notes.append(f"no validation split: there is {'only one document' if only_one else 'no text for it'}")
    elif wanted:
        held_out = validation.tokens / tokens
        if share and not share / 2 <= held_out <= share * 2:
            notes.append(
                f"warning: {held_out:.1%} of the tokens are held out for validation, {share:.1%} was asked: whole "
                f"documents are held out, by the hash of their names, here {validation.documents:,} of "
                f"{_documents(index):,}; try --validation-tail {share:g} (the end of each) or --validation-text FILES"
            )
        if validation.tokens <= SEQ_LEN and index.examples is None:
            notes.append(
                f"warning: the validation split has {validation.tokens} tokens, too few for one row of the default "
                f"data.seq_len={SEQ_LEN}; hold out more, or give data.seq_len={max(1, validation.tokens - 1)} or less"
            )
    spec = index.tokenizer.spec
    if spec.startswith("bpe:") and spec != f"bpe:{index.tokenizer.vocab_size}":
        notes.append(f"{spec} ran out of pairs to merge: its vocabulary is {index.tokenizer.vocab_size}")
    return notes


def _documents(index: Index) -> int:
    return sum(split.documents for split in index.splits.values())


def _count(number: int, what: str) -> str:
    return f"{number:,} {what} was" if number == 1 else f"{number:,} {what}s were"


def _listed(names: Sequence[str]) -> str:
    more = f"; and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return "; ".join(names[:NAMED]) + more
