"""The record that `ladder run` writes, read as rows of quantities."""

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from jaxscale.files.reading import parse_json


class Metric(BaseModel):
    model_config = ConfigDict(extra="allow")
    value: float
    n: int = 0
    sharp: bool = False


class Measured(BaseModel):
    """One ability at one checkpoint. Sharp metrics are right or wrong; others are continuous."""

    model_config = ConfigDict(extra="allow")
    ability: str
    shots: int = 0
    metrics: dict[str, Metric] = {}


class Rung(BaseModel):
    """One run of a ladder; loss in nats a token on held-out text, FLOPs of all training."""

    model_config = ConfigDict(extra="allow")
    name: str
    seed: int = 0
    held_out: bool = False
    parameters: float
    parameters_with_embeddings: float | None = None
    tokens: float
    unique_tokens: float | None = None
    flops: float
    loss: float | None
    curve: list[tuple[float, float]] = []
    abilities: list[Measured] = []


class Record(BaseModel):
    model_config = ConfigDict(extra="allow")
    kind: Literal["ladder"]
    name: str = ""
    rungs: list[Rung]


def read_ladder(path: Path, *, ability: str | None, embeddings: bool) -> list[dict[str, Any]]:
    """Rows of a ladder's record, for `table.make_table`.

    Raises:
        ValueError: the file is no ladder's record, or a rung has not what is asked for.
    """
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; give a ladder's record, a CSV or Parquet") from None
    except ValueError as error:
        raise ValueError(f"{path} is no ladder's record: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or values.get("kind") != "ladder":
        raise ValueError(f"{path} is no ladder's record, which has kind: ladder; give what `jaxscale ladder run` wrote")
    try:
        record = Record.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is damaged: {place}: {first['msg'].lower()}; run the ladder again") from None
    return [row_of(rung, path, ability, embeddings) for rung in record.rungs]


def row_of(rung: Rung, path: Path, ability: str | None, embeddings: bool) -> dict[str, Any]:
    row = rung.model_dump(include={"name", "seed", "held_out", "parameters", "tokens", "flops", "loss"})
    row["unique_tokens"] = rung.unique_tokens
    if embeddings:
        if rung.parameters_with_embeddings is None:
            raise ValueError(f"{path}: {rung.name} has no parameters_with_embeddings; leave --with-embeddings out")
        row["parameters"] = rung.parameters_with_embeddings
    if rung.curve:
        row["curve"] = tuple((t, loss) for t, loss in rung.curve if math.isfinite(loss) and t > 0 < loss)
    if ability is not None:
        row |= ability_of(rung, path, ability)
    return row


def ability_of(rung: Rung, path: Path, ability: str) -> dict[str, float]:
    """The first continuous metric (nats or bits, as the record has it) and the first sharp one of an ability."""
    there = sorted({one.ability for one in rung.abilities})
    one = next((one for one in rung.abilities if one.ability == ability), None)
    if one is None:
        have = f"it has {', '.join(there)}" if there else "it has none"
        raise ValueError(f"{path}: {rung.name} has no ability {ability}; {have}")
    sharp = [m.value for m in one.metrics.values() if m.sharp]
    smooth = [one.metrics["nll"].value] if "nll" in one.metrics else []
    if not sharp or not smooth:
        raise ValueError(f"{path}: {rung.name}: {ability} needs the metric nll and a sharp one, as exact or choice")
    return {"bits_per_byte": smooth[0], "accuracy": sharp[0]}
