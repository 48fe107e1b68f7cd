"""What happens in a run, told once: the journal passes each happening to those who follow the run.

    say, describe        console
    during, step_done    events.jsonl, monitor
    step, record         metrics.jsonl (with TensorBoard and wandb), console
    open, finish, close  each of them that begins or ends there

It decides nothing. The trainer says when a step is judged, saved or measured.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from jaxscale import config as cfg
from jaxscale.cluster.monitor import Monitor
from jaxscale.data.tokens import RowSource
from jaxscale.training.events import Events
from jaxscale.training.metrics import Speed
from jaxscale.training.watcher import Watcher
from jaxscale.training.writer import MetricsWriter


@dataclass
class Span:
    """Something that takes time. Its end names `step`: set it if the step is another one by then."""

    step: int | None


class Journal:
    """Passes what a run tells to its subscribers.

    Attributes:
        monitor: hears of each event; None until the processes have met.
        metrics: None until `open`.
        newest: numbers of the newest record of each kind, as `kind/name`.
    """

    def __init__(self, watcher: Watcher):
        self.watcher, self.events = watcher, Events()
        self.monitor: Monitor | None = None
        self.metrics: MetricsWriter | None = None
        self.newest: dict[str, float] = {}
        self.mark("run", "start")

    def say(self, line: str) -> None:
        self.watcher.say(line)

    def describe(self, config: cfg.Config, mesh: Mesh, rows: RowSource, *, decoder: bool) -> None:
        """What is going to run, before anything is made or restored."""
        self.watcher.describe(config, mesh, rows, decoder=decoder)

    def open(self, config: cfg.Config, first_step: int) -> None:
        """The run owns its directory and begins after this step: its files are written from here on."""
        self.events.open(config.out_dir, self.say)
        self.metrics = MetricsWriter(config.out_dir, config, start_step=first_step, say=self.say)
        self.watcher.start(first_step, config)

    # --- time

    @property
    def last(self) -> float:
        """When the newest event was, by `time.perf_counter`."""
        return self.events.last

    @contextlib.contextmanager
    def during(self, event: str, step: int | None = None) -> Iterator[Span]:
        """Start and end of what is done inside; an end also when it fails."""
        span = Span(step)
        self.mark(event, "start", step)
        try:
            yield span
        finally:
            self.mark(event, "end", span.step)

    def step_done(self, step: int, at: float, data_wait_seconds: float) -> float:
        """The seconds of a step that was done at `at`, from the end of whatever came before: so the parts add up."""
        seconds = max(0.0, at - self.last)
        self.mark("step", "end", step, at=at, seconds=seconds, data_wait_seconds=data_wait_seconds)
        return seconds

    def mark(self, event: str, phase: str, step: int | None = None, **more: float) -> None:
        """One line of events.jsonl; the monitor hears of it first."""
        if self.monitor:
            self.monitor.follow(event, phase, step)
        self.events.write(event, phase, step, **more)

    # --- figures

    def step(self, step: int, values: Mapping[str, Any], speed: Speed | None, *, kept: bool) -> None:
        """A step's figures; `kept`: also as a record."""
        self.watcher.step(step, {**values, **self.newest}, speed)
        if kept:
            self.writer.write("train", step, values)

    def record(
        self,
        kind: str,
        step: int,
        values: Mapping[str, Any],
        *,
        plotted: Mapping[str, Any] | None = None,
        line: str = "",
    ) -> None:
        """Figures of another kind, and what the console says of them. It sees the numbers with the steps that follow.

        Args:
            plotted: those for TensorBoard and wandb; None: all of them.
        """
        self.newest |= {f"{kind}/{name}": value for name, value in values.items() if isinstance(value, float)}
        self.writer.write(kind, step, values, plotted=plotted)
        if line:
            self.say(line)

    def go_back(self, step: int) -> None:
        """The steps after this one are done again: their records go."""
        self.writer.go_back(step)

    @property
    def writer(self) -> MetricsWriter:
        assert self.metrics is not None, "figures come after `open`"
        return self.metrics

    # --- the end

    def finish(self) -> None:
        """No step or figure follows. What still takes time may."""
        self.watcher.finish()
        if self.metrics:
            self.metrics.close()

    def close(self) -> None:
        """The run has ended."""
        self.mark("run", "end")
        self.events.close()
