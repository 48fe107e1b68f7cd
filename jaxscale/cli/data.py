"""The `data` verbs: datasets out of text, and what is in one."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from jaxscale.data.sources import Source

PLACE = 10
app = typer.Typer(
    no_args_is_help=True, suggest_commands=False, help="Make datasets, and look into them.", rich_markup_mode=None
)


@app.command()
def prepare(
    out: Annotated[Path, typer.Option(help="The dataset's directory; made whole or not at all.")],
    text: Annotated[
        list[str] | None, typer.Option(help="Text file, folder, glob or URL; a file is a document.")
    ] = None,
    jsonl: Annotated[list[str] | None, typer.Option(help="JSON lines; a line is a document.")] = None,
    field: Annotated[str, typer.Option(help="With --jsonl: the field that holds the text.")] = "text",
    parquet: Annotated[list[str] | None, typer.Option(help="Parquet files; a row is a document.")] = None,
    column: Annotated[str, typer.Option(help="With --parquet: the column that holds the text.")] = "text",
    stdlib: Annotated[
        bool, typer.Option("--stdlib", help="This Python's standard library, which is always there.")
    ] = False,
    tokenizer: Annotated[
        str, typer.Option(help="byte, char, bpe:N (trained on the text), or a tokenizer.json.")
    ] = "byte",
    separator: Annotated[str | None, typer.Option(help="The token that begins each document.")] = None,
    validation_fraction: Annotated[
        float | None, typer.Option(help="Share of the documents held out, by their names; by default .01.")
    ] = None,
    validation_tail: Annotated[
        float | None, typer.Option(help="Instead: hold out this share of each document, its end.")
    ] = None,
    validation_text: Annotated[
        list[str] | None, typer.Option(help="Instead: text files that are the validation split.")
    ] = None,
    validation_jsonl: Annotated[list[str] | None, typer.Option(help="Instead: JSON lines that are it.")] = None,
    shard_tokens: Annotated[int, typer.Option(help="Most tokens in a shard file.")] = 2**27,
    skip_bad: Annotated[int, typer.Option(help="Leave out up to this many records that cannot be read.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that stands there.")] = False,
) -> None:
    """Text to token shards with an index and checksums. Streams: memory stays flat.

    Reads .gz, .zst, .bz2 and .xz, and s3://, gs:// and https:// URLs.
    """
    from jaxscale.console import data as console_data
    from jaxscale.data import sources
    from jaxscale.data.prepare import prepare as run

    source = one_source(text, jsonl, field, parquet, column, stdlib=stdlib)
    if validation_text and validation_jsonl:
        raise ValueError("--validation-text and --validation-jsonl are both given; give one of them")
    validation: Any = None
    if validation_text:
        validation = sources.text_source(validation_text)
    elif validation_jsonl:
        validation = sources.jsonl_source(validation_jsonl, field=field)
    summary = run(
        source(),
        tokenizer,
        out,
        validation_fraction=validation_fraction,
        validation_tail=validation_tail,
        validation=validation,
        separator=separator,
        shard_tokens=shard_tokens,
        skip_bad=skip_bad,
        overwrite=overwrite,
    )
    console_data.show_summary(summary)


def one_source(
    text: list[str] | None,
    jsonl: list[str] | None,
    field: str,
    parquet: list[str] | None,
    column: str,
    *,
    stdlib: bool,
) -> "Callable[[], Source]":
    """What makes the one source that is given; a ValueError for none or several."""
    from jaxscale.data import sources

    given: list[Callable[[], Source]] = []
    if text:
        given.append(lambda: sources.text_source(text))
    if jsonl:
        given.append(lambda: sources.jsonl_source(jsonl, field=field))
    if parquet:
        given.append(lambda: sources.parquet_source(parquet, column=column))
    if stdlib:
        given.append(sources.stdlib_source)
    if len(given) != 1:
        raise ValueError(f"{len(given)} sources given; give exactly one of --text, --jsonl, --parquet, --stdlib")
    return given[0]


@app.command()
def show(
    directory: Annotated[Path, typer.Argument(help="A dataset that `data prepare` made.")],
    documents: Annotated[int, typer.Option(min=0, help="How many of each split to show as text.")] = 3,
    characters: Annotated[int, typer.Option(min=1, help="Most characters of each.")] = 400,
) -> None:
    """What a dataset holds: documents and tokens of each split, and some documents as text."""
    from jaxscale.console import data as console_data

    console_data.show_dataset(directory, documents=documents, characters=characters)


@app.command()
def abilities(
    names: Annotated[str, typer.Argument(help="Abilities whose documents stand in turn, as copy,count,parity.")],
    out: Annotated[Path, typer.Option(help="A file of JSON lines, for `data prepare --jsonl`.")],
    count: Annotated[int, typer.Option(min=1, help="How many documents of them all together.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the documents.")] = 0,
    library: Annotated[
        bool, typer.Option("--library", help="And the files of Python's standard library that are not held out.")
    ] = False,
) -> None:
    """Text that teaches abilities; none of it is an example that `evaluate --tasks` asks."""
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
