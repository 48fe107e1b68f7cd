"""Where text comes from: the documents in the files of a corpus, read one piece at a time.

Nothing here holds more than a piece of a text file, a line of JSONL or a record batch of Parquet.
Knows nothing of tokens.
"""

import codecs
import hashlib
import re
import sysconfig
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxscale.data.files import SourceFile, find, opened, sorted_files, walk
from jaxscale.data.progress import Progress, Report
from jaxscale.reading import parse_json

PIECE_BYTES = 2**16  # small enough that one long document keeps many cores busy
PARQUET_BATCH_ROWS = 256
_STDLIB_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__"}


class Document(NamedTuple):
    """One document: a name that is stable across machines, and its text in order, to be read once."""

    name: str
    pieces: Iterator[str]


@dataclass(frozen=True)
class Source:
    """The files of a corpus, sorted by name; ``field`` is the JSONL field or Parquet column that holds the text."""

    kind: str
    files: tuple[SourceFile, ...]
    field: str | None = None

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def text_source(paths: Sequence[str | Path]) -> Source:
    """UTF-8 text, each file one document. ``paths`` are files, directories (read recursively) or glob patterns."""
    return Source("text", find(paths))


def jsonl_source(paths: Sequence[str | Path], *, field: str = "text") -> Source:
    """JSON lines, each non-blank line one document: an object whose ``field`` is a string."""
    return Source("jsonl", find(paths, suffixes=(".jsonl", ".json", ".ndjson")), field)


def parquet_source(paths: Sequence[str | Path], *, column: str = "text") -> Source:
    """Parquet, each row one document: the string in ``column``. Needs pyarrow."""
    return Source("parquet", find(paths, suffixes=(".parquet",)), column)


def stdlib_source(root: str | Path | None = None) -> Source:
    """The ``.py`` sources of the running Python's standard library, each file one document.

    Tests, idlelib and site-packages are left out. A file that is not UTF-8 is skipped and counted (everywhere
    else it is an error: here the user has not chosen the files). ``root`` reads another directory the same way.
    """
    root = Path(root or sysconfig.get_path("stdlib"))
    found = [(name, path) for name, path in walk(root, leave_out=_STDLIB_LEFT_OUT) if name.endswith(".py")]
    if not found:
        raise ValueError(f"no .py files under {root}, where Python's standard library should be; use --text FILES")
    return Source("stdlib", sorted_files(found))


def documents(source: Source, progress: Progress) -> Generator[Document, None, None]:
    """Every document once, in file order; adds the bytes read to ``progress`` as it goes.

    The pieces of a document must be read before the next document is asked for.

    Raises:
        ValueError: a file that cannot be read or is not UTF-8, a bad line (``file:line``), a missing field.
    """
    read = {"text": _read_text, "stdlib": _read_stdlib, "jsonl": _read_jsonl, "parquet": _read_parquet}[source.kind]
    for file in source.files:
        yield from read(file, source.field, progress)


def names_sha256(source: Source) -> str:
    """The corpus as its file names and sizes tell it: cheap, reads no file."""
    lines = [f"{file.name}\0{file.size_bytes}\n" for file in source.files]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def content_sha256(source: Source, report: Report = lambda progress: None) -> str:
    """The corpus as its names and contents tell it: reads every byte, tokenizes none."""
    digest = hashlib.sha256()
    progress = Progress("hashing", source.size_bytes)
    for file in source.files:
        with opened(file.path) as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name}\0{content}\n".encode("utf-8", "surrogateescape"))
        progress.bytes_read += file.size_bytes
        report(progress)
    return digest.hexdigest()


def _read_text(file: SourceFile, field: str | None, progress: Progress) -> Iterator[Document]:
    yield Document(file.name, _text_pieces(file.path, progress))


def _text_pieces(path: Path, progress: Progress) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    held, read_bytes = "", 0
    with opened(path) as stream:
        while True:
            chunk = stream.read(PIECE_BYTES)
            read_bytes += len(chunk)
            progress.bytes_read += len(chunk)
            try:
                held += decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                at = read_bytes - len(error.object) + error.start
                raise ValueError(f"{path} is not UTF-8 at byte {at}; convert it to UTF-8 or leave it out") from None
            cut = _cut(held) if chunk else len(held)
            if cut:
                yield held[:cut]
            held = held[cut:]
            if not chunk:
                return


def _read_stdlib(file: SourceFile, field: str | None, progress: Progress) -> Iterator[Document]:
    with opened(file.path) as stream:
        raw = stream.read()
    progress.bytes_read += len(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        progress.undecodable_files += 1
        return
    yield Document(file.name, _pieces(text))


def _read_jsonl(file: SourceFile, field: str | None, progress: Progress) -> Iterator[Document]:
    with opened(file.path) as stream:
        for number, line in enumerate(stream, start=1):
            progress.bytes_read += len(line)
            if line.strip():
                text = _json_text(line, field, where=f"{file.path}:{number}")
                yield Document(f"{file.name}:{number}", _pieces(text))


def _json_text(line: bytes, field: str | None, *, where: str) -> str:
    try:
        record = parse_json(line.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}; each line must be one JSON object") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where} is a JSON {type(record).__name__}, not an object; each line must be one object")
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


def _read_parquet(file: SourceFile, field: str | None, progress: Progress) -> Iterator[Document]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError("reading Parquet needs pyarrow; pip install pyarrow") from None
    try:
        table = parquet.ParquetFile(file.path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"cannot read {file.path} as Parquet: {error}; check the file or leave it out") from error
    with table:
        columns = {column.name: column.type for column in table.schema_arrow}
        if field not in columns:
            raise ValueError(f"{file.path} has no column {field!r}, only {', '.join(columns)}; name one with --column")
        if not (pyarrow.types.is_string(columns[field]) or pyarrow.types.is_large_string(columns[field])):
            raise ValueError(
                f"{file.path}: column {field!r} is {columns[field]}, not string; name another with --column"
            )
        row, num_rows = 0, max(table.metadata.num_rows, 1)
        for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=[field]):
            for text in _parquet_texts(batch.column(0), file.path):
                yield Document(f"{file.name}:{row}", _pieces(text))
                row += 1
            progress.bytes_read += file.size_bytes * batch.num_rows // num_rows


def _parquet_texts(column, path: Path) -> list[str]:
    try:
        return [text or "" for text in column.to_pylist()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} holds text that is not UTF-8: {error}; convert it or leave it out") from error


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        piece = text[start : start + PIECE_BYTES]
        if start + len(piece) < len(text):
            piece = piece[: _cut(piece)]
        yield piece
        start += len(piece)


def _cut(text: str) -> int:
    """Where a long text may be cut without changing its tokens.

    A lone newline between two words, or else before a lone space: the usual pre-tokenizers break there anyhow.
    A text with neither is cut at its end.
    """
    for start in (max(0, len(text) - 4096), 0):  # the whole of it only where its tail has no such place
        for pattern in (r"(?<=\S)\n(?=\S)", r"(?<=\S)(?= \S)"):
            ends = [match.end() for match in re.finditer(pattern, text[start:])]
            if ends:
                return start + ends[-1]
    return len(text)
