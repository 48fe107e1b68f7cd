"""Forecasts that are written down before their run, and what became of them. No clock is in the file."""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxscale import config as cfg
from jaxscale.files.jsonl import read_records
from jaxscale.files.whole import require_file, write_whole
from jaxscale.scaling.counts import size_of
from jaxscale.scaling.forecast import Forecast
from jaxscale.scaling.law import Law, Part, Says, read_part

REGISTERED_VERSION: Literal[1] = 1
SAME = 0.02  # share by which a run's N and D may differ from those that were forecast
TRAINED = ("train", "validation")  # kinds of metrics


class Registered(Part):
    """A forecast as it is registered.

    Attributes:
        law_sha256: of the law's file, so that nobody can fit it again afterwards.
        law_counts: how N was counted: `with`, `without` or `unknown`.
        model: the sizes and kinds of the model that was meant.
    """

    kind: Literal["forecast"]
    forecast_version: Literal[1]
    law_sha256: str
    law_counts: Literal["with", "without", "unknown"]
    versions: dict[str, str]
    forecast: Forecast
    model: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A registered forecast beside its run. Losses in nats per token.

    Attributes:
        measured: the run's last validation loss.
        outside: how far it lies outside the interval; 0: inside. Below 0: lower than its low end.
        error: predicted over measured, less 1.
        late: the file is younger than the run's first step.
    """

    registered: Registered
    run: str
    measured: float
    step: int
    tokens: float
    outside: float
    error: float
    late: bool

    @property
    def inside(self) -> bool:
        return self.outside == 0


def register(forecast: Forecast, law: Law, law_path: Path, config: cfg.Config, path: Path) -> bool:
    """Write a forecast, before its run. False: the same bytes are there already.

    Raises:
        ValueError: the run has begun, or another file is there.
    """
    if any(record.get("kind") in TRAINED for record in read_records(config.out_dir / "metrics.jsonl")):
        raise ValueError(
            f"--register {path}: the run {config.out_dir} has begun, and a forecast is made before its run; give "
            "another config, or forecast without --register"
        )
    record = Registered(
        kind="forecast",
        forecast_version=REGISTERED_VERSION,
        law_sha256=hashlib.sha256(law_path.read_bytes()).hexdigest(),
        law_counts=law.counts,
        versions=law.versions,
        forecast=forecast,
        model=config.model.model_dump(mode="json"),
    )
    text = (json.dumps(record.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    require_file(path, give="give --register")
    if path.exists():
        if path.read_bytes() == text:
            return False
        raise ValueError(
            f"--register {path}: another file is there, and a forecast is never changed; choose another name"
        )
    write_whole(path, text)
    return True


def read_registered(path: Path) -> Registered:
    """A forecast from its file. Raises ValueError, in one line, for anything else."""
    fix, older = "give what --register wrote", "use the version that wrote it"
    says = Says("forecast", "registered forecast", REGISTERED_VERSION, fix, older, "a forecast cannot be mended")
    return read_part(path, Registered, says)


def verify(path: Path, run: Path) -> Verdict:
    """The last validation loss of a run beside the forecast.

    Raises:
        ValueError: no such run, one of another size, or one that has not seen the tokens that were forecast.
    """
    registered = read_registered(path)
    if registered.forecast.form == "task":
        raise ValueError(f"{path} is of a task's loss, which is not in a run's metrics; compare `evaluate --tasks`")
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} is no run's directory, as it has no config.yaml; give the directory of the run")
    config = cfg.load_config(run)
    require_same_model(registered, config, run)
    records = read_records(run / "metrics.jsonl")
    losses = [(r["step"], r["loss"]) for r in records if r.get("kind") == "validation" and is_loss(r)]
    if not losses:
        raise ValueError(f"{run} has no validation loss in metrics.jsonl; prepare its data with a validation split")
    step, measured = losses[-1]
    seen, wanted = step * config.data.batch_size * config.data.seq_len, registered.forecast.tokens
    if not 1 - SAME <= seen / wanted <= 1 + SAME:
        raise ValueError(
            f"{run} has seen {seen:.4g} tokens at its last validation, and the forecast is of {wanted:.4g}; "
            + ("let it train on" if seen < wanted else "it is of another length")
        )
    between = registered.forecast.loss
    outside = measured - between.high if measured > between.high else min(0.0, measured - between.low)
    begun = [r["time"] for r in records if r.get("kind") in TRAINED and isinstance(r.get("time"), int | float)]
    late = bool(begun) and path.stat().st_mtime > min(begun)
    return Verdict(registered, str(run), measured, step, float(seen), outside, between.value / measured - 1, late)


def is_loss(record: dict[str, Any]) -> bool:
    loss, step = record.get("loss"), record.get("step")
    return isinstance(loss, int | float) and math.isfinite(loss) and loss > 0 and isinstance(step, int)


def require_same_model(registered: Registered, config: cfg.Config, run: Path) -> None:
    N, wanted = size_of(config, registered.law_counts), registered.forecast.parameters
    if abs(N / wanted - 1) > SAME:
        raise ValueError(
            f"{run} has {N:.4g} parameters and the forecast is of a model with {wanted:.4g}; give the run that it is of"
        )
