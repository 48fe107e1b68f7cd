"""Files -> examples, in file order: JSON lines and Parquet, here or in a store. Knows nothing of tokens."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from jaxscale.data.examples.records import Example, Kind, to_example
from jaxscale.data.files import SourceFile, find
from jaxscale.data.parquet import parquet_records
from jaxscale.data.progress import BadRecord, Progress
from jaxscale.data.sources import Digests, Source, json_objects

PARQUET = (".parquet", ".pq")
SUFFIXES = (".jsonl", ".json", ".ndjson", *PARQUET)


def examples_source(kind: Kind, paths: Sequence[str | Path]) -> Source:
    """Records of one kind in JSON lines or Parquet; files, directories, patterns or URLs."""
    listing = find(paths, suffixes=SUFFIXES)
    return Source(kind, listing.files, unread=listing.unread)


def read_examples(source: Source, progress: Progress, digests: Digests | None = None) -> Generator[Example, None, None]:
    """Every example once; what is none goes to ``progress.bad``.

    ``digests`` takes the sha256 of each file that was read from end to end.

    Raises:
        ValueError: a file that cannot be read, or more bad records than are allowed.
    """
    kind = cast(Kind, source.kind)
    for file in source.files:
        with closing(_records(file, progress, digests)) as records:
            for name, where, record in records:
                try:
                    example = to_example(kind, record, name, where)
                except ValueError as error:
                    progress.bad.skip(error)
                else:
                    yield example


Named = tuple[str, str, dict[str, Any]]


def _records(file: SourceFile, progress: Progress, digests: Digests | None) -> Generator[Named, None, None]:
    """Name, place for messages, and values of each record."""
    if file.name.lower().endswith(PARQUET):
        yield from _parquet(file, progress)
        return
    with closing(json_objects(file, progress, digests)) as objects:
        for number, record in objects:
            yield f"{file.name}:{number}", f"{file.shown}:{number}", record


def _parquet(file: SourceFile, progress: Progress) -> Iterator[Named]:
    for row, record in enumerate(parquet_records(file, progress)):
        if isinstance(record, BadRecord):
            progress.bad.skip(record)
        else:
            yield f"{file.name}:{row}", f"{file.shown}: row {row}", record
