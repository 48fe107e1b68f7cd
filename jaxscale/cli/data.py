"""The `data` verbs: datasets out of text, and what is in one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from jaxscale.data.sources import Source

PLACE = 2
EXAMPLE = "jaxscale data prepare --text 'books/*.txt' --out data/books"
app = typer.Typer(
    no_args_is_help=True, suggest_commands=False, help="Make datasets and inspect them.", rich_markup_mode=None
)


# the options of `prepare`
Files = list[str] | None
Text = Annotated[Files, typer.Option(help="Text: a file, folder, glob or URL. Each file is a document.")]
Lines = Annotated[Files, typer.Option(help="JSON lines. Each line is a document.")]
Field = Annotated[str, typer.Option(help="With --jsonl: the field that holds the text.")]
Tables = Annotated[Files, typer.Option(help="Parquet files. Each row is a document.")]
Column = Annotated[str, typer.Option(help="With --parquet: the column that holds the text.")]
Chat = Annotated[Files, typer.Option(help="Conversations (JSON lines, Parquet): messages, or prompt and completion.")]
Pairs = Annotated[
    Files, typer.Option(help="Preference pairs (same files): chosen and rejected, with or without prompt.")
]
Prompts = Annotated[Files, typer.Option(help="Prompts to sample answers to (same files). Other columns are kept.")]
TEMPLATES = "For --chat, --pairs, --prompts: chatml, llama3, qwen3, plain, or own (the tokenizer's)."
Stdlib = Annotated[bool, typer.Option("--stdlib", help="This Python's standard library, which is always there.")]
TOKENIZERS = "byte, char, bpe:N (trained on the text), a tokenizer.json or a directory with one."
BY_NAME = "Share of documents held out for validation, chosen by name; by default .01."
TAIL = "Instead: hold out this share at the end of each document."
TEXT_HELD_OUT = "Instead: text files for the validation split."
LINES_HELD_OUT = "Instead: JSON lines for the validation split."


@app.command()
def prepare(
    out: Annotated[Path, typer.Option(help="The dataset's directory. It is written completely or not at all.")],
    text: Text = None,
    jsonl: Lines = None,
    field: Field = "text",
    parquet: Tables = None,
    column: Column = "text",
    chat: Chat = None,
    pairs: Pairs = None,
    prompts: Prompts = None,
    stdlib: Stdlib = False,
    template: Annotated[str | None, typer.Option(help=TEMPLATES)] = None,
    tokenizer: Annotated[str, typer.Option(help=TOKENIZERS)] = "byte",
    separator: Annotated[str | None, typer.Option(help="The token that begins each document.")] = None,
    validation_fraction: Annotated[float | None, typer.Option(help=BY_NAME)] = None,
    validation_tail: Annotated[float | None, typer.Option(help=TAIL)] = None,
    validation_text: Annotated[Files, typer.Option(help=TEXT_HELD_OUT)] = None,
    validation_jsonl: Annotated[Files, typer.Option(help=LINES_HELD_OUT)] = None,
    shard_tokens: Annotated[int, typer.Option(help="Maximum tokens per shard file.")] = 2**27,
    skip_bad: Annotated[int, typer.Option(help="Skip up to this many unreadable records.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing dataset.")] = False,
) -> None:
    """Turn text or conversations into token shards with an index and checksums. Data is streamed: memory stays flat.

    Reads .gz, .zst, .bz2 and .xz, and s3://, gs:// and https:// URLs.
    """
    from jaxscale.console import data as console_data

    examples = {"conversations": chat, "pairs": pairs, "prompts": prompts}
    source = one_source(text, jsonl, field, parquet, column, examples, stdlib=stdlib)
    kind = next((kind for kind, files in examples.items() if files), None)
    validation = validation_source(kind, validation_text, validation_jsonl, field)
    alike: dict[str, Any] = {
        "validation_fraction": validation_fraction,
        "validation": validation,
        "separator": separator,
        "shard_tokens": shard_tokens,
        "skip_bad": skip_bad,
        "overwrite": overwrite,
    }
    if kind is None:
        from jaxscale.data.prepare import prepare as run

        if template is not None:
            raise ValueError("--template is of conversations; give --chat, --pairs or --prompts too")
        summary = run(source(), tokenizer, out, validation_tail=validation_tail, **alike)
    else:
        from jaxscale.data.examples.prepare import prepare_examples

        if validation_tail is not None:
            raise ValueError(f"--validation-tail is of text; {kind} are held out whole, by --validation-fraction")
        summary = prepare_examples(source(), tokenizer, out, template=template, **alike)
    console_data.show_summary(summary)


def validation_source(kind: Any, text: list[str] | None, jsonl: list[str] | None, field: str) -> "Source | None":
    """What is the validation split, where it is given: of the same kind as the rest."""
    from jaxscale.data import sources
    from jaxscale.data.examples.reading import examples_source

    if text and jsonl:
        raise ValueError("--validation-text and --validation-jsonl are both given; give one of them")
    if text:
        if kind is not None:
            raise ValueError(f"--validation-text is of text; give {kind} for validation with --validation-jsonl")
        return sources.text_source(text)
    if not jsonl:
        return None
    return sources.jsonl_source(jsonl, field=field) if kind is None else examples_source(kind, jsonl)


def one_source(
    text: list[str] | None,
    jsonl: list[str] | None,
    field: str,
    parquet: list[str] | None,
    column: str,
    examples: dict[str, list[str] | None],
    *,
    stdlib: bool,
) -> "Callable[[], Source]":
    """What makes the one source that is given; a ValueError for none or several."""
    from jaxscale.data import sources
    from jaxscale.data.examples.reading import examples_source

    given: list[Callable[[], Source]] = []
    if text:
        given.append(lambda: sources.text_source(text))
    if jsonl:
        given.append(lambda: sources.jsonl_source(jsonl, field=field))
    if parquet:
        given.append(lambda: sources.parquet_source(parquet, column=column))
    for kind, files in examples.items():
        if files:
            given.append(partial(examples_source, kind, files))  # type: ignore[arg-type]
    if stdlib:
        given.append(sources.stdlib_source)
    if len(given) != 1:
        raise ValueError(
            f"{len(given)} sources given; give exactly one of --text, --jsonl, --parquet, --chat, --pairs, --prompts, "
            "--stdlib"
        )
    return given[0]


@app.command()
def show(
    directory: Annotated[Path, typer.Argument(help="A dataset that `data prepare` made.")],
    documents: Annotated[int, typer.Option(min=0, help="Documents of each split to show as text.")] = 3,
    characters: Annotated[int, typer.Option(min=1, help="Maximum characters of each.")] = 400,
) -> None:
    """Show what a dataset holds: documents and tokens of each split, and some documents as text."""
    from jaxscale.console import data as console_data

    console_data.show_dataset(directory, documents=documents, characters=characters)


@app.command()
def abilities(
    names: Annotated[str, typer.Argument(help="Abilities to write documents for, e.g. copy,count,parity.")],
    out: Annotated[Path, typer.Option(help="The JSON lines file to write, for `data prepare --jsonl`.")],
    count: Annotated[int, typer.Option(min=1, help="Total number of documents.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the documents.")] = 0,
    library: Annotated[
        bool, typer.Option("--library", help="Add the files of Python's standard library that are not held out.")
    ] = False,
) -> None:
    """Write text that teaches abilities. It contains no example that `evaluate --tasks` asks."""
    import json

    from jaxscale.abilities import documents, library_text
    from jaxscale.files.whole import write_whole

    if out.exists():
        raise ValueError(f"{out} exists; remove it, or choose another --out")
    texts = documents([name.strip() for name in names.split(",")], seed, count)
    texts += library_text("train") if library else []
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    print(f"{out}: {len(texts):,} documents, {sum(map(len, texts)):,} characters")
