"""A fitted law as a value, and its file. Forecasts read nothing else."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from jaxscale.files.reading import parse_json
from jaxscale.files.whole import require_file, write_whole

LAW_VERSION: Literal[1] = 1
Array = np.ndarray


class Part(BaseModel):
    """A part of a file: unknown keys and numbers that are none are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


P = TypeVar("P", bound=Part)


@dataclass(frozen=True)
class Point:
    """Where a law is asked: N, D, C, and unique tokens U (NaN: as many as D)."""

    parameters: float
    tokens: float
    flops: float
    unique_tokens: float = math.nan


class UsedRow(Part):
    """A run of the table, fitted or held out; null for what it does not have."""

    name: str
    seed: int
    held_out: bool
    parameters: float | None
    tokens: float | None
    flops: float
    loss: float | None
    unique_tokens: float | None
    bits_per_byte: float | None
    accuracy: float | None


class LeaveOut(Part):
    """A rung that the law was fitted without: `error` is predicted over measured, less 1.

    `low` to `high`: 90 % of what was predicted, of runs that were held out.
    """

    what: str
    flops: float
    quantity: str
    measured: float
    predicted: float
    low: float | None = None
    high: float | None = None

    @property
    def error(self) -> float:
        """As a share; of an accuracy the plain difference."""
        if self.quantity == "accuracy":
            return self.predicted - self.measured
        return self.predicted / self.measured - 1


class Law(Part):
    """A fitted form with its uncertainty.

    Attributes:
        counts: N is `with` or `without` embeddings; `unknown` where the table did not say.
        intervals: 90 % of each parameter; they leave out that the form itself may be wrong.
        spread: median distance of a run from the law, as a share of the loss (of isoflop: of N*).
        draws: parameters of each draw of the bootstrap.
        leave_out: rungs left out in turn, the largest first; `held_out`: runs that were never fitted.
        not_identified: parameter -> its interval in words.
    """

    kind: Literal["law"]
    law_version: Literal[1]
    form: str
    formula: str
    source: str
    counts: Literal["with", "without", "unknown"]
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    objective: float
    spread: float
    rows: list[UsedRow]
    draws: list[list[float]]
    draws_fitted: float
    leave_out: list[LeaveOut]
    held_out: list[LeaveOut]
    not_identified: dict[str, str]
    warnings: list[str]
    versions: dict[str, str]

    @model_validator(mode="after")
    def _check(self) -> "Law":
        q = len(self.parameters)
        if not self.draws or any(len(draw) != q for draw in self.draws):
            raise ValueError(f"each draw must have {q} parameters, and there must be some")
        if set(self.intervals) != set(self.parameters):
            raise ValueError("intervals and parameters must have the same names")
        if not any(not row.held_out for row in self.rows):
            raise ValueError("no row is fitted")
        return self

    @property
    def best(self) -> Array:
        """Parameters [q]."""
        return np.array(list(self.parameters.values()))

    @property
    def drawn(self) -> Array:
        """Parameters of the draws [S, q]."""
        return np.array(self.draws)

    @property
    def fitted_rows(self) -> list[UsedRow]:
        return [row for row in self.rows if not row.held_out]

    @property
    def largest(self) -> LeaveOut | None:
        """The largest rung that was left out, which is forecast from the others."""
        return self.leave_out[0] if self.leave_out else None


def write_law(law: Law, path: Path) -> None:
    require_file(path, give="give -o")
    write_whole(path, law.model_dump_json(indent=1) + "\n")


def read_law(path: Path) -> Law:
    """A law from its file.

    Raises:
        ValueError: in one line, for what no `law fit` of this version wrote.
    """
    says = Says("law", "law", LAW_VERSION, "make one with `jaxscale law fit`", "fit it again", "fit it again")
    return read_part(path, Law, says)


@dataclass(frozen=True)
class Says:
    """What a file says that it is (`kind`, and `KIND_version`), and what messages advise.

    Attributes:
        called: the kind in words.
        fix: of a file that is none; `older`: of another version; `damaged`: of one that is not whole.
    """

    kind: str
    called: str
    version: int
    fix: str
    older: str
    damaged: str


def read_part(path: Path, part: type[P], says: Says) -> P:
    """A file of this kind. Raises ValueError, in one line, for anything else."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; {says.fix}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no {says.kind}: {' '.join(str(error).split())}; {says.fix}") from None
    if not isinstance(values, dict) or values.get("kind") != says.kind:
        raise ValueError(f"{path} is no {says.called}: it has no kind: {says.kind}; {says.fix}")
    if (version := values.get(f"{says.kind}_version")) != says.version:
        raise ValueError(
            f"{path} has {says.kind}_version {str(version)[:20]} and this jaxscale reads {says.version}; {says.older}"
        )
    try:
        return part.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{path} is damaged: {place}: {first['msg'].lower()}; {says.damaged}") from None
