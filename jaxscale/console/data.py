"""What the `data` verbs print."""

import json
import shlex
from pathlib import Path

import numpy as np

from jaxscale.console.tables import make_console, tell
from jaxscale.data.examples.masks import CONTEXT, REJECTED, TRAINED
from jaxscale.data.examples.prompts import open_prompts
from jaxscale.data.examples.store import open_example_store
from jaxscale.data.index import ExampleSplit, Index, Split, SplitName, read_index
from jaxscale.data.notes import SEQ_LEN
from jaxscale.data.prepare import Summary
from jaxscale.data.store import TokenStore, open_tokenizer, open_tokens
from jaxscale.data.tokenizer import Tokenizer


def say(line: str) -> None:
    tell(make_console(), line)


def show_summary(summary: Summary) -> None:
    """What was made, and what the next command needs."""
    for note in summary.notes:
        say(note)
    show_splits(summary.index)
    if summary.index.examples is not None and summary.index.examples.kind != "conversations":
        say(f"{summary.index.examples.kind} in {summary.path}; a run file names them as data.path={summary.path}")
        return
    say(f"tokens in {summary.path}; train on them with data.path={summary.path}")
    say("model.vocab_size may be left out of a run file: it is then the data's. To try it at once:")
    place = shlex.quote(str(summary.path))
    print(  # a command stays one line, to be copied
        f"  jaxscale train quickstart data.path={place} model.vocab_size=null out=runs/{shlex.quote(summary.path.name)}"
    )


def show_splits(index: Index) -> None:
    """A line for the tokenizer, and one for each split with its share and its epoch."""
    tokenizer, total = index.tokenizer, max(1, sum(split.tokens for split in index.splits.values()))
    say(f"tokenizer {tokenizer.spec}: vocabulary {tokenizer.vocab_size:,}, separator {separator(index)}")
    if (examples := index.examples) is not None:
        stops = ", ".join(map(str, examples.stop_ids))
        say(f"template {examples.template}: an answer ends at token {stops}")
    for name, split in index.splits.items():
        say(
            f"{name}: {counted(index, name, split)}, {split.tokens:,} tokens ({split.tokens / total:.1%}), "
            f"{len(split.shards)} shards"
        )
    if examples is not None:
        for name, example_split in examples.splits.items():
            if example_split.examples:
                say(in_words(name, example_split, index.splits[name], examples.kind))
        return
    train = index.splits["train"].tokens
    rows = (train - 1) // SEQ_LEN if train else 0
    say(f"an epoch: {train:,} tokens, {rows:,} rows of the default data.seq_len={SEQ_LEN}")


def counted(index: Index, name: SplitName, split: Split) -> str:
    """How many documents or examples a split has."""
    if (examples := index.examples) is None:
        return f"{split.documents:,} documents"
    return f"{examples.splits[name].examples:,} {examples.kind}"


def in_words(name: str, example_split: ExampleSplit, split: Split, kind: str) -> str:
    """How long examples are, and how much of them is trained."""
    each = example_split.trained / split.tokens
    longest = f"{name}: the longest has {example_split.longest:,} tokens (data.seq_len holds whole examples)"
    return longest if kind == "prompts" else f"{longest}, {example_split.trained:,} tokens ({each:.1%}) are trained"


def separator(index: Index) -> str:
    spelled, number = index.tokenizer.separator, index.tokenizer.separator_id
    return f"id {number}" if spelled is None else f"{spelled} (id {number})"


def show_dataset(directory: Path, *, documents: int, characters: int) -> None:
    """The index in words, then the first ``documents`` of each split as text."""
    index, tokenizer = read_index(directory), open_tokenizer(directory)
    source = index.source
    say(f"{directory}: {source.kind} of {source.files:,} files, {source.bytes:,} bytes")
    show_splits(index)
    for note in index.notes:
        say(note)
    for name, split in index.splits.items():
        if split.tokens and index.examples is not None:
            show_examples(directory, name, tokenizer, documents, characters)
        elif split.tokens:
            show_documents(name, split, open_tokens(directory, name, verify="size"), tokenizer, documents, characters)


def show_examples(directory: Path, name: SplitName, tokenizer: Tokenizer, examples: int, characters: int) -> None:
    """The first examples of a split: {+trained+}, and {-rejected-} of a pair's second document."""
    store = open_example_store(directory, name, verify="size")
    prompts = open_prompts(directory, name, verify="size") if store.kind == "prompts" else None
    for i in range(min(examples, len(store))):
        print(f"\n--- {name}, {store.kind[:-1]} {i + 1} of {len(store):,}")
        for number in range(i * store.per_example, (i + 1) * store.per_example):
            text = marked(tokenizer, *store.document(number))
            print(text[:characters] + ("" if len(text) <= characters else " ..."))
        if prompts is not None and (record := prompts.record(i)):
            print(json.dumps(record, ensure_ascii=False)[:characters])


def marked(tokenizer: Tokenizer, ids: np.ndarray, roles: np.ndarray) -> str:
    """The text of a document with what is trained between marks; separators as they are spelled."""
    spelled = tokenizer.separator or "<separator>"
    marks = {CONTEXT: ("", ""), TRAINED: ("{+", "+}"), REJECTED: ("{-", "-}")}
    text = ""
    for part in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(roles)) + 1):
        runs = np.split(ids[part], np.flatnonzero(ids[part] == tokenizer.separator_id))
        shown = tokenizer.decode(runs[0]) + "".join(spelled + tokenizer.decode(run) for run in runs[1:])
        begin, end = marks.get(int(roles[part[0]]), ("{?", "?}"))  # damaged: contents are not verified here
        text += begin + shown + end
    return text


def show_documents(
    name: str, split: Split, store: TokenStore, tokenizer: Tokenizer, documents: int, characters: int
) -> None:
    for number, ids in enumerate(first_documents(store, documents, most=characters * 8)):
        text = tokenizer.decode(ids)
        more = "" if len(text) <= characters else " ..."
        print(f"\n--- {name}, document {number + 1} of {split.documents:,}\n{text[:characters]}{more}")


def first_documents(store: TokenStore, documents: int, *, most: int) -> list[np.ndarray]:
    """The first documents of a store as token ids without separators; at most ``most`` tokens of each."""
    token_ids: list[np.ndarray] = []
    start = 0
    while len(token_ids) < documents and start < store.num_tokens:
        end = document_end(store, start)
        token_ids.append(store.read(start + 1, min(end - start - 1, most)))
        start = end
    return token_ids


def document_end(store: TokenStore, start: int) -> int:
    """Where the document that begins at token ``start`` ends: at the next separator, or with the store."""
    at = start + 1
    while at < store.num_tokens:
        part = store.read(at, min(2**16, store.num_tokens - at))
        separators = np.flatnonzero(part == store.separator_id)
        if separators.size:
            return at + int(separators[0])
        at += len(part)
    return at
