"""The runs that a law is fitted to, as columns. They come from a ladder's record, a CSV or a Parquet file.

Dims: n runs. What is wrong with a row is a ValueError that names the row.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale.scaling.columns import could_be, quantities
from jaxscale.scaling.ladder_rows import ladder_rows
from jaxscale.scaling.record import LARGEST, read_ladder_record

LARGEST_FILE = 100_000_000  # bytes of a CSV, which is read whole
FLOPS = 6  # C = 6 N D
NUMBERS = ("parameters", "tokens", "flops", "loss", "unique_tokens", "bits_per_byte", "accuracy")
YES, NO = ("1", "true", "yes"), ("", "0", "false", "no", "none", "null")
Array = np.ndarray
Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Table:
    """Columns of n runs; NaN for what a run does not have.

    Attributes:
        parameters, tokens, flops: N, D and C = 6 N D, where the file does not say C.
        loss: nats per token on held-out text. `bits_per_byte` and `accuracy` are of a task.
        held_out: runs that the law does not see, and that it is tested on.
        counts: whether N is `without` or `with` embeddings; `unknown` for a file that does not say.
        curves: of each run its (tokens, loss) while it trained; empty where the file has none.
        form: of the law that the runs are for; `none` for a ladder of abilities alone.
        not_read: columns of the file that mean nothing here.
    """

    source: str
    names: tuple[str, ...]
    parameters: Array
    tokens: Array
    flops: Array
    loss: Array
    unique_tokens: Array
    seeds: tuple[int, ...]
    held_out: Array
    bits_per_byte: Array
    accuracy: Array
    counts: str = "unknown"
    curves: tuple[Curve, ...] = ()
    form: str = "chinchilla"
    not_read: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Array) -> "Table":
        """The rows of a boolean mask [n]."""
        kept = [i for i, keep in enumerate(rows) if keep]
        columns: dict[str, Any] = {name: getattr(self, name)[kept] for name in (*NUMBERS, "held_out")}
        curves = tuple(self.curves[i] for i in kept) if self.curves else ()
        return replace(
            self,
            names=tuple(self.names[i] for i in kept),
            seeds=tuple(self.seeds[i] for i in kept),
            curves=curves,
            **columns,
        )

    @property
    def fitted(self) -> "Table":
        return self.take(~self.held_out)

    @property
    def rungs(self) -> Array:
        """Of each run, which rung it is [n]: runs that differ in their seed alone are one rung."""
        keys = list(zip(self.parameters, self.tokens, self.flops, self.unique_tokens, strict=True))
        shown = [tuple(None if math.isnan(x) else x for x in key) for key in keys]
        order = {key: i for i, key in enumerate(dict.fromkeys(shown))}
        return np.array([order[key] for key in shown], int)


def read_table(
    path: Path, *, columns: Mapping[str, str] | None = None, ability: str | None = None, embeddings: bool = False
) -> Table:
    """The runs of a file: a ladder's record (`.json`), a Parquet file, or else a CSV.

    Args:
        columns: quantity -> its column, where the names do not say it.
        ability: of a ladder's record, the one whose values are `bits_per_byte` and `accuracy`.
        embeddings: N counts embeddings: a record's other column, and what is said of a CSV.

    Raises:
        ValueError: a file that cannot be read, or a row that cannot be.
    """
    if path.suffix == ".json":
        if columns:
            raise ValueError(f"--column: {path} is a ladder's record, whose columns are known; leave it out")
        record = read_ladder_record(path)
        rows = ladder_rows(record, path, ability=ability, embeddings=embeddings)
        return replace(make_table(rows, str(path), counts="with" if embeddings else "without"), form=record.law)
    if ability is not None:
        raise ValueError(f"--ability {ability}: {path} is no ladder's record; give columns bits_per_byte and accuracy")
    names, lines = parquet_rows(path) if path.suffix == ".parquet" else csv_rows(path)
    column_of = quantities(names, columns or {}, str(path))
    known = sum(name in column_of for name in ("parameters", "tokens", "flops"))
    if known < 1 or not {"loss", "bits_per_byte"} & set(column_of):
        raise ValueError(
            f"{path}: a law needs loss and two of parameters, tokens and flops (flops alone for --form compute); "
            f"{could_be(names)}; rename them, or give --column QUANTITY=COLUMN"
        )
    rows = [{quantity: line[column] for quantity, column in column_of.items()} for line in lines]
    extra = tuple(name for name in names if name not in column_of.values())
    return replace(make_table(rows, str(path), counts="with" if embeddings else "unknown"), not_read=extra)


def csv_rows(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """(names of columns, rows of text) of a CSV with a header."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path} has more than {LARGEST_FILE:,} bytes; give one row for each run")
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file, strict=True) if any(cell.strip() for cell in line)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no CSV in UTF-8 ({error.reason}); convert it") from None
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV: {error}; check its quotes") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; give a ladder's record, a CSV or Parquet") from None
    if not lines:
        raise ValueError(f"{path} is empty; it needs a line with the names of its columns, and a row for each run")
    names = [name.strip() for name in lines[0]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: the column {twice[0]!r} stands there twice; rename one of them")
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(names):
            raise ValueError(f"{path}: row {number} has {len(line)} cells and the header {len(names)}; make them alike")
    return names, [dict(zip(names, line, strict=True)) for line in lines[1:]]


def parquet_rows(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """(names of columns, rows) of a Parquet file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError("reading Parquet needs pyarrow; pip install pyarrow") from None
    try:
        table = parquet.read_table(path)
        return table.column_names, table.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ValueError(f"cannot read {path} as Parquet: {' '.join(str(error).split())}; check the file") from None


def make_table(rows: Sequence[Mapping[str, Any]], source: str, *, counts: str = "unknown") -> Table:
    """A table of rows of quantities, each checked.

    Raises:
        ValueError: a value that is no number above 0, or two runs of the same rung and seed.
    """
    values = {name: np.array([number(row, i, name, source) for i, row in enumerate(rows, 1)]) for name in NUMBERS}
    N, D, C = values["parameters"], values["tokens"], values["flops"]
    values["flops"] = np.where(np.isnan(C), FLOPS * N * D, C)
    values["tokens"] = np.where(np.isnan(D), C / (FLOPS * N), D)
    values["parameters"] = np.where(np.isnan(N), C / (FLOPS * D), N)
    names = tuple(str(row.get("name") or f"row {i}") for i, row in enumerate(rows, 1))
    seeds = tuple(seed_of(row, i, source) for i, row in enumerate(rows, 1))
    held = np.array([truth(row, i, source) for i, row in enumerate(rows, 1)], bool)
    curves = tuple(row.get("curve", ()) for row in rows) if any("curve" in row for row in rows) else ()
    columns: dict[str, Any] = values | {"held_out": held}
    table = Table(source, names, seeds=seeds, counts=counts, curves=curves, **columns)
    require_once(table)
    require_held_out_above(table)
    return table


def number(row: Mapping[str, Any], i: int, name: str, source: str) -> float:
    """A number above 0, or NaN for a quantity that the file does not have. Losses must be there in every row."""
    if name not in row:
        return math.nan
    value = row[name]
    if value is None or (isinstance(value, str) and not value.strip()):
        if name in ("unique_tokens", "bits_per_byte", "accuracy"):
            return math.nan
        raise ValueError(f"{source}: row {i} has no {name}; give it, or leave the row out")
    try:
        parsed = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{source}: row {i}: {name} is {str(value)[:40]!r}, not a number; write e.g. 1.5e9") from None
    low = 0.0 if name == "accuracy" else 1 / LARGEST
    if not low <= parsed < LARGEST:
        raise ValueError(
            f"{source}: row {i}: {name} is {str(value)[:40]}; it must be a finite number above 0, so leave the row out"
        )
    if name == "accuracy" and parsed > 1:
        raise ValueError(
            f"{source}: row {i}: accuracy is {parsed:g}; it is a share, from 0 to 1: divide percents by 100"
        )
    return parsed


def seed_of(row: Mapping[str, Any], i: int, source: str) -> int:
    value = row.get("seed")
    try:
        return 0 if value in (None, "") else int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{source}: row {i}: seed is {str(value)[:40]!r}; it must be a whole number") from None


def truth(row: Mapping[str, Any], i: int, source: str) -> bool:
    value = str(row.get("held_out") if row.get("held_out") is not None else "").strip().lower()
    if value not in (*YES, *NO):
        raise ValueError(f"{source}: row {i}: held_out is {value[:40]!r}; write true or false")
    return value in YES


def require_once(table: Table) -> None:
    """Two runs of the same rung differ in their seed, or one is a copy. Rows of a curve are another matter."""
    seen: dict[tuple[int, int], str] = {}
    for name, rung, seed in zip(table.names, table.rungs.tolist(), table.seeds, strict=True):
        if (rung, seed) in seen:
            raise ValueError(
                f"{table.source}: {seen[rung, seed]} and {name} have the same parameters, tokens and seed {seed}; "
                "leave one out, or give each its seed"
            )
        seen[rung, seed] = name


def require_held_out_above(table: Table) -> None:
    """A law is tested above what it saw: there it is used."""
    if not table.held_out.any() or table.held_out.all():
        return
    fitted = np.where(table.held_out, -np.inf, table.flops).argmax()
    for i in np.flatnonzero(table.held_out):
        if table.flops[i] < table.flops[fitted]:
            raise ValueError(
                f"{table.source}: {table.names[i]} is held out with {table.flops[i]:.3g} FLOPs, below the "
                f"{table.flops[fitted]:.3g} of {table.names[fitted]}, which is fitted; hold out the largest"
            )


def hold_out(table: Table, what: str) -> Table:
    """The table with its largest rungs held out, by FLOPs: `largest` is one rung, a number so many.

    Raises:
        ValueError: another word, or no rung would be left.
    """
    try:
        many = 1 if what == "largest" else int(what)
    except ValueError:
        many = 0
    rungs = table.rungs
    sizes = {rung: table.flops[rungs == rung][0] for rung in dict.fromkeys(rungs.tolist())}
    if not 0 < many < len(sizes):
        raise ValueError(
            f"--hold-out {what}: give `largest`, or how many of the {len(sizes)} rungs are held out, at least 1 left"
        )
    largest = sorted(sizes, key=lambda rung: sizes[rung])[-many:]
    return replace(table, held_out=np.isin(rungs, largest) | table.held_out)
