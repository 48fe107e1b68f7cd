"""The trainer: the data flow of the README, in its order.

config -> mesh -> rules x parameters -> state;  tokens -> batch(step);  state, batch -> step -> metrics, checkpoints
"""

import contextlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxscale import config as cfg
from jaxscale.analysis.libtpu import older_libtpu
from jaxscale.cluster.monitor import Monitor
from jaxscale.cluster.signals import Stopped, watched
from jaxscale.cluster.start import join_processes
from jaxscale.models.attention import require_attention
from jaxscale.parallel.mesh import describe_mesh, make_mesh, start_devices
from jaxscale.parallel.rules import count, require_divides
from jaxscale.parallel.sharding import Rules, fit_rules, make_rules, on_mesh
from jaxscale.training.checkpoint import Checkpointer, Unsaved
from jaxscale.training.events import Events
from jaxscale.training.executable import load_executable
from jaxscale.training.feed import Feed, has_documents, open_run_tokenizer, open_source
from jaxscale.training.guard import Guard, Rollback
from jaxscale.training.metrics import Meter, Speed, device_memory, model_flops_per_token
from jaxscale.training.peak import Peak, find_peak
from jaxscale.training.places import open_place
from jaxscale.training.run import write_run_files
from jaxscale.training.step import ModelFactory, Program, TrainState, abstract_batch, batch_sharding, make_program
from jaxscale.training.watcher import Silent, Watcher
from jaxscale.training.writer import MetricsWriter, require_writers


@dataclass
class Result:
    """How a run ended. Losses are nats a token."""

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
            mesh = make_mesh(config.mesh, devices)
            rules = rules_for(config, mesh, decoder=model is None)
            peak = find_peak(devices, config.step.compute_dtype)
        # --- data
        with events.during("data"):
            rows, validation_rows = open_source(config, "train"), open_source(config, "validation")
            assert rows is not None
            tokenizer = open_run_tokenizer(config)
        about: dict[str, Any] = {
            "seed": config.seed,
            "batch_size": config.data.batch_size,
            "seq_len": config.data.seq_len,
        }
        about |= {"fingerprint": rows.fingerprint, "path": config.data.path}
        kind, length = devices[0].device_kind, config.data.seq_len
        watcher.say(f"mesh {describe_mesh(mesh)} of {kind}; {len(rows):,} rows of {length} tokens")
        if devices[0].platform == "tpu" and (note := older_libtpu()):
            watcher.say(note)
        events.write("init", "start")
        with on_mesh(mesh, rules):
            # --- state: from a checkpoint, or born sharded
            if model is None:
                require_attention(config)
            program = make_program(config, model)
            if executable is not None:
                batch = abstract_batch(config, mesh, documents=has_documents(config, rows))
                program = replace(program, step=load_executable(executable, config, devices, program, batch))
            checkpointer, run = open_checkpoints(config), None
            try:
                run = Run(config, program, checkpointer, about, watcher, monitor, mesh, events)
                state = run.restore() or program.init()
                events.open(config.out_dir, watcher.say)  # a run that is refused has changed nothing
                write_run_files(config.out_dir, config, devices, tokenizer, peak)
                # --- the loop
                run.open(int(state.step), Meter(config, peak, model_flops_per_token(config, model)))
                events.write("init", "end", int(state.step))
                state = run.go(state, rows, validation_rows)
            finally:
                watcher.finish()
                if run:
                    run.close()
                checkpointer.close()
                events.close()
    if monitor.signal and int(state.step) < config.steps:
        where = f"step {int(state.step)}; the same command resumes from there ({config.out_dir})"
        raise Stopped(f"stopped after {where}", monitor.signal)
    last = run.losses[max(run.losses)] if run.losses else None
    speed = run.meter.speed()
    return Result(
        int(state.step), last, run.validation_loss, speed, peak, config.out_dir, mesh, rules, program, state, run.losses
    )


def rules_for(config: cfg.Config, mesh: Mesh, *, decoder: bool) -> Rules:
    """The sharding rules, checked against the mesh; a model of one's own is checked for its batch only."""
    rules = make_rules(config.sharding)
    if decoder:
        return fit_rules(rules, mesh.shape, config)
    rows = config.data.batch_size // config.step.microbatches
    require_divides("rows of a microbatch", rows, count(rules.activations["batch"], mesh.shape), "the batch axes")
    return rules


def open_checkpoints(config: cfg.Config) -> Checkpointer:
    open_place(config.checkpoint_place)  # a store that is not there is refused before anything is written
    try:
        config.out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot write to out={config.out}: {error.strerror}; choose a directory that can be written"
        ) from error
    checkpointer = Checkpointer(config.checkpoint_place, config.checkpoint)
    if not config.checkpoint.resume and checkpointer.steps():
        raise ValueError(
            f"{config.out} has checkpoints and checkpoint.resume=false; choose another out= (nothing is overwritten)"
        )
    return checkpointer


class Run:
    """The loop and what it carries from step to step."""

    meter: Meter
    writer: MetricsWriter
    guard: Guard

    def __init__(self, config, program, checkpointer, about_data, watcher, monitor, mesh, events):
        self.config: cfg.Config = config
        self.program: Program = program
        self.checkpointer: Checkpointer = checkpointer
        self.monitor: Monitor = monitor
        self.about_data, self.watcher, self.mesh, self.events = about_data, watcher, mesh, events
        self.losses: dict[int, float] = {}
        self.validation_loss: float | None = None
        self.saved: int | None = None  # the newest checkpoint, which may be being written
        self.skipped = 0  # batches that rollbacks have left out: step s reads batch s + skipped
        self.clock: float | None = None  # when the last read step was done; None: do not time the next

    def restore(self) -> TrainState | None:
        found = self.checkpointer.restore_latest(self.program.abstract, self.config, say=self.watcher.say)
        if found is None:
            return None
        state, meta = found
        self.saved, self.skipped = int(state.step), meta["data"].get("skipped", 0)
        self.watcher.say(f"resuming from step {self.saved} of {self.config.out_dir}")
        old = meta["data"]
        changed = [f"{k} {old.get(k)!r} -> {v!r}" for k, v in self.about_data.items() if old.get(k) != v]
        if changed:
            self.watcher.say(f"the data changed since the checkpoint ({', '.join(changed)}): its steps saw other rows")
        return state

    def open(self, first: int, meter: Meter) -> None:
        self.meter, say = meter, self.watcher.say
        self.writer = MetricsWriter(self.config.out_dir, self.config, start_step=first, say=say)
        self.guard = Guard(self.config, self.program, self.mesh, self.writer, say)

    def close(self) -> None:
        if hasattr(self, "writer"):
            self.writer.close()

    def go(self, state: TrainState, rows: Any, validation_rows: Any) -> TrainState:
        """All steps to the last, going back to a checkpoint as often as the guard says."""
        config, first = self.config, int(state.step)
        self.watcher.start(first, config)
        if first == 0 and config.evaluation.every and validation_rows is not None:
            self.evaluate(state, 0, validation_rows)
        while True:
            start, stop = first + self.skipped, max(first, config.steps) + self.skipped
            parts = config.step.microbatches
            feed = Feed(rows, config, batch_sharding(self.mesh), start_step=start, stop_step=stop, microbatches=parts,
                        shuffle=config.data.shuffle)  # fmt: skip
            try:
                with contextlib.closing(feed):
                    return self.loop(state, first, feed, validation_rows)
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
        skipped = self.skipped
        state = self.restore()
        if state is None:  # the first one could not be written
            raise ValueError(f"{bad} at step {bad.step}: stopped; there is no checkpoint to go back to")
        first = int(state.step)
        self.skipped = skipped + bad.step - first
        self.clock = None
        self.losses = {step: loss for step, loss in self.losses.items() if step <= first}
        self.writer.go_back(first)
        about: dict[str, float | str] = {"from": bad.step, "batches_skipped": self.skipped, "cause": str(bad)}
        self.writer.write("rollback", first, about)
        self.watcher.say(f"step {bad.step}: {bad}; back to step {first}, past {bad.step - first} batches")
        self.events.write("rollback", "end", first)
        return state

    def loop(self, state: TrainState, first: int, feed: Feed, validation_rows: Any) -> TrainState:
        """Steps first .. config.steps. The host reads a step's metrics after it has dispatched the next one."""
        config, done = self.config, first
        pending: tuple[int, Any, float] | None = None
        batch = None
        if first < config.steps and self.monitor.may_start(first):
            with self.events.during("data wait", first):
                batch = next(feed)
            self.compile(state, batch)
        for step in range(first + 1, config.steps + 1):
            if not self.monitor.may_start(step):  # a signal: all processes stop after the same step
                break
            assert batch is not None
            if due(step, config.guard.recompute_every):
                with self.events.during("recompute", step):
                    self.guard.recompute(step, state, batch)
                self.clock = None
            wait = feed.wait_seconds
            state, metrics = self.program.step(state, batch)
            if step < config.steps:
                batch = next(feed)  # placed while the devices work
            if pending:
                self.read(*pending)
            pending, done = (step, metrics, wait), step
            if step == config.steps or due(step, config.evaluation.every) or due(step, config.checkpoint.every):
                self.read(*pending)  # nothing is saved or judged before this step's loss is known to be finite
                pending, self.clock = None, None
                if validation_rows is not None and (due(step, config.evaluation.every) or step == config.steps):
                    self.evaluate(state, step, validation_rows)
                if due(step, config.checkpoint.every) and step < config.steps:
                    self.save(state, step)
        if pending:
            self.read(*pending)
        self.save(state, done, last=True)
        return state

    def compile(self, state: TrainState, batch: Any) -> None:
        """Trace, lower and compile, apart from the first step, which then finds the program in jit's cache."""
        if lower := getattr(self.program.step, "lower", None):  # an executable from a file has nothing to compile
            with self.events.during("compile"):
                lower(state, batch).compile()

    def read(self, step: int, metrics: Any, wait: float) -> None:
        """Fetch one step's metrics (the only place where the host waits for the devices), and tell of them."""
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        now = time.perf_counter()
        if self.clock is not None:
            self.meter.add(now - self.clock, wait)
        self.clock = now
        self.events.step(step, wait)
        self.guard.judge(step, values, self.saved)
        self.losses[step] = values["loss"]
        speed = self.meter.speed(last=50)
        self.watcher.step(step, values, speed)
        if due(step, self.config.metrics.every) or step == self.config.steps:
            self.writer.write("train", step, values | self.speed_values(speed, wait))

    def speed_values(self, speed: Speed | None, wait: float) -> dict[str, float]:
        values: dict[str, float] = {"data_wait_seconds": wait} | dict(device_memory(list(self.mesh.devices.flat)))
        if speed:
            values |= {
                "step_seconds": self.meter.seconds[-1],
                "step_seconds_median": speed.step_seconds,
                "step_seconds_p95": speed.step_seconds_p95,
                "tokens_per_second": speed.tokens_per_second,
            }
            if speed.mfu is not None:
                values["mfu"] = speed.mfu
        return values

    def evaluate(self, state: TrainState, step: int, rows: Any) -> None:
        """Mean loss over the first `evaluation.batches` batches of the validation split, always the same ones."""
        batches = min(self.config.evaluation.batches, max(1, len(rows) // self.config.data.batch_size))
        feed = Feed(rows, self.config, batch_sharding(self.mesh), stop_step=batches, shuffle=False)
        with self.events.during("evaluation", step), contextlib.closing(feed):
            totals = jax.device_get([self.program.evaluate(state, batch) for batch in feed])
        self.validation_loss = float(sum(t["cross_entropy"] for t in totals) / sum(t["tokens"] for t in totals))
        self.writer.write("validation", step, {"loss": self.validation_loss, "batches": batches})
        self.watcher.say(f"step {step}: validation loss {self.validation_loss:.4f}")

    def save(self, state: TrainState, step: int, *, last: bool = False) -> None:
        """Start a checkpoint; one that cannot be written is told of, and only the last one's failure is an error."""
        failed = ""
        with self.events.during("checkpoint", step):
            if step and step != self.saved:
                if late := self.checkpointer.still_writing():
                    self.watcher.say(f"{late}: step {step} waits for it before it is saved")
                if failed := self.checkpointer.settle():
                    self.tell_unsaved(failed)
                try:
                    seconds = self.checkpointer.save(step, state, self.config, self.about_data | self.left_out())
                    self.saved, failed = step, ""
                    self.writer.write("checkpoint", step, {"blocking_seconds": seconds})
                except Unsaved as error:
                    failed = str(error)
            if last:
                failed = failed or self.checkpointer.settle()
        if failed and not last:
            self.tell_unsaved(failed)
        elif failed:
            raise ValueError(f"{failed}; {self.last_good()}; make room, and the same command goes on from there")

    def tell_unsaved(self, failed: str) -> None:
        self.saved = self.checkpointer.good
        self.watcher.say(f"{failed}; training goes on, {self.last_good()}")

    def last_good(self) -> str:
        good = self.checkpointer.good
        return f"the last good checkpoint is step {good}" if good else "there is no checkpoint yet"

    def left_out(self) -> dict[str, int]:
        return {"skipped": self.skipped} if self.skipped else {}


def due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
