"""The trainer: the data flow of docs/architecture.md, in its order.

config -> mesh -> rules x parameters -> state;  tokens -> batch(step);  state, batch -> step -> metrics, checkpoints
"""

from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
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
from jaxscale.training.build import Setup, build_on, mesh_and_rules
from jaxscale.training.changes import told_of_changes
from jaxscale.training.evaluation import Measurer
from jaxscale.training.executable import with_loaded_step
from jaxscale.training.feed import Batches, has_documents
from jaxscale.training.guard import Guard, Rollback
from jaxscale.training.initial import initial_state
from jaxscale.training.inputs import Inputs, open_inputs
from jaxscale.training.journal import Journal
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
from jaxscale.training.writer import require_writers


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
    journal = Journal(watcher or Silent())
    # --- machines
    with journal.during("devices"):
        place = join_processes(config.runtime, config.watch)
    with watched(config, place) as monitor, ExitStack() as closed_last, ExitStack() as closed_first:
        journal.monitor = monitor
        with journal.during("devices"):
            devices = start_devices(config.runtime, place.processes)
            require_writers(config)
            mesh, rules = mesh_and_rules(config, devices, decoder=model is None)
            peak = find_peak(devices, config.step.compute_dtype)
        # --- data
        with journal.during("data"):
            inputs = closed_first.enter_context(open_inputs(config, journal.say))
        closed_first.callback(journal.finish)  # the console's bar goes before anything else ends
        journal.describe(config, mesh, inputs.rows, decoder=model is None)
        for note in notes_on(config, devices, mesh):
            journal.say(note)
        with on_mesh(mesh, rules):
            # --- state: from a checkpoint, or born sharded
            with journal.during("init") as init:
                setup = setup_of_run(config, devices, mesh, rules, inputs, model=model, executable=executable)
                open_place(config.checkpoint_place)  # a store that is not there is refused before anything is written
                owner = closed_last.enter_context(closing(Owner(config, journal.say)))
                closed_last.callback(journal.close)  # the run's end, after its last save's
                checkpointer = closed_last.enter_context(closing(open_checkpoints(config)))
                meter = Meter(config, peak, model_flops_per_token(config, model))
                run = Run(setup, checkpointer, about_data(config, inputs.rows), journal, monitor, meter)
                references = References(config, setup.program, mesh, journal.say, resumed=bool(checkpointer.steps()))
                inputs = inputs.with_references(references)
                state = run.resume() or initial_state(config, setup.program, journal.say)
                owner.sign()  # a run that is refused has changed nothing; from here on it writes
                checkpointer.write(config.checkpoint)
                write_run_files(config.out_dir, config, devices, inputs.tokenizer, peak)
                references.write()
                init.step = int(state.step)
                journal.open(config, init.step)
            # --- the loop
            feeds = open_feeds(references.config, setup, inputs.rows, inputs.judges, journal)
            state = run.go(state, feeds, inputs.measurers)
    return run.result(state)


class Run:
    """The loop and what it carries from step to step."""

    def __init__(self, setup: Setup, checkpointer: Checkpointer, about_data: dict[str, Any], journal: Journal,
                 monitor: Monitor, meter: Meter):  # fmt: skip
        self.setup, self.config, self.program, self.mesh = setup, setup.config, setup.program, setup.mesh
        self.checkpointer, self.monitor, self.journal, self.meter = checkpointer, monitor, journal, meter
        self.about_data = about_data
        self.losses: dict[int, float] = {}
        self.validation_loss: float | None = None
        self.position = Position(self.config.data.batch_size)
        self.saves = Saves(self.config, checkpointer, journal)
        self.guard = Guard(self.config, self.program, self.mesh, journal)
        self.peaks_left = 3  # how often a CPU's peak may be measured again
        self.warm = False  # the first step of an attempt also loads its program: it is no measure of speed

    def restore(self) -> tuple[TrainState, dict[str, Any]] | None:
        restored = self.checkpointer.restore_latest(self.program.abstract, self.config, say=self.journal.say)
        if restored is None:
            return None
        state, meta = restored
        self.saves.newest = int(state.step)
        self.position = read_position(meta["data"], int(state.step), self.config.data.batch_size)
        self.journal.say(f"resuming from step {state.step} of {self.config.out_dir}")
        return state, meta

    def resume(self) -> TrainState | None:
        """The newest checkpoint's state; what has changed since is said. None where there is none."""
        restored = self.restore()
        if restored is None:
            return None
        state, meta = restored
        for line in told_of_changes(meta, self.config, self.about_data, int(state.step), self.position):
            self.journal.say(line)
        return state

    def go(self, state: TrainState, feeds: Feeds, measurers: list[Measurer]) -> TrainState:
        """All steps to the last, going back to a checkpoint as often as the guard says."""
        first = int(state.step)
        if first == 0 and self.config.evaluation.every:
            self.evaluate(state, 0, measurers)
        while True:
            feed = feeds(first, self.position.offset)
            try:
                with closing(feed):
                    return self.loop(state, first, feed, measurers)
            except Rollback as rollback:
                bad = rollback.with_traceback(None)  # the loop's frame holds the state
            del state
            state = self.go_back(bad)
            first = int(state.step)

    def go_back(self, bad: Rollback) -> TrainState:
        """The last whole checkpoint, with the batches between it and the bad step left out from now on."""
        with self.journal.during("rollback", bad.step) as rollback:
            if failed := self.checkpointer.settle():
                self.journal.say(failed)
            position = self.position
            restored = self.restore()
            if restored is None:  # the first one could not be written
                raise ValueError(f"{bad} at step {bad.step}: stopped; there is no checkpoint to go back to")
            state, first = restored[0], int(restored[0].step)
            self.position = position.past(bad.step, back_to=first)
            self.losses = {step: loss for step, loss in self.losses.items() if step <= first}
            self.journal.go_back(first)
            about = {"from": bad.step, "batches_skipped": self.position.skipped, "cause": str(bad)}
            line = f"step {bad.step}: {bad}; back to step {first}, past {bad.step - first} batches"
            self.journal.record("rollback", first, about, line=line)
            rollback.step = first
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
                with self.journal.during("recompute", step):
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
        with self.journal.during("data wait", step):
            return feed.take(state)

    def compile(self, state: TrainState, batch: Any) -> None:
        """Trace, lower and compile, apart from the first step, which then finds the program in jit's cache."""
        if lower := getattr(self.program.step, "lower", None):  # an executable from a file has nothing to compile
            with self.journal.during("compile"):
                lower(state, batch).compile()
                if lower_outer := getattr(self.program.outer, "lower", None):
                    lower_outer(state).compile()

    def read(self, this: Pending, *, later: Pending | None = None) -> None:
        """Fetch one step's metrics (the only place where the host waits for the devices), and tell of them."""
        step, done = this.step, this.finish(self.journal.last, later)
        seconds = self.journal.step_done(step, done, this.wait)
        if self.warm:
            self.meter.add(seconds, this.wait)
        self.warm = True
        values: dict[str, Any] = {k: float(v) for k, v in jax.device_get(this.metrics).items()}
        self.guard.judge(step, values, self.saves.newest)
        self.losses[step] = values["loss"]
        speed = self.meter.speed(last=50)
        values |= {"step_seconds": seconds, "data_wait_seconds": this.wait}
        values |= speed_figures(speed, list(self.mesh.devices.flat))
        kept = due(step, self.config.metrics.every) or step == self.config.steps
        self.journal.step(step, values, speed, kept=kept)

    def outer_step(self, state: TrainState, step: int) -> TrainState:
        """The step that replicas take together, between two of their own: no step's seconds hold it."""
        assert self.program.outer is not None
        start = self.journal.last
        with self.journal.during("outer step", step):
            state, metrics = self.program.outer(state)
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.journal.record("outer", step, values | {"seconds": self.journal.last - start})
        return state

    def check_peak(self, step: int) -> None:
        """An MFU above 1 shows that the measured peak is too low: measure it again, now that no step is running."""
        speeds, peak = (self.meter.speed(), self.meter.speed(last=50)), self.meter.peak
        if self.peaks_left and peak and peak.measured and any(s and s.mfu_withheld for s in speeds):
            self.peaks_left -= 1
            with self.journal.during("devices", step):
                self.meter.peak = measure_again(peak, jax.local_devices()[0], self.config.step.compute_dtype)
                self.journal.record("peak", step, asdict(self.meter.peak))

    def evaluate(self, state: TrainState, step: int, measurers: list[Measurer]) -> None:
        """What each measurer finds in the state; nothing is written of an evaluation without any."""
        for measurer in measurers:
            with self.journal.during("evaluation", step):
                values = measurer(self.program, self.mesh, state)
                self.validation_loss = values.get("loss", self.validation_loss)
                line = f"step {step}: {measurer.line(values)}"
                self.journal.record(measurer.kind, step, values, plotted=measurer.numbers(values), line=line)

    def save(self, state: TrainState, step: int, *, last: bool = False) -> None:
        self.saves.save(state, step, self.about_data | self.position.as_data(step), last=last)

    def result(self, state: TrainState) -> Result:
        """How the run ended. Raises Stopped if a signal ended it before its last step."""
        config, step = self.config, int(state.step)
        if self.monitor.signal and step < config.steps:
            where = f"step {step}; the same command resumes from there ({config.out_dir})"
            raise Stopped(f"stopped after {where}", self.monitor.signal)
        last = self.losses[max(self.losses)] if self.losses else None
        return Result(
            step=step,
            loss=last,
            validation_loss=self.validation_loss,
            speed=self.meter.speed(),
            peak=self.meter.peak,
            out=config.out_dir,
            mesh=self.mesh,
            rules=self.setup.rules,
            program=self.program,
            state=state,
            losses=self.losses,
        )


def setup_of_run(config: cfg.Config, devices: list[jax.Device], mesh: Mesh, rules: Rules, inputs: Inputs, *,
                 model: ModelFactory | None, executable: Path | None) -> Setup:  # fmt: skip
    """The run's program on its mesh, with the step of `executable` if there is one."""
    if model is None:
        require_attention(config)
    setup = build_on(config, mesh, rules, model=model)
    if executable is None:
        return setup
    return with_loaded_step(setup, executable, devices, documents=has_documents(config, inputs.rows))


def notes_on(config: cfg.Config, devices: list[jax.Device], mesh: Mesh) -> list[str]:
    """What a person should know of these devices and this mesh."""
    older = older_libtpu() if devices[0].platform == "tpu" else None
    return [note for note in (older, bubble_note(schedule(config, mesh.shape))) if note]


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
