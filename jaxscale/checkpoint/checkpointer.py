"""Checkpoints through orbax: saved in the background, restored onto any mesh.

A checkpoint is the TrainState and a JSON beside it: the config, what every array of the state looks like and the sum
of its bits, and which data the steps so far have read.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxscale import config as cfg
from jaxscale.checkpoint.fingerprint import Sums
from jaxscale.checkpoint.identity import STATE_KEYS, digest, require_same_state, shapes
from jaxscale.checkpoint.metadata import Names, late_meta, listing_problem, require_unchanged
from jaxscale.checkpoint.noise import Damaged, quiet_writes, reading, reason
from jaxscale.checkpoint.object_store import reach, save_options
from jaxscale.cluster.saving import SaveBarrier
from jaxscale.cluster.start import from_all, from_first
from jaxscale.files.places import aside, clear_half_written, failures, move, open_place, trouble
from jaxscale.files.reading import parse_json
from jaxscale.training.older import FORMAT, as_now, as_saved, renamed_meta
from jaxscale.training.optional import parts_wanted
from jaxscale.training.position import require_position
from jaxscale.training.step import TrainState

Say = Callable[[str], None]
PARAMETERS = ("params", "frozen", "ema", "outer")  # of a state: what others than a resumed run read too
STACKS = ("layers", "dense_layers")  # names of stacked layers
PATIENCE = 600.0  # seconds that the others wait for what process 0 says of a directory


def by_layer(state: TrainState) -> TrainState:
    """How each array is cut into chunks: matrices of layers by layer, or one that reads a layer would read them all."""

    def one(path: tuple[Any, ...], x: jax.Array) -> ocp.SaveArgs:
        names = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
        stacked = names[0] in PARAMETERS and any(name in STACKS for name in names) and x.ndim > 2
        return ocp.SaveArgs(shard_axes=(0,)) if stacked else ocp.SaveArgs()

    args: TrainState = jax.tree_util.tree_map_with_path(one, state)
    return args


class Checkpointer:
    """The checkpoints of one run, under `<directory>/<step>`; without options they are read only, until `write`."""

    def __init__(self, directory: Path | str, options: cfg.Checkpoint | None = None):
        self.directory = reach(open_place(directory))
        self.barrier = SaveBarrier()
        self.reads = 0
        self.writing: tuple[int, float] | None = None  # which step, since when
        self.good: int | None = None  # the newest that is known to be whole
        self.manager = self.manage(options)
        self.quiet = quiet_writes()

    def write(self, options: cfg.Checkpoint) -> None:
        """From now on it saves; what a run before left half-written is removed."""
        self.manager.close()
        self.manager = self.manage(options)

    def manage(self, options: cfg.Checkpoint | None) -> ocp.CheckpointManager:
        more = save_options(self.directory, self.barrier)
        more |= {"step_name_format": Names(more.get("atomicity_options")), "read_only": options is None}
        if options:
            more |= {"max_to_keep": options.keep_last, "keep_period": options.keep_every}
            more |= {"cleanup_tmp_directories": True}
        try:
            return ocp.CheckpointManager(self.directory, options=ocp.CheckpointManagerOptions(**more))
        except OSError as error:
            where = f"cannot write checkpoints under {self.directory}"
            raise ValueError(f"{where}: {error.strerror or error}") from error

    def steps(self) -> list[int]:
        return sorted(self.manager.all_steps())

    def save(self, step: int, state: TrainState, config: cfg.Config, data: dict[str, Any]) -> float:
        """Start writing; returns the seconds for which the caller was held up (the copy off the devices).

        Call `settle` before. Raises Unsaved where it cannot be written, on every process.
        """
        start = time.perf_counter()
        self.barrier.begin()
        size = sum(x.nbytes for x in jax.tree.leaves(state))
        cause = trouble(self.directory, size) if jax.process_index() == 0 else ""
        if reason_why := from_first(f"save/{self.barrier.number}", cause, seconds=PATIENCE):
            raise Unsaved(f"checkpoint {step} is not written: {reason_why}")
        meta: dict[str, Any] = {"config": config.model_dump(mode="json"), "state": shapes(state), "data": data}
        meta["format"] = FORMAT
        late = late_meta(meta, Sums(state), self.barrier)
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state, save_args=by_layer(state)), meta=late)
        self.writing = step, start
        problem = ""
        try:
            self.manager.save(step, args=arguments)
        except failures() as error:
            problem = self.give_up(step, error)
        late.go.set()
        problems = from_all(f"saved/{self.barrier.number}", problem, seconds=PATIENCE)
        if any(problems):  # where it is being written all the same, `settle` ends that
            raise Unsaved(next(filter(None, problems)))
        return time.perf_counter() - start

    def still_writing(self) -> str:
        """Says so where the last save has not ended within a second, for which this waits: `settle` would too."""
        if self.writing is None:
            return ""
        step, since = self.writing
        while self.manager.is_saving_in_progress():
            if (seconds := time.perf_counter() - since) >= 1:
                return f"checkpoint {step} is still being written after {seconds:.0f} s"
            time.sleep(0.01)
        return ""

    def settle(self) -> str:
        """Wait for the checkpoint that is being written; why it could not be, or "" where all is well."""
        (step, _), self.writing = self.writing or (None, 0.0), None
        if step is None:
            return ""
        try:
            self.manager.wait_until_finished()
        except failures() as error:
            return self.give_up(step, error)
        self.good = step
        return ""

    def give_up(self, step: int, error: Exception) -> str:
        """Remove what there is of a checkpoint that could not be written; those before it stay."""
        self.writing = None
        self.barrier.fail(reason(error))
        if jax.process_index() == 0:
            clear_half_written(self.directory, step)
        for _ in range(8):  # orbax holds several errors of one save, and would raise the others at the next one
            with contextlib.suppress(*failures()):
                self.manager.check_for_errors()
                break
        with contextlib.suppress(*failures()):
            self.manager.reload()
        return f"checkpoint {step} could not be written ({reason(error)})"

    def close(self) -> None:
        with contextlib.suppress(*failures()):  # `settle` has told of it
            self.manager.close()
        self.quiet.close()

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON of a checkpoint, with today's names; raises whatever reading a damaged one raises."""
        if problem := listing_problem(self.directory / str(step)):
            raise ValueError(problem)
        meta = parse_json((self.directory / str(step) / "meta" / "metadata").read_text())
        parts = [meta.get(name) for name in ("config", "state", "data")] if isinstance(meta, dict) else [None]
        parts += [parts[0].get(name, {}) for name in ("model", *STATE_KEYS)] if isinstance(parts[0], dict) else []
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("its metadata lacks config, state or data")
        if "sha256" in meta and meta["sha256"] != digest(meta):
            raise ValueError("its metadata is not what was saved")
        require_position(meta["data"])
        return renamed_meta(meta)

    def restore_latest(self, abstract: TrainState, config: cfg.Config, *, say: Say) -> tuple[TrainState, dict] | None:
        """The newest whole checkpoint in the layout of `abstract`, and its metadata; None where there is none.

        Parts that the config has turned on since are started, and those that it has turned off are left; both are said.
        A damaged one gives way to the one before, and is then set aside under `<directory>-damaged`. One of
        another model is a ValueError with the differences, as is a directory with none that can be read.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                meta = self.together(self.meta, step)
                saved = as_saved(abstract, meta)
                require_same_state(meta, saved, config, where=str(self.directory / str(step)))
                state = self.together(self.restore, step, saved)
                require_unchanged(state, meta)
            except Damaged as error:
                damaged[step] = str(error)
                continue
            for bad, cause in damaged.items():
                self.set_aside(bad, cause, say)
            self.good = step
            return parts_wanted(as_now(state, abstract, meta), config, meta["config"], say), meta
        if damaged:  # nothing is moved: it may be the reading that fails, and not the files
            causes = "; ".join(f"{step}: {cause}" for step, cause in damaged.items())
            raise ValueError(
                f"no checkpoint under {self.directory} can be read ({causes}); choose another out= to start again"
            )
        return None

    def restore(self, step: int, abstract: Any) -> Any:
        """This process's part of the state. It waits for no other process: one may find its own part damaged."""
        rank = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=rank, active_processes={rank}, barrier_sync_key_prefix=f"read-{rank}"
        )
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
            return reader.restore(self.directory / str(step) / "state", args=ocp.args.StandardRestore(abstract))

    def together(self, read: Callable[..., Any], *arguments: Any) -> Any:
        """read(*arguments) on all processes; Damaged on all of them where it is on one."""
        content, problem = None, ""
        try:
            content = reading(read, *arguments)
        except Damaged as error:
            problem = str(error)
        self.reads += 1
        problems = from_all(f"read/{self.reads}", problem, seconds=PATIENCE)
        if any(problems):
            raise Damaged(next(filter(None, problems)))
        return content

    def set_aside(self, step: int, cause: str, say: Say) -> None:
        target = aside(self.directory) / f"{step}-{time.time_ns()}"
        say(f"checkpoint {step} is damaged ({cause}); set aside as {target}, and the one before is used")
        if jax.process_index() == 0:
            move(self.directory / str(step), target)
        from_first(f"aside/{step}/{self.reads}", "done", seconds=PATIENCE)
        self.manager.reload()


class Unsaved(Exception):
    """A checkpoint that cannot be written; its text says why."""
