"""Records -> a dataset directory: the engine of ``jaxscale data prepare --chat`` and its kin.

The directory is that of `data.prepare`. Beside each token shard stand the roles of its tokens and the lengths of its
documents; ``chat.json`` keeps the template. Memory stays flat but for a batch of examples.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from jaxscale.data.chat import KEPT, Chat, kept_text
from jaxscale.data.examples.masks import encode_examples, texts_to_train_on
from jaxscale.data.examples.reading import read_examples
from jaxscale.data.examples.records import Example
from jaxscale.data.examples.templates import NAMED, NAMES, OWN, Template, make_template
from jaxscale.data.examples.writing import ExampleWriter
from jaxscale.data.index import Examples, File, Index, SplitName, write_index
from jaxscale.data.notes import dataset_notes, reading_notes
from jaxscale.data.plan import SHARD_TOKENS, Plan, chat_beside, make_options, make_plan
from jaxscale.data.prepare import (
    BPE_SAMPLE_CHARACTERS,
    SPLITS,
    Summary,
    make_dataset,
    source_identity,
    tokenizer_identity,
)
from jaxscale.data.progress import Progress, Report
from jaxscale.data.sources import Digests, Document, Source
from jaxscale.data.split import Holdout, choose_holdout
from jaxscale.data.text_changes import TextChanges
from jaxscale.data.tokenizer import DEFAULT_SEPARATOR, Tokenizer, character_tokenizer, train_bpe

BATCH_CHARACTERS = 2**18  # of messages; a conversation of k answers is encoded 1 + 2k times
DEFAULT = "chatml"
Part = tuple[SplitName, Example]


class Wanted(NamedTuple):
    """A template's name, and what stands beside the tokenizer."""

    name: str
    published: Chat | None
    where: str

    def of(self, codec: Tokenizer) -> Template:
        return make_template(self.name, codec, self.published, where=self.where)


def prepare_examples(
    source: Source,
    tokenizer: str | Path,
    out: str | Path,
    *,
    template: str | None = None,
    validation_fraction: float | None = None,
    validation: Source | None = None,
    separator: str | None = None,
    shard_tokens: int = SHARD_TOKENS,
    skip_bad: int = 0,
    overwrite: bool = False,
    progress: Report | None = None,
) -> Summary:
    """Conversations, pairs or prompts into a dataset directory at ``out``, whole or not at all.

    Args:
        source: from `reading.examples_source`.
        tokenizer: as for `data.prepare.prepare`, or a directory that has one: a dataset, a run, a published model.
        template: one of `templates.NAMES`; None: the tokenizer's own where it has one, else ``chatml``.
        validation_fraction: share of the examples held out, by their names; .01 where `validation` is not given.
        validation: instead, a source of the same kind that is the validation split.

    The other arguments, and what is raised, are `data.prepare.prepare`'s.
    """
    options = make_options(validation_fraction, None, validation, shard_tokens)
    plan = make_plan(source, validation, tokenizer, separator, options, skip_bad)
    wanted = choose_template(template, tokenizer, plan.tokenizer)
    ready = None if plan.tokenizer is None else wanted.of(plan.tokenizer)

    def differs(index: Index) -> str | None:
        if index.examples is None:
            return "it holds documents, not examples"
        if index.examples.template != wanted.name:
            return f"its template is {index.examples.template}, not {wanted.name}"
        if ready is not None and index.examples.chat != _file(_chat_text(ready)):
            return f"its template {wanted.name} has another text"
        return None

    def write(plan: Plan, directory: Path, report: Report) -> Index:
        return _write_dataset(plan, wanted, directory, report)

    return make_dataset(plan, Path(out).resolve(), write, differs=differs, overwrite=overwrite, progress=progress)


def choose_template(name: str | None, spec: str | Path, codec: Tokenizer | None) -> Wanted:
    """The template of this name, or the one that goes with the tokenizer."""
    chat = None if codec is None else chat_beside(spec, codec)
    if name is None:
        kept = chat.name if chat is not None and chat.name in NAMED else None
        name = kept or (OWN if chat is not None and chat.template is not None else DEFAULT)
    if name not in NAMES:
        raise ValueError(f"template {name!r} is not one of {', '.join(NAMES)}")
    if name == OWN and codec is None:
        raise ValueError(f"tokenizer {spec} is trained here and has no template of its own; give --template chatml")
    return Wanted(name, chat, str(spec))


def _write_dataset(plan: Plan, wanted: Wanted, directory: Path, report: Report) -> Index:
    holdout = _holdout(plan)
    codec = plan.tokenizer or _train(plan, wanted, holdout, report)
    codec.save(directory)
    template = wanted.of(codec)
    (directory / KEPT).write_text(_chat_text(template), encoding="utf-8")
    kind: Any = plan.source.kind
    dtype: Any = "uint16" if codec.vocab_size <= 2**16 else "uint32"
    writers: dict[SplitName, ExampleWriter] = {
        split: ExampleWriter(
            directory, split, dtype=dtype, shard_tokens=plan.options.shard_tokens, records=kind == "prompts"
        )
        for split in SPLITS
    }
    progress, changes, digests = plan.progress("tokenizing"), TextChanges(codec), Digests()
    with ExitStack() as stack:
        for writer in writers.values():
            stack.callback(writer.close)
        for batch in _batches(_parts(plan, holdout, progress, digests)):
            _write_batch(batch, template, writers, progress, changes)
            report(progress)
        done = {split: writer.finish() for split, writer in writers.items()}
    if not progress.tokens:
        raise ValueError(f"no {kind} in {len(plan.source.files)} files; give at least one")
    identities = [source_identity(source, report, digests) for source in plan.sources]
    index = Index(
        format="jaxscale.tokens",
        version=1,
        dtype=dtype,
        tokenizer=tokenizer_identity(plan.spec, codec),
        source=identities[0],
        options=plan.options,
        splits={split: token_split for split, (token_split, _) in done.items()},
        validation_source=identities[1] if plan.validation else None,
        examples=Examples(
            kind=kind,
            template=template.name,
            stop_ids=list(template.stop_ids),
            chat=_file(_chat_text(template)),
            splits={split: beside for split, (_, beside) in done.items()},
        ),
    )
    notes = [*reading_notes(plan.sources, progress), *changes.notes(), *_notes(template), *dataset_notes(index)]
    index = index.model_copy(update={"notes": notes})
    write_index(directory, index)
    return index


def _holdout(plan: Plan) -> Holdout:
    if plan.options.validation != "documents":
        return lambda name: False
    with closing(read_examples(plan.source, plan.progress("looking"))) as seen:
        return choose_holdout((_as_document(example) for example in seen), plan.options.validation_fraction)


def _as_document(example: Example) -> Document:
    """What the choice of a split reads of an example: its name, and that it has text."""
    return Document(example.name, iter(["x"]), lambda: 1)


def _parts(plan: Plan, holdout: Holdout, progress: Progress, digests: Digests | None = None) -> Iterator[Part]:
    """Every example with the split that it is for."""
    for example in read_examples(plan.source, progress, digests):
        yield ("validation" if holdout(example.name) else "train"), example
    if plan.validation is not None:
        for example in read_examples(plan.validation, progress, digests):
            yield "validation", example


def _batches(parts: Iterator[Part]) -> Iterator[list[Part]]:
    batch: list[Part] = []
    characters = 0
    for split, example in parts:
        batch.append((split, example))
        messages = [*example.prompt, *(message for answer in example.answers for message in answer)]
        characters += 64 + sum(len(message["content"]) for message in messages)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _write_batch(
    batch: list[Part],
    template: Template,
    writers: dict[SplitName, ExampleWriter],
    progress: Progress,
    changes: TextChanges,
) -> None:
    encoded = encode_examples(template, [example for _, example in batch], changes)
    for (split, example), documents in zip(batch, encoded, strict=True):
        if isinstance(documents, ValueError):
            progress.bad.skip(documents)
            continue
        try:
            writers[split].add(documents, example.other)
        except (TypeError, ValueError) as error:  # what Parquet may hold and JSON cannot
            progress.bad.skip(ValueError(f"{example.where}: a column is no plain value: {error}; leave it out"))
            continue
        progress.documents += len(documents)
        progress.tokens += sum(len(document.ids) for document in documents)


def _train(plan: Plan, wanted: Wanted, holdout: Holdout, report: Report) -> Tokenizer:
    """The characters of all texts, or a BPE of the training examples'."""
    separator, progress = plan.separator or DEFAULT_SEPARATOR, plan.progress("training the tokenizer")
    texts_of = texts_to_train_on(NAMED[wanted.name])

    def texts(splits: tuple[SplitName, ...], left: int) -> Iterator[str]:
        for split, example in _parts(plan, holdout, progress):
            report(progress)
            for text in texts_of(example) if split in splits else ():
                yield text[:left]
                left -= len(text)
                if left <= 0:
                    return

    if plan.spec == "char":
        everything = texts(SPLITS, 2**62)
        return character_tokenizer({character for text in everything for character in text}, separator=separator)
    return train_bpe(texts(("train",), BPE_SAMPLE_CHARACTERS), int(plan.spec.removeprefix("bpe:")), separator=separator)


def _notes(template: Template) -> list[str]:
    notes = []
    if lacking := template.lacking:
        end = NAMED[template.name].end
        notes.append(
            f"the tokenizer has no {', '.join(token for token in lacking if token != end) or end}: text to it"
            + (f"; in place of {end} the separator ends a turn" if end in lacking else "")
        )
    if "strftime_now" in (template.chat.template or ""):
        notes.append("the template writes the day's date, so that tomorrow's dataset has other tokens")
    return notes


def _chat_text(template: Template) -> str:
    return kept_text(template.chat, template.codec.fingerprint)


def _file(text: str) -> File:
    raw = text.encode("utf-8")
    return File(file=KEPT, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
