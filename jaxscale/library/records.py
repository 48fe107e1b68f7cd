"""`jaxscale.read_records`: what runs and benchmarks left behind, as rows for pandas and CSV. No jax."""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxscale.bench.record import BenchRecord, read_record
from jaxscale.files.jsonl import read_records as read_lines

if TYPE_CHECKING:
    import pandas

METRICS = "metrics.jsonl"


class Records(list[dict[str, Any]]):
    """Rows, each a mapping of names to values; rows of different kinds have different names."""

    @property
    def columns(self) -> list[str]:
        """Every name that a row has, in the order of first appearance."""
        return list(dict.fromkeys(name for row in self for name in row))

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Write the rows to a file, or return them as text. A value that a row lacks is left empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self)
        if path is None:
            return text.getvalue()
        Path(path).write_text(text.getvalue(), encoding="utf-8")
        return None

    def to_pandas(self) -> "pandas.DataFrame":
        """A `pandas.DataFrame`. Raises ValueError where pandas is not installed."""
        try:
            import pandas
        except ModuleNotFoundError:
            raise ValueError("pandas is not installed; `pip install pandas`, or use to_csv") from None
        return pandas.DataFrame(list(self), columns=self.columns)

    def _repr_html_(self) -> str:
        return self.to_pandas()._repr_html_()  # type: ignore[operator]


def read_records(source: str | os.PathLike[str], kind: str | None = None) -> Records:
    """Rows of a run's metrics or of a benchmark's record.

    Args:
        source: a run's directory, a `metrics.jsonl`, or a record of `jaxscale bench` (JSON).
        kind: of a run: rows of this kind only, e.g. `train` or `validation`.

    Raises:
        ValueError: there are no records, or none of this kind.
    """
    path = Path(source)
    if path.is_dir():
        path = path / METRICS
    if not path.is_file():
        raise ValueError(f"{path} is not there; give a run's directory, its {METRICS}, or a record of `jaxscale bench`")
    rows = list(bench_rows(read_record(path))) if path.suffix == ".json" else read_lines(path)
    if not rows:
        raise ValueError(f"{path} holds no records")
    kinds = sorted({str(row.get("kind")) for row in rows})
    records = Records(row for row in rows if kind in (None, row.get("kind")))
    if not records:
        raise ValueError(f"{path} has no records of kind {kind!r}; it has {', '.join(kinds)}")
    return records


def bench_rows(record: BenchRecord) -> Iterator[dict[str, Any]]:
    """A row for each figure: labels, value with unit and basis, and the spread of its samples."""
    about = {"kind": record.kind, "name": record.name, "time": record.time, "device": record.device.kind}
    for row in record.rows:
        if row.error is not None:
            yield about | row.labels | {"error": row.error}
        for name, one in row.figures.items():
            spread = {"low": one.low, "high": one.high, "samples": len(one.samples)}
            yield (
                about | row.labels | {"figure": name, "value": one.value, "unit": one.unit, "basis": one.basis} | spread
            )
