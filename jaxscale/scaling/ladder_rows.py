"""A ladder's record as rows of quantities, for `table.make_table`."""

import math
from pathlib import Path
from typing import Any

from jaxscale.scaling.record import LadderRecord, Run

FIELDS = {"name", "seed", "held_out", "parameters", "tokens", "flops", "loss", "unique_tokens"}


def ladder_rows(record: LadderRecord, path: Path, *, ability: str | None, embeddings: bool) -> list[dict[str, Any]]:
    """Raises ValueError for a rung that has not what is asked for; `path` is for the message."""
    return [row_of(rung, path, ability, embeddings) for rung in record.rungs]


def row_of(rung: Run, path: Path, ability: str | None, embeddings: bool) -> dict[str, Any]:
    row = rung.model_dump(include=FIELDS)
    if embeddings:
        if rung.parameters_with_embeddings is None:
            raise ValueError(f"{path}: {rung.name} has no parameters_with_embeddings; leave --with-embeddings out")
        row["parameters"] = rung.parameters_with_embeddings
    if rung.curve:
        row["curve"] = tuple((t, loss) for t, loss in rung.curve if math.isfinite(loss) and t > 0 < loss)
    if ability is not None:
        row |= ability_of(rung, path, ability)
    return row


def ability_of(rung: Run, path: Path, ability: str) -> dict[str, float]:
    """The bits per byte of an ability's right answer, and its first sharp metric."""
    there = sorted({one.ability for one in rung.abilities})
    one = next((one for one in rung.abilities if one.ability == ability), None)
    if one is None:
        have = f"it has {', '.join(there)}" if there else "it has none"
        raise ValueError(f"{path}: {rung.name} has no ability {ability}; {have}")
    sharp = [m.value for m in one.metrics.values() if m.sharp]
    if not sharp:
        raise ValueError(f"{path}: {rung.name}: {ability} needs a sharp metric, as exact or choice")
    if one.bits_per_byte is None:
        raise ValueError(
            f"{path}: {rung.name}: {ability} has no bits_per_byte, as an earlier version made the record; "
            "run the ladder again in a new directory, or give a table with columns bits_per_byte and accuracy"
        )
    return {"bits_per_byte": one.bits_per_byte, "accuracy": sharp[0]}
