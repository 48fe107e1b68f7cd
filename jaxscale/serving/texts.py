"""What a model is evaluated on: each prepared dataset, and each file or directory of text, is one source. No jax."""

import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxscale.data.encode import encoded
from jaxscale.data.examples.store import ExampleStore, open_example_store
from jaxscale.data.index import INDEX_NAME, SplitName, read_index
from jaxscale.data.progress import BadRecords, Progress
from jaxscale.data.sources import Document, documents, text_source
from jaxscale.data.split import Part
from jaxscale.data.store import TokenStore, open_tokens
from jaxscale.data.text_changes import TextChanges
from jaxscale.data.tokenizer import BYTE_SEPARATOR_ID, ByteTokenizer, Tokenizer

SPLITS: tuple[SplitName, ...] = ("train", "validation")
NOT_TEXT = (".jsonl", ".ndjson", ".parquet", ".pq")
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class TextSource:
    """Tokens to evaluate on. `bytes` are those of the text in UTF-8; None where they are not known.

    Of conversations, in `examples`, only what is trained counts.
    """

    name: str
    store: TokenStore
    bytes: int | None
    examples: ExampleStore | None = None


def open_sources(
    places: Sequence[str], codec: Tokenizer | None, *, model: str, split: str = "validation", say: Say
) -> list[TextSource]:
    """Each of `places` as a source: prepared datasets, files, directories, patterns (a source for each match).

    Args:
        codec: the model's tokenizer; None: it has none, and only prepared datasets can be read.
        model: what messages call it.
        split: of prepared datasets.

    Raises:
        ValueError: nothing there, no tokens, or a dataset that another tokenizer made.
    """
    if split not in SPLITS:
        raise ValueError(f"--split {split}: it is one of {', '.join(SPLITS)}")
    named = [name for place in places for name in matches(str(place))]
    if not named:
        raise ValueError("no data to evaluate on; give --data with a prepared dataset, or with files of text")
    return [
        of_dataset(name, codec, model, split, say) if (Path(name) / INDEX_NAME).is_file() else of_text(name, codec, say)
        for name in named
    ]


def matches(place: str) -> list[str]:
    if not glob.has_magic(place) or Path(place).exists():
        return [place]
    if paths := sorted(glob.glob(place, recursive=True)):
        return paths
    raise ValueError(f"{place!r} names no file; give files, directories, patterns or prepared datasets")


def of_dataset(place: str, codec: Tokenizer | None, model: str, split: str, say: Say) -> TextSource:
    """A split of a prepared dataset. Its bytes are known where its tokens are bytes."""
    index = read_index(Path(place))
    made = index.tokenizer
    if codec is not None and made.fingerprint != codec.fingerprint:
        raise ValueError(
            f"{place} was made by tokenizer {made.spec} (fingerprint {made.fingerprint[:12]}), and {model} has another "
            f"({codec.fingerprint[:12]}); prepare the text with the model's, or give the files of text themselves"
        )
    if codec is None:
        say(f"{model} has no tokenizer, so nothing says whether {made.spec}, which made {place}, is its own")
    if not next(one.tokens for name, one in index.splits.items() if name == split):
        other = next(name for name in SPLITS if name != split)
        raise ValueError(f"{place} has no {split} tokens; give --split {other}, or data that has them")
    if index.examples is not None:
        if index.examples.kind != "conversations":
            raise ValueError(
                f"{place} holds {index.examples.kind}, which have no loss a token; give text, or conversations"
            )
        examples = open_example_store(place, split)  # type: ignore[arg-type]
        return TextSource(f"{place} ({split})", examples.tokens, None, examples)
    store, size = open_tokens(place, split), None  # type: ignore[arg-type]
    if made.fingerprint == ByteTokenizer.fingerprint:
        size = sum(int(np.count_nonzero(shard != BYTE_SEPARATOR_ID)) for shard in store.shards)
    return TextSource(f"{place} ({split})", store, size)


def of_text(place: str, codec: Tokenizer | None, say: Say) -> TextSource:
    """The files of a place as documents, by the model's tokenizer; what that cannot say is told."""
    if place.lower().removesuffix(".zst").removesuffix(".gz").endswith(NOT_TEXT):
        raise ValueError(f"{place} holds records, not plain text; make a dataset of it: `jaxscale data prepare --help`")
    if codec is None:
        raise ValueError(f"the model has no tokenizer to read {place} with; give --tokenizer byte or a tokenizer.json")
    source, size = text_source([place]), 0
    progress, changes = Progress("tokenizing", source.size_bytes, bad=Refused()), TextChanges(codec)

    def parts() -> Iterator[Part]:
        with closing(documents(source, progress)) as stream:
            for document in stream:
                yield "validation", document._replace(chunks=counted(document))

    def counted(document: Document) -> Iterator[str]:
        nonlocal size
        for chunk in document.chunks:
            size += len(chunk.encode("utf-8", "surrogatepass"))
            yield chunk

    tokens = [batch["validation"] for batch in encoded(parts(), codec, progress, changes)]
    if not tokens:
        raise ValueError(f"{place} has no text")
    for note in (*changes.notes(), *(f"not read: {name} ({reason})" for name, reason in source.unread)):
        say(f"{place}: {note}")
    store = TokenStore(place, (np.concatenate(tokens),), codec.vocab_size, codec.separator_id, codec.fingerprint)
    return TextSource(place, store, size)


class Refused(BadRecords):
    """No bad record is left out: an evaluation is of all of the text."""

    def skip(self, reason: ValueError) -> None:
        raise ValueError(str(reason)) from None
