"""Where text comes from: the documents in the files of a corpus, read one piece at a time.

Nothing here holds more than a chunk of a text file, a line of JSONL or a record batch of Parquet.
Knows nothing of tokens.
"""

import codecs
import hashlib
import sysconfig
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxscale.data.files import SourceFile, Unread, contents, file_sha256, find, sorted_files, walk
from jaxscale.data.parquet import parquet_texts
from jaxscale.data.progress import BadRecord, Progress, Report
from jaxscale.files.reading import parse_json

NAMED = {"jsonl": (".jsonl", ".json", ".ndjson"), "parquet": (".parquet", ".pq")}  # of a folder; text: any name
CHUNK = 2**16  # bytes of a file, characters of a text
_STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}


class Document(NamedTuple):
    """One document: a name that is stable across machines, its text in order, to be read once, and its length.

    ``characters()`` may read a file once more.
    """

    name: str
    chunks: Iterator[str]
    characters: Callable[[], int]


@dataclass(frozen=True)
class Source:
    """The files of a corpus, sorted by name; ``field`` is the JSONL field or Parquet column that holds the text.

    ``unread`` are the files of its folders that are none of the corpus.
    """

    kind: str
    files: tuple[SourceFile, ...]
    field: str | None = None
    unread: tuple[Unread, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def text_source(paths: Sequence[str | Path]) -> Source:
    """UTF-8 text, each file one document. ``paths`` are files, directories (read recursively), patterns or URLs."""
    listing = find(paths)
    return Source("text", listing.files, unread=listing.unread)


def jsonl_source(paths: Sequence[str | Path], *, field: str = "text") -> Source:
    """JSON lines, each non-blank line one document: an object whose ``field`` is a string."""
    listing = find(paths, suffixes=NAMED["jsonl"])
    return Source("jsonl", listing.files, field, listing.unread)


def parquet_source(paths: Sequence[str | Path], *, column: str = "text") -> Source:
    """Parquet, each row one document: the string in ``column``. Needs pyarrow."""
    listing = find(paths, suffixes=NAMED["parquet"])
    return Source("parquet", listing.files, column, listing.unread)


def stdlib_source(root: str | Path | None = None) -> Source:
    """The ``.py`` sources of the running Python's standard library, each file one document.

    Tests, idlelib and site-packages are left out. A file that is not UTF-8 is skipped and counted (everywhere
    else it is an error: here the user has not chosen the files). ``root`` reads another directory the same way.
    """
    root = Path(root or sysconfig.get_path("stdlib"))
    modules = [(name, path) for name, path in walk(root, leave_out=_STDLIB_LEFT_OUT) if name.endswith(".py")]
    if not modules:
        raise ValueError(f"no .py files under {root}, where Python's standard library should be; use --text FILES")
    return Source("stdlib", sorted_files(modules))


Digests = dict[SourceFile, str]


def documents(source: Source, progress: Progress, digests: Digests | None = None) -> Generator[Document, None, None]:
    """Every document once, in file order; adds the bytes read to ``progress`` as it goes.

    The chunks of a document must be read before the next document is asked for. What cannot be read goes to
    ``progress.bad``; ``digests`` takes the sha256 of each file that was read from end to end.

    Raises:
        ValueError: a file that cannot be read or is not UTF-8, a bad line (``file:line``), a missing field.
    """
    read = {"text": _read_text, "stdlib": _read_stdlib, "jsonl": _read_jsonl, "parquet": _read_parquet}[source.kind]
    for file in source.files:
        yield from read(file, source.field, progress, digests)


def names_sha256(source: Source) -> str:
    """The corpus as its file names and sizes tell it: cheap, reads no file."""
    lines = [f"{file.name}\0{file.size_bytes}\n" for file in source.files]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def content_sha256(source: Source, report: Report = lambda progress: None, digests: Digests | None = None) -> str:
    """The corpus as its names and contents tell it: reads every byte of the files that ``digests`` lacks."""
    digest = hashlib.sha256()
    known = digests or {}
    progress = Progress("hashing", sum(file.size_bytes for file in source.files if file not in known))
    for file in source.files:
        content = known.get(file)
        if content is None:
            content = file_sha256(file)
            progress.bytes_read += file.size_bytes
            report(progress)
        digest.update(f"{file.name}\0{content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _read_text(file: SourceFile, field: str | None, progress: Progress, digests: Digests | None) -> Iterator[Document]:
    if progress.bad.allowed:  # a file must be known to be whole before any of it is used
        try:
            _characters(file)
        except BadRecord as error:
            progress.bytes_read += file.size_bytes
            progress.bad.skip(error)
            return

    def chunks() -> Iterator[str]:
        try:
            yield from _text_chunks(file, progress, digests)
        except BadRecord as error:
            progress.bad.skip(error)

    yield Document(file.name, chunks(), lambda: _characters(file))


def _characters(file: SourceFile) -> int:
    return sum(map(len, _text_chunks(file)))


def _text_chunks(file: SourceFile, progress: Progress | None = None, digests: Digests | None = None) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    read_bytes = 0
    with contents(file, progress, digests) as stream:
        while True:
            chunk = stream.read(CHUNK)
            read_bytes += len(chunk)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                at = read_bytes - len(error.object) + error.start
                raise BadRecord(
                    f"{file.shown} is not UTF-8 at byte {at}; convert it to UTF-8 or leave it out"
                ) from None
            if text:
                yield text
            if not chunk:
                return


def _read_stdlib(
    file: SourceFile, field: str | None, progress: Progress, digests: Digests | None
) -> Iterator[Document]:
    with contents(file, progress, digests) as stream:
        raw = stream.read()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        progress.undecodable_files += 1
        return
    yield _document(file.name, text)


def json_objects(
    file: SourceFile, progress: Progress, digests: Digests | None
) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """The line number and the object of each line of JSON; what is no such line goes to ``progress.bad``."""
    try:
        with contents(file, progress, digests) as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                try:
                    record = _json_object(line, where=f"{file.shown}:{number}")
                except ValueError as error:
                    progress.bad.skip(error)
                else:
                    yield number, record
    except BadRecord as error:  # cut short: what came before it is used
        progress.bad.skip(error)


def _json_object(line: bytes, *, where: str) -> dict[str, Any]:
    try:
        record = parse_json(line.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}; each line must be one JSON object") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where} is a JSON {type(record).__name__}, not an object; each line must be one object")
    return record


def _read_jsonl(file: SourceFile, field: str | None, progress: Progress, digests: Digests | None) -> Iterator[Document]:
    with closing(json_objects(file, progress, digests)) as records:
        for number, record in records:
            try:
                text = _text_of(record, field, where=f"{file.shown}:{number}")
            except ValueError as error:
                progress.bad.skip(error)
            else:
                yield _document(f"{file.name}:{number}", text)


def _text_of(record: dict[str, Any], field: str | None, *, where: str) -> str:
    if field not in record:
        raise ValueError(f"{where} has no field {field!r}, only {', '.join(map(repr, record))}; name one with --field")
    text = record[field]
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"{where}: field {field!r} is a {type(text).__name__}, not a string; name another with --field"
        )
    try:
        (text or "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: field {field!r} holds half a surrogate pair, which is no text; repair it"
        ) from error
    return text or ""


def _read_parquet(
    file: SourceFile, field: str | None, progress: Progress, digests: Digests | None
) -> Iterator[Document]:
    assert field is not None
    for row, text in enumerate(parquet_texts(file, field, progress)):
        if isinstance(text, BadRecord):
            progress.bad.skip(text)
        else:
            yield _document(f"{file.name}:{row}", text)


def _document(name: str, text: str) -> Document:
    return Document(name, (text[i : i + CHUNK] for i in range(0, len(text), CHUNK)), lambda: len(text))
