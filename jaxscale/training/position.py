"""Which rows of the data's order come next, whatever the batch size was before and whatever rollbacks left out.

It is counted in rows, not in steps: with another batch size a run goes on at the row after the last one read.
"""

from dataclasses import dataclass
from typing import Any

from jaxscale import config as cfg

COUNTS = ("rows_read", "batch_size", "skipped")


@dataclass(frozen=True)
class Position:
    """Step s, from 0, reads the rows of the order from `s * batch_size + offset` on.

    `skipped` counts the batches that rollbacks have left out, for what is told of them.
    """

    batch_size: int
    offset: int = 0
    skipped: int = 0

    def rows_read(self, step: int) -> int:
        return step * self.batch_size + self.offset

    def past(self, bad: int, *, back_to: int) -> "Position":
        """After a rollback: the step after `back_to` reads what the one after the bad step would have read."""
        left_out = bad - back_to
        return Position(self.batch_size, self.offset + left_out * self.batch_size, self.skipped + left_out)

    def as_data(self, step: int) -> dict[str, int]:
        """As a checkpoint keeps it."""
        return {"rows_read": self.rows_read(step)} | ({"skipped": self.skipped} if self.skipped else {})


def about_data(config: cfg.Config, rows: Any) -> dict[str, Any]:
    """What decides which row is where in the order, as a checkpoint keeps it beside the position."""
    data = config.data
    about = {"seed": config.seed, "batch_size": data.batch_size, "seq_len": data.seq_len, "path": data.path}
    return about | {"fingerprint": rows.fingerprint, "content": rows.content, "rows": len(rows)}


def read_position(data: dict[str, Any], step: int, batch_size: int) -> Position:
    """Where a run of this batch size goes on after a checkpoint."""
    return Position(batch_size, rows_read(data, step, batch_size) - step * batch_size, data.get("skipped", 0))


def rows_read(data: dict[str, Any], step: int, batch_size: int) -> int:
    """Of a checkpoint's `data` at a step; one from before it was kept tells its batch size and the batches left out.

    Args:
        batch_size: the run's, where the checkpoint tells none.
    """
    if "rows_read" in data:
        read: int = data["rows_read"]
        return read
    skipped: int = data.get("skipped", 0)
    size: int = data.get("batch_size", batch_size)
    return (step + skipped) * size


def require_position(data: dict[str, Any]) -> None:
    """ValueError for what cannot be counted with."""
    for key in COUNTS:
        value = data.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**62:
            raise ValueError(f"its metadata has {key} {value!r}, which is no number of rows")
