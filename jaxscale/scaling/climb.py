"""Running a ladder: each rung a fresh `train` process, the cheapest first, and one record of what came out. No jax.

Nothing is kept but the runs themselves: what is done is read from their files, so a ladder that was killed goes on.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jaxscale import config as cfg
from jaxscale.cluster.codes import INTERRUPTED, MEANING, PREEMPTED
from jaxscale.cluster.local import die_with
from jaxscale.compiled.store import versions
from jaxscale.config.overrides import keys_of, section_of
from jaxscale.data.index import read_index
from jaxscale.files.jsonl import read_records
from jaxscale.files.whole import write_whole
from jaxscale.scaling.ladder import FOLDER, Ladder, Rung
from jaxscale.scaling.record import LadderRecord, Measured, Run

Say = Callable[[str], None]
SILENT = ("out", "watch.", "runtime.compilation_cache", "metrics.tensorboard", "checkpoint.")  # of no number of a run
TELL_SECONDS = 60.0
POLL_SECONDS = 0.2


class Ended(Exception):
    """A rung was told to stop, and saved: the ladder goes on from there."""

    def __init__(self, code: int):
        super().__init__("stopped, state saved; the same command goes on from there")
        self.code = code


@dataclass(frozen=True)
class Result:
    """What a finished run left: its last validation loss, its evaluations, and seconds by the clock.

    Attributes:
        curve: (tokens, validation loss) of each evaluation but that before the first step.
        seconds: of the run's processes, all together; `training_seconds`: of its steps alone.
    """

    loss: float
    curve: list[tuple[float, float]]
    abilities: list[Measured]
    seconds: float
    training_seconds: float


def climb(ladder: Ladder, rungs: Sequence[Rung], prefix: Sequence[str], *, say: Say) -> Path:
    """Run what is not done yet; the record is written after each rung.

    Args:
        prefix: words before the `train` command, e.g. a launcher's.

    Raises:
        ValueError: a rung failed, or its directory holds another run; Ended: after a signal, once the rung has saved.
    """
    for rung in rungs:
        require_same(rung)
    path = FOLDER / f"{ladder.name}.json"
    FOLDER.joinpath(ladder.name).mkdir(parents=True, exist_ok=True)
    done = {rung.name: outcome for rung in rungs if (outcome := result(rung)) is not None}
    with signals() as heard:
        for number, rung in enumerate(rungs, 1):
            line = f"{number}/{len(rungs)} {rung.name}: {rung.flops:.2e} FLOPs"
            if rung.name in done:
                say(f"{line}: done before, loss {done[rung.name].loss:.4f}")
            else:
                say(line)
                run_rung(rung, prefix, heard, say)
                outcome = result(rung)
                if outcome is None:
                    raise ValueError(f"rung {rung.name} ended without a validation loss; see {log_of(rung)}")
                say(f"  loss {outcome.loss:.4f} in {outcome.seconds:.0f} s")
                done[rung.name] = outcome
            write_whole(path, record(ladder, rungs, done).model_dump_json(indent=1) + "\n")
    return path


def record(ladder: Ladder, rungs: Sequence[Rung], done: Mapping[str, Result]) -> LadderRecord:
    """The ladder's rungs that are done, by their names."""
    rows = [
        Run(
            name=rung.name,
            seed=rung.seed,
            held_out=rung.held_out,
            run=str(rung.config.out_dir),
            parameters=rung.parameters,
            parameters_with_embeddings=rung.whole,
            tokens=rung.tokens,
            unique_tokens=unique_tokens(rung),
            flops=rung.flops,
            loss=outcome.loss,
            seconds=round(outcome.seconds, 3),
            training_seconds=round(outcome.training_seconds, 3),
            curve=outcome.curve,
            abilities=outcome.abilities,
        )
        for rung in rungs
        if (outcome := done.get(rung.name)) is not None
    ]
    return LadderRecord(name=ladder.name, law=ladder.law, versions=versions(), rungs=rows)


def unique_tokens(rung: Rung) -> int | None:
    """Tokens of the training split, which a prepared dataset's index says; None for other data."""
    if rung.config.data.kind != "tokens":
        return None
    try:
        splits = [read_index(Path(place)).splits["train"] for place in rung.config.data.places]
    except (OSError, ValueError, KeyError):  # text that is not here: its runs are, and so is the rest of the record
        return None
    return sum(split.tokens for split in splits)


def result(rung: Rung) -> Result | None:
    """What a run left, or None where it is not done."""
    metrics = read_records(rung.config.out_dir / "metrics.jsonl")
    validations = [
        r for r in metrics if r.get("kind") == "validation" and isinstance(r.get("step"), int) and r["step"] > 0
    ]
    last = next((r for r in reversed(validations) if r["step"] == rung.config.steps), None)
    if last is None or not isinstance(last.get("loss"), int | float):
        return None
    abilities = measured(rung, metrics)
    if rung.config.evaluation.abilities and not abilities:  # killed between the two
        return None
    size = rung.config.data.batch_size * rung.config.data.seq_len
    curve = {r["step"] * size: float(r["loss"]) for r in validations}  # a step that was done again stands once
    seconds, training = spent(rung, metrics)
    return Result(float(last["loss"]), sorted(curve.items()), abilities, seconds, training)


def measured(rung: Rung, metrics: Sequence[dict[str, Any]]) -> list[Measured]:
    """The abilities of a run's last evaluation."""
    evaluations = [r for r in metrics if r.get("kind") == "abilities" and r.get("step") == rung.config.steps]
    try:
        return [Measured.model_validate(one) for one in evaluations[-1]["abilities"]] if evaluations else []
    except (ValidationError, TypeError, KeyError) as error:
        raise ValueError(f"{rung.config.out_dir}/metrics.jsonl: an ability is damaged; run the rung again") from error


def spent(rung: Rung, metrics: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Seconds of a run's processes from their first event to their last, and of the steps among them."""
    events = read_records(rung.config.out_dir / "events.jsonl")
    times = [float(e["time"]) for e in events if isinstance(e.get("time"), int | float)]
    steps = [r for r in metrics if r.get("kind") == "train"]
    step_seconds = sum(float(r["step_seconds"]) for r in steps if isinstance(r.get("step_seconds"), int | float))
    return (max(times) - min(times) if times else 0.0), step_seconds


def require_same(rung: Rung) -> None:
    """Raise ValueError where the rung's directory holds a run of another recipe."""
    there = rung.config.out_dir / "config.yaml"
    if not there.is_file():
        return
    old, new = (config.model_dump(mode="json") for config in (cfg.load_config(there.parent), rung.config))
    for key, kind in keys_of(cfg.Config).items():
        if key.startswith(SILENT) or section_of(kind) is not None:
            continue
        if (was := value_of(old, key)) != (now := value_of(new, key)):
            raise ValueError(
                f"{there.parent} was run with {key}={was}, and the ladder asks for {now}; give the ladder "
                "another name, or remove that directory"
            )


def value_of(config: dict[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def log_of(rung: Rung) -> Path:
    return rung.config.out_dir.with_suffix(".log")


def run_rung(rung: Rung, prefix: Sequence[str], heard: list[int], say: Say) -> None:
    """One `train` process, whose words go to a file. Raises as `climb`."""
    file = rung.config.out_dir.with_suffix(".yaml")
    write_whole(file, cfg.dump_config(rung.config))
    command = [*prefix, *(() if prefix else (sys.executable, "-m", "jaxscale.cli")), "train", str(file)]
    with open(log_of(rung), "ab") as log:
        before = log.tell()
        if heard:
            raise Ended(INTERRUPTED if signal.SIGINT in heard else PREEMPTED)
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with(os.getpid()),
        )
        code = waited(child, rung, heard, say)
    if heard and code in (0, INTERRUPTED, PREEMPTED, -signal.SIGTERM):
        raise Ended(INTERRUPTED if signal.SIGINT in heard else PREEMPTED)
    if code in (INTERRUPTED, PREEMPTED):
        raise Ended(code)
    if code:
        raise ValueError(f"rung {rung.name} failed: {why(rung, code, before)}; its words are in {log_of(rung)}")


def waited(child: "subprocess.Popen[bytes]", rung: Rung, heard: list[int], say: Say) -> int:
    """The exit code; until then signals are handed on, and progress is shown now and then."""
    last_report, handed = time.monotonic(), 0
    while (code := child.poll()) is None:
        if len(heard) > handed:
            handed = len(heard)
            child.kill() if heard.count(signal.SIGINT) > 1 else child.terminate()
        if time.monotonic() - last_report > TELL_SECONDS:
            last_report = time.monotonic()
            say(f"  {progress(rung)}")
        time.sleep(POLL_SECONDS)
    return code


def progress(rung: Rung) -> str:
    steps = [r for r in read_records(rung.config.out_dir / "metrics.jsonl") if r.get("kind") == "train"]
    if not steps:
        return "no step yet"
    return f"step {steps[-1].get('step')} of {rung.config.steps}, loss {steps[-1].get('loss', float('nan')):.4f}"


def why(rung: Rung, code: int, before: int) -> str:
    """A process's last error line, else how it ended, in one line. `before`: bytes of its log from before it."""
    lines = log_of(rung).read_bytes()[before:].decode(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1][:300]
    return f"killed by signal {-code}" if code < 0 else MEANING.get(code, f"exit code {code}")


@contextmanager
def signals() -> Iterator[list[int]]:
    """Signals that ask to stop, as they come: they are handed to the rung that runs, which saves."""
    heard: list[int] = []
    kept = {s: signal.signal(s, lambda number, frame: heard.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for number, before in kept.items():
            signal.signal(number, before)
