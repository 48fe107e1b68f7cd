"""The texts in a column of a Parquet file, a record batch at a time. Knows nothing of documents; needs pyarrow."""

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import Any

from jaxscale.data.files import SourceFile, opened
from jaxscale.data.progress import BadRecord, Progress

BATCH_ROWS = 256


def parquet_texts(file: SourceFile, column: str, progress: Progress) -> Iterator[str | BadRecord]:
    """The text of each row; "" for null, and a BadRecord for what is not UTF-8."""
    row = 0
    for batch in _batches(file, progress, column):
        for value in _values(batch.column(0)):
            yield _text(value, f"{file.shown}: row {row}")
            row += 1


def parquet_records(file: SourceFile, progress: Progress) -> Generator[dict[str, Any] | BadRecord, None, None]:
    """All columns of each row; a BadRecord for a row with text that is not UTF-8."""
    row = 0
    for batch in _batches(file, progress, None):
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [_record(batch.slice(i, 1), f"{file.shown}: row {row + i}") for i in range(batch.num_rows)]
        yield from rows
        row += batch.num_rows


def _record(batch: Any, where: str) -> dict[str, Any] | BadRecord:
    try:
        record: dict[str, Any] = batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return BadRecord(f"{where} is not UTF-8: {error}; convert it or leave it out")
    return record


def _batches(file: SourceFile, progress: Progress, column: str | None) -> Iterator[Any]:
    """Record batches of a file: of one column that holds text, or of all."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError("reading Parquet needs pyarrow; pip install pyarrow") from None
    with ExitStack() as stack:
        where: Any = stack.enter_context(opened(file.path)) if isinstance(file.path, str) else file.path
        try:
            table = stack.enter_context(parquet.ParquetFile(where))
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"cannot read {file.shown} as Parquet: {error}; check the file or leave it out") from error
        if column is not None:
            _check_column(file, column, {one.name: one.type for one in table.schema_arrow})
        row, num_rows = 0, max(table.metadata.num_rows, 1)
        begun = progress.bytes_read
        batches = table.iter_batches(batch_size=BATCH_ROWS, columns=None if column is None else [column])
        while True:
            try:
                batch = next(batches, None)
            except (OSError, pyarrow.ArrowException) as error:
                raise ValueError(f"cannot read {file.shown} after row {row}: {error}; get it again") from error
            if batch is None:
                return
            yield batch
            row += batch.num_rows
            progress.bytes_read = begun + file.size_bytes * row // num_rows


def _check_column(file: SourceFile, column: str, columns: dict[str, Any]) -> None:
    if column not in columns:
        raise ValueError(f"{file.shown} has no column {column!r}, only {', '.join(columns)}; name one with --column")
    if not holds_text(columns[column]):
        raise ValueError(
            f"{file.shown}: column {column!r} is {columns[column]}, not string; name another with --column"
        )


def holds_text(kind: Any) -> bool:
    """Whether a column of this Arrow type holds text: strings or bytes in any layout, or a dictionary of them."""
    from pyarrow import types

    kind = getattr(kind, "storage_type", kind)  # an extension's
    if types.is_dictionary(kind):
        kind = kind.value_type
    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "fixed_size_binary")
    return any(check(kind) for name in names if (check := getattr(types, f"is_{name}", None)))


def _values(column: Any) -> Iterator[Any]:
    """The values of a column; the error in place of a string that is not UTF-8."""
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        values = [_value(scalar) for scalar in column]
    yield from values


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


def _text(value: Any, where: str) -> str | BadRecord:
    try:
        if isinstance(value, UnicodeDecodeError):
            raise value
        return (value.decode("utf-8") if isinstance(value, bytes) else value) or ""
    except UnicodeDecodeError as error:
        return BadRecord(f"{where} is not UTF-8: {error}; convert it or leave it out")
