"""A run or a published model, measured on tasks: abilities by name, files of BIG-bench, tasks of lm_eval."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jaxscale.abilities.bigbench import read_task
from jaxscale.abilities.example import Task
from jaxscale.abilities.measure import Measure
from jaxscale.abilities.rows import Prepared, prepare
from jaxscale.abilities.table import tasks_of
from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.cluster.monitor import Monitor
from jaxscale.cluster.signals import Stopped, watched
from jaxscale.cluster.start import join_processes
from jaxscale.config import PUBLISHED
from jaxscale.parallel.mesh import make_mesh, start_devices
from jaxscale.serving.harness import by_harness, require_harness
from jaxscale.serving.load import Loaded, config_of, load, tokenizer_of
from jaxscale.serving.serve import restore
from jaxscale.serving.texts import Say
from jaxscale.training.step import state_of

Step = int | Literal["all"] | None
Record = dict[str, Any]
HARNESS = "lm_eval:"
FILE = re.compile(r"(.+\.json)(?::(\d{1,2}))?")  # FILE.json, or FILE.json:SHOTS


def evaluate_tasks(
    source: str,
    names: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    step: Step = None,
    examples: int | None = None,
    seed: int = 0,
    tokenizer: str | None = None,
    folder: str | None = None,
    say: Say,
) -> list[Record]:
    """Measure a model on its config's mesh, on all processes that there are: a record for each checkpoint.

    Args:
        names: abilities, with `:SHOTS` for solved examples in the prompt, files of BIG-bench, and `lm_eval:NAME`.
        step: of a run's checkpoint; None: the newest; `all`: each of them in turn.
        examples: of each task, at most; None: 256, and of lm_eval's tasks all.
        seed: of the examples.
        folder: of YAML files that describe tasks of lm_eval; None: the tasks that it brings along.

    Raises:
        ValueError: what cannot be read or measured; Stopped: after a signal.
    """
    config = config_of(source, list(overrides))
    place = join_processes(config.runtime, config.watch)
    say = say if place.process_id == 0 else lambda line: None
    with watched(config, place) as monitor:
        codec = tokenizer_of(source, tokenizer, config, needed=True)
        assert codec is not None
        harness = [name.removeprefix(HARNESS) for name in names if name.startswith(HARNESS)]
        ours = [name for name in names if not name.startswith(HARNESS)]
        if harness:
            require_harness(harness, folder)
        elif folder:
            raise ValueError(f"--tasks-from {folder} is for tasks of lm_eval; give one as --tasks {HARNESS}NAME")
        tasks = [task for name in ours for task in named(name, seed=seed, count=examples or 256, say=say)]
        prepared = prepare(tasks, codec, seq_len=config.data.seq_len)
        steps: list[int] | list[int | None] = steps_of(source, config) if step == "all" else [step]
        mesh = make_mesh(config.mesh, start_devices(config.runtime, place.processes))
        loaded = load(source, config, mesh, codec, step=steps[0], say=say)
        measure = Measure(loaded.config, loaded.program, mesh)
        records = []
        for number, at in enumerate(steps):
            loaded = loaded if number == 0 else at_step(loaded, at, say)
            checkpoint_record = record(loaded, measure, prepared, monitor) | {"seed": seed}
            if harness:
                checkpoint_record["abilities"] += by_harness(loaded, measure, harness, folder, examples)
            records.append(checkpoint_record)
        return records


def measured(loaded: Loaded, names: Sequence[str], *, examples: int, seed: int, say: Say) -> Record:
    """A record of a loaded model, on abilities and files of BIG-bench. Raises ValueError as `evaluate_tasks`."""
    if loaded.tokenizer is None:
        raise ValueError(f"{loaded.source} has no tokenizer, which questions are read with; load it with tokenizer=")
    if wrong := next((name for name in names if name.startswith(HARNESS)), None):
        raise ValueError(f"{wrong}: tasks of lm_eval are measured by `jaxscale evaluate`, or by lm_eval itself")
    tasks = [task for name in names for task in named(name, seed=seed, count=examples, say=say)]
    prepared = prepare(tasks, loaded.tokenizer, seq_len=loaded.config.data.seq_len)
    return record(loaded, Measure(loaded.config, loaded.program, loaded.mesh), prepared) | {"seed": seed}


def named(name: str, *, seed: int, count: int, say: Say) -> list[Task]:
    """The tasks that a word of `--tasks` means."""
    if match := FILE.fullmatch(name):
        return [read_task(Path(match[1]), shots=int(match[2] or 0), seed=seed, count=count, say=say)]
    return tasks_of(name, seed=seed, count=count)


def steps_of(source: str, config: Any) -> list[int]:
    """All checkpoints of a run. Raises ValueError where there are none."""
    if source.startswith(PUBLISHED):
        raise ValueError(f"--step all: {source} is one model, without checkpoints; leave it out")
    place = config.checkpoint.directory or Path(source) / "checkpoints"
    steps: list[int] = []
    if not isinstance(place, Path) or place.is_dir():
        checkpointer = Checkpointer(place)
        steps = checkpointer.steps()
        checkpointer.close()
    if not steps:
        raise ValueError(f"{source} has no checkpoints yet; train it first")
    return steps


def at_step(loaded: Loaded, step: int | None, say: Say) -> Loaded:
    """The same model with the parameters of another checkpoint: nothing is compiled again."""
    with loaded.context():
        restored = restore(Path(loaded.source), loaded.program, loaded.config, step, say)
    return replace(loaded, params=restored.params, step=restored.step, averaged=restored.averaged)


def record(loaded: Loaded, measure: Measure, tasks: Sequence[Prepared], monitor: Monitor | None = None) -> Record:
    """What a loaded model comes to on these tasks. Raises Stopped after a signal."""

    def before(batch: int) -> None:
        if monitor is None:
            return
        if not monitor.may_start(batch):
            raise Stopped(f"stopped after {batch - 1} batches; nothing is kept of them", monitor.signal or "SIGTERM")
        monitor.follow("evaluation", "start", batch)

    with loaded.context():
        abilities = measure(state_of(loaded.params), tasks, before=before) if tasks else []
    return {
        "kind": "abilities",
        "model": loaded.words,
        "step": loaded.step,
        "averaged": loaded.averaged,
        "mesh": dict(loaded.mesh.shape),
        "seq_len": loaded.config.data.seq_len,
        "abilities": abilities,
    }
