"""The trainer: the data flow of docs/architecture.md, in its order.

config -> mesh -> rules x parameters -> state;  tokens -> batch(step);  state, batch -> step -> metrics, checkpoints
"""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxscale import config as cfg
from jaxscale.blueprint.rules import Rules, schedule
from jaxscale.blueprint.stages import bubble_note
from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.cluster.monitor import Monitor
from jaxscale.cluster.signals import Stopped, watched
from jaxscale.cluster.start import join_processes
from jaxscale.compiled.libtpu import older_libtpu
from jaxscale.files.places import open_place
from jaxscale.models.attention import require_attention
from jaxscale.parallel.mesh import start_devices
from jaxscale.parallel.sharding import on_mesh
from jaxscale.rollouts.opening import Feeds, open_feeds
from jaxscale.rollouts.worth import Judges
from jaxscale.training.build import build_on, mesh_and_rules
from jaxscale.training.changes import told_of_changes
from jaxscale.training.evaluation import Measurer, open_measurers, with_references
from jaxscale.training.events import Events
from jaxscale.training.executable import load_executable
from jaxscale.training.feed import Batches, has_documents, open_run_tokenizer, open_source
from jaxscale.training.guard import Guard, Rollback
from jaxscale.training.initial import initial_state
from jaxscale.training.log_probs import References
from jaxscale.training.metrics import Meter, Speed, model_flops_per_token, speed_figures
from jaxscale.training.owner import Owner, open_checkpoints
from jaxscale.training.peak import Peak, find_peak, measure_again
from jaxscale.training.pending import Pending
from jaxscale.training.position import Position, about_data, read_position
from jaxscale.training.run import write_run_files
from jaxscale.training.saves import Saves
from jaxscale.training.step import ModelFactory, Program, TrainState
from jaxscale.training.watcher import Silent, Watcher
from jaxscale.training.writer import MetricsWriter, require_writers


@dataclass
class Result:
    """How a run ended. Losses are nats per token."""

    step: int
    loss: float | None
    validation_loss: float | None
    speed: Speed | None
    peak: Peak | None
    out: Path
    mesh: Mesh
    rules: Rules
    program: Program
    state: TrainState
    losses: dict[int, float] = field(default_factory=dict)


def train(
    config: cfg.Config,
    *,
    model: ModelFactory | None = None,
    watcher: Watcher | None = None,
    executable: Path | None = None,
) -> Result:
    """Train as `config` says, from its newest checkpoint if there is one.

    Args:
        model: rngs -> any nnx.Module that maps tokens [B, T] to logits [B, T, V] and whose parameters carry logical
            axes; None: the decoder of `config.model`.
        watcher: told of every step; None: silence.
        executable: a step that `jaxscale compile --save` wrote for this config and these devices: nothing is compiled.

    Raises:
        ValueError: what cannot work, in one line; Stopped: after Ctrl-C or SIGTERM, the state saved. With several
            processes an error of one ends the process here, with its exit code, once the others have heard of it.
    """
    watcher, events = watcher or Silent(), Events()
    # --- machines
    with events.during("devices"):
        place = join_processes(config.runtime, config.watch)
    with watched(config, place) as monitor:
        events.follow = monitor.follow
        with events.during("devices"):
            devices = start_devices(config.runtime, place.processes)
            require_writers(config)
            mesh, rules = mesh_and_rules(config, devices, decoder=model is None)
            peak = find_peak(devices, config.step.compute_dtype)
        # --- data
        with events.during("data"):
            rows, tokenizer = open_source(config, "train", say=watcher.say), open_run_tokenizer(config)
            assert rows is not None
            judges = Judges(config, tokenizer, watcher.say)
            measurers = open_measurers(config, tokenizer, judges, say=watcher.say)
        about = about_data(config, rows)
        watcher.describe(config, mesh, rows, decoder=model is None)
        notes = older_libtpu() if devices[0].platform == "tpu" else None, bubble_note(schedule(config, mesh.shape))
        for note in filter(None, notes):
            watcher.say(note)
        events.write("init", "start")
        with on_mesh(mesh, rules):
            # --- state: from a checkpoint, or born sharded
            if model is None:
                require_attention(config)
            setup = build_on(config, mesh, rules, model=model)
            program = setup.program
            if executable is not None:
                batch = setup.abstract_batch(documents=has_documents(config, rows))
                program = replace(program, step=load_executable(executable, config, devices, program, batch))
            open_place(config.checkpoint_place)  # a store that is not there is refused before anything is written
            owner, checkpointer, run = Owner(config, watcher.say), None, None
            try:
                checkpointer = open_checkpoints(config)
                run = Run(config, program, checkpointer, about, watcher, monitor, mesh, events)
                references = References(config, program, mesh, watcher.say, resumed=bool(checkpointer.steps()))
                rows, measurers = with_references(references, rows, measurers)
                state = run.resume() or initial_state(config, program, watcher.say)
                owner.sign()  # a run that is refused has changed nothing; from here on it writes
                checkpointer.write(config.checkpoint)
                events.open(config.out_dir, watcher.say)
                write_run_files(config.out_dir, config, devices, tokenizer, peak)
                references.write()
                # --- the loop
                run.open(int(state.step), Meter(config, peak, model_flops_per_token(config, model)))
                events.write("init", "end", int(state.step))
                feeds = open_feeds(references.config, program, mesh, rules, rows, judges,
                                   events=events, write=run.write, say=watcher.say)  # fmt: skip
                state = run.go(state, feeds, measurers)
            finally:
                watcher.finish()
                if run:
                    run.close()
                judges.close()
                if checkpointer:
                    checkpointer.close()
                events.close()
                owner.close()
    if monitor.signal and int(state.step) < config.steps:
        where = f"step {int(state.step)}; the same command resumes from there ({config.out_dir})"
        raise Stopped(f"stopped after {where}", monitor.signal)
    speed, last = run.meter.speed(), run.losses[max(run.losses)] if run.losses else None
    found = speed, run.meter.peak, config.out_dir, mesh, rules, program, state, run.losses
    return Result(int(state.step), last, run.validation_loss, *found)


class Run:
    """The loop and what it carries from step to step."""

    meter: Meter
    writer: MetricsWriter
    guard: Guard

    def __init__(self, config: cfg.Config, program: Program, checkpointer: Checkpointer, about_data: dict[str, Any],
                 watcher: Watcher, monitor: Monitor, mesh: Mesh, events: Events):  # fmt: skip
        self.config, self.program, self.checkpointer, self.monitor = config, program, checkpointer, monitor
        self.about_data, self.watcher, self.mesh, self.events = about_data, watcher, mesh, events
        self.losses: dict[int, float] = {}
        self.newest: dict[str, float] = {}  # numbers of the newest record of each kind between steps
        self.validation_loss: float | None = None
        self.position = Position(config.data.batch_size)
        self.saves = Saves(config, checkpointer, watcher, events)
        self.peaks_left = 3  # how often a CPU's peak may be measured again
        self.warm = False  # the first step of an attempt also loads its program: it is no measure of speed

    def restore(self) -> tuple[TrainState, dict[str, Any]] | None:
        found = self.checkpointer.restore_latest(self.program.abstract, self.config, say=self.watcher.say)
        if found is None:
            return None
        state, meta = found
        self.saves.newest = int(state.step)
        self.position = read_position(meta["data"], int(state.step), self.config.data.batch_size)
        self.watcher.say(f"resuming from step {state.step} of {self.config.out_dir}")
        return state, meta

    def resume(self) -> TrainState | None:
        """The newest checkpoint's state; what has changed since is said. None where there is none."""
        found = self.restore()
        if found is None:
            return None
        state, meta = found
        for line in told_of_changes(meta, self.config, self.about_data, int(state.step), self.position):
            self.watcher.say(line)
        return state

    def open(self, first: int, meter: Meter) -> None:
        self.meter, say = meter, self.watcher.say
        self.writer = MetricsWriter(self.config.out_dir, self.config, start_step=first, say=say)
        self.guard = Guard(self.config, self.program, self.mesh, self.writer, say)

    def close(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()

    def go(self, state: TrainState, feeds: Feeds, measurers: list[Measurer]) -> TrainState:
        """All steps to the last, going back to a checkpoint as often as the guard says."""
        first = int(state.step)
        self.watcher.start(first, self.config)
        if first == 0 and self.config.evaluation.every:
            self.evaluate(state, 0, measurers)
        while True:
            feed = feeds(first, self.position.offset)
            try:
                with contextlib.closing(feed):
                    return self.loop(state, first, feed, measurers)
            except Rollback as found:
                bad = found.with_traceback(None)  # the loop's frame holds the state
            del state
            state = self.go_back(bad)
            first = int(state.step)

    def go_back(self, bad: Rollback) -> TrainState:
        """The last whole checkpoint, with the batches between it and the bad step left out from now on."""
        self.events.write("rollback", "start", bad.step)
        if failed := self.checkpointer.settle():
            self.watcher.say(failed)
        position = self.position
        found = self.restore()
        if found is None:  # the first one could not be written
            raise ValueError(f"{bad} at step {bad.step}: stopped; there is no checkpoint to go back to")
        state, first = found[0], int(found[0].step)
        self.position = position.past(bad.step, back_to=first)
        self.losses = {step: loss for step, loss in self.losses.items() if step <= first}
        self.writer.go_back(first)
        about: dict[str, float | str] = {"from": bad.step, "batches_skipped": self.position.skipped, "cause": str(bad)}
        self.writer.write("rollback", first, about)
        self.watcher.say(f"step {bad.step}: {bad}; back to step {first}, past {bad.step - first} batches")
        self.events.write("rollback", "end", first)
        return state

    def loop(self, state: TrainState, first: int, feed: Batches, measurers: list[Measurer]) -> TrainState:
        """Steps first .. config.steps. The host reads a step's metrics after it has dispatched the next one."""
        config, done = self.config, first
        before: Pending | None = None
        batch = None
        if first < config.steps and self.monitor.may_start(first):
            batch = self.wait_for(feed, first, state)
            self.compile(state, batch)
        for step in range(first + 1, config.steps + 1):
            if before:
                before.look()
            if not self.monitor.may_start(step):  # a signal: all processes stop after the same step
                break
            again = due(step, config.guard.recompute_every)
            if before and (again or not (batch or feed.ahead)):  # sampling waits for the step: each has its own time
                self.read(before)
                before = None
            if again:
                batch = batch or self.wait_for(feed, step, state)
                with self.events.during("recompute", step):
                    self.guard.recompute(step, state, batch)
            batch = batch or feed.take(state)  # while the devices work on the step before
            state, metrics = self.program.step(state, batch)
            this, batch, done = Pending(step, self.program.combine(metrics), feed.wait_seconds), None, step
            if before:
                self.read(before, later=this)
            before = this
            together = due(step, config.outer.every or 0)
            pauses = together or due(step, config.evaluation.every) or due(step, config.checkpoint.every)
            if pauses or step == config.steps:
                self.read(this)  # nothing is shared, saved or judged before this step's loss is known to be finite
                before = None
                if together:
                    state = self.outer_step(state, step)
                self.check_peak(step)
                if due(step, config.evaluation.every) or step == config.steps:
                    self.evaluate(state, step, measurers)
                if due(step, config.checkpoint.every) and step < config.steps:
                    self.save(state, step)
        if before:
            self.read(before)
        self.save(state, done, last=True)
        return state

    def wait_for(self, feed: Batches, step: int, state: TrainState) -> Any:
        """The next batch, while the devices have nothing to do: no step's seconds hold this wait."""
        with self.events.during("data wait", step):
            return feed.take(state)

    def compile(self, state: TrainState, batch: Any) -> None:
        """Trace, lower and compile, apart from the first step, which then finds the program in jit's cache."""
        if lower := getattr(self.program.step, "lower", None):  # an executable from a file has nothing to compile
            with self.events.during("compile"):
                lower(state, batch).compile()
                if lower_outer := getattr(self.program.outer, "lower", None):
                    lower_outer(state).compile()

    def read(self, this: Pending, *, later: Pending | None = None) -> None:
        """Fetch one step's metrics (the only place where the host waits for the devices), and tell of them."""
        step, done = this.step, this.finish(self.events.last, later)
        seconds = self.events.step(step, done, this.wait)
        if self.warm:
            self.meter.add(seconds, this.wait)
        self.warm = True
        values: dict[str, Any] = {k: float(v) for k, v in jax.device_get(this.metrics).items()}
        self.guard.judge(step, values, self.saves.newest)
        self.losses[step] = values["loss"]
        speed = self.meter.speed(last=50)
        values |= {"step_seconds": seconds, "data_wait_seconds": this.wait}
        values |= speed_figures(speed, list(self.mesh.devices.flat))
        self.watcher.step(step, values | self.newest, speed)
        if due(step, self.config.metrics.every) or step == self.config.steps:
            self.writer.write("train", step, values)

    def write(self, kind: str, step: int, values: Mapping[str, Any], **more: Any) -> None:
        """A record between two steps; the watcher sees its numbers with the steps that follow, as `kind/name`."""
        self.newest |= {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, float)}
        self.writer.write(kind, step, values, **more)

    def outer_step(self, state: TrainState, step: int) -> TrainState:
        """The step that replicas take together, between two of their own: no step's seconds hold it."""
        assert self.program.outer is not None
        start = self.events.last
        with self.events.during("outer step", step):
            state, metrics = self.program.outer(state)
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.writer.write("outer", step, values | {"seconds": self.events.last - start})
        return state

    def check_peak(self, step: int) -> None:
        """An MFU above 1 shows that the measured peak is too low: measure it again, now that no step is running."""
        speeds, peak = (self.meter.speed(), self.meter.speed(last=50)), self.meter.peak
        if self.peaks_left and peak and peak.measured and any(s and s.mfu_withheld for s in speeds):
            self.peaks_left -= 1
            with self.events.during("devices", step):
                self.meter.peak = measure_again(peak, jax.local_devices()[0], self.config.step.compute_dtype)
                self.writer.write("peak", step, asdict(self.meter.peak))

    def evaluate(self, state: TrainState, step: int, measurers: list[Measurer]) -> None:
        """What each measurer finds in the state; nothing is written of an evaluation without any."""
        for measurer in measurers:
            with self.events.during("evaluation", step):
                found = measurer(self.program, self.mesh, state)
                self.validation_loss = found.get("loss", self.validation_loss)
                self.write(measurer.kind, step, found, plotted=measurer.numbers(found))
                self.watcher.say(f"step {step}: {measurer.line(found)}")

    def save(self, state: TrainState, step: int, *, last: bool = False) -> None:
        self.saves.save(state, step, self.about_data | self.position.as_data(step), self.writer, last=last)


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
