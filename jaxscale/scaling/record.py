"""The record of a ladder, JSON: what `ladder run` writes and `law`, `report` read. No jax."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jaxscale.config.errors import describe
from jaxscale.config.values import Positive
from jaxscale.files.reading import parse_json

Number = Annotated[float, Field(ge=-1e12, le=1e12)]  # of a metric
LARGEST = 1e60  # of a size, so that products of them are numbers too
Size = Annotated[float, Field(gt=0, lt=LARGEST)]
LADDER = "ladder"  # the kind that a record says it is


class Part(BaseModel):
    """A part of the record; a later version may add keys."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class Metric(Part):
    """A metric's mean over `n` examples. `sharp`: a share of right ones; else continuous, with its `std`."""

    value: Number
    n: Positive
    sharp: bool
    std: Number | None = None
    partner: str | None = None


class Measured(Part):
    """An ability at one checkpoint.

    Attributes:
        shots: solved examples in the prompt. `chance`: what guessing gives.
        main: the metric that it is judged by; its `partner` stands beside it.
        bits_per_byte: of the right answer; None in a record of an earlier version.
        curve: mean nats of each position, where an ability is scored by position.
    """

    ability: str
    shots: int = 0
    chance: float
    main: str | None = None
    bits_per_byte: Number | None = None
    metrics: dict[str, Metric]
    curve: list[float] = []

    @model_validator(mode="after")
    def _check(self) -> "Measured":
        for name in (self.main, *(metric.partner for metric in self.metrics.values())):
            if name is not None and name not in self.metrics:
                raise ValueError(f"{self.ability} has no metric {name}")
        return self


class Run(Part):
    """One rung.

    Attributes:
        parameters: N, 1/6 of a token's model FLOPs. `flops`: 6 N D.
        loss: nats per token on held-out text; `curve`: (tokens, loss) of each evaluation on the way.
        seconds: of its processes; `training_seconds`: of its steps.
    """

    name: str
    seed: int = 0
    held_out: bool = False
    run: str = ""
    parameters: Size
    parameters_with_embeddings: Size | None = None
    tokens: Size
    unique_tokens: Size | None = None
    flops: Size
    loss: float
    seconds: float = 0.0
    training_seconds: float = 0.0
    curve: list[tuple[float, float]] = []
    abilities: list[Measured] = []


class LadderRecord(Part):
    """All rungs that are done, the cheapest first. `law`: the form that they were run for."""

    kind: Literal["ladder"] = "ladder"
    name: str
    law: str = "chinchilla"
    versions: dict[str, str] = {}
    rungs: list[Run]


def read_ladder_record(path: Path) -> LadderRecord:
    """Raises ValueError, in one line, for what no ladder wrote."""
    try:
        return LadderRecord.model_validate(parse_json(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ValueError(f"{path} is no ladder's record: {describe(error.errors()[0], LadderRecord)}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no ladder's record: {error}") from error
