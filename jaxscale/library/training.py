"""`jaxscale.train`: a run that shows how it goes where a person looks, and a result that shows itself."""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxscale import config as cfg
from jaxscale.console.tables import make_console
from jaxscale.console.train import TrainingConsole, result_table, step_figures
from jaxscale.files.jsonl import read_records
from jaxscale.library.predictions import found_config
from jaxscale.library.views import View
from jaxscale.process.quiet import quiet_inside
from jaxscale.training.step import ModelFactory
from jaxscale.training.trainer import Result
from jaxscale.training.trainer import train as run
from jaxscale.training.watcher import Watcher

LOG = logging.getLogger("jaxscale")
SHOWN = 12  # lines of a run in a notebook
BAR = 40  # characters
PRE = '<pre style="white-space:pre-wrap;line-height:1.4">{}</pre>'


@dataclass(repr=False)
class TrainingView(View, Result):
    """A `training.trainer.Result`, which a notebook shows as the verb's closing table."""

    config: cfg.Config | None = None

    def show(self) -> None:
        assert self.config is not None
        make_console().print(result_table(self.config, self, read_records(self.out / "metrics.jsonl")))


def train(
    config: cfg.Config | str | Path,
    *,
    model: ModelFactory | None = None,
    watcher: Watcher | None = None,
    executable: Path | None = None,
) -> TrainingView:
    """Train as `config` says, from its newest checkpoint if there is one.

    Its progress is a bar on a terminal and a line that is rewritten in a notebook. Elsewhere it goes to the logger
    `jaxscale` at level INFO.

    Args:
        config: a config, or what `load_config` takes.
        model: rngs -> any nnx.Module that maps tokens [B, T] to logits [B, T, V] and whose parameters carry logical
            axes; None: the decoder of `config.model`.
        watcher: told of every step in place of what is shown; `training.watcher.Silent()` for silence.
        executable: a step that `jaxscale compile --save` wrote for this config and these devices.

    Raises:
        ValueError: what cannot work, in one line.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, the state saved.
    """
    loaded = found_config(config)
    with quiet_inside():
        result = run(loaded, model=model, watcher=watcher or watcher_here(loaded), executable=executable)
    return TrainingView.of(result, config=loaded)


def watcher_here(config: cfg.Config) -> Watcher:
    """Who shows a run in this process."""
    if Console().is_jupyter:
        return NotebookConsole(config)
    return TrainingConsole(config) if sys.stdout.isatty() else LoggingConsole(config)


class LoggingConsole(TrainingConsole):
    """The lines of a run without a terminal, to the logger of this package."""

    def say(self, line: str) -> None:
        if self.speaks():
            LOG.info("%s", line)


class NotebookConsole(TrainingConsole):
    """The newest lines of a run, and a bar, in one output that is rewritten."""

    def __init__(self, config: cfg.Config):
        super().__init__(config)
        self.lines: list[str] = []
        self.now = ""
        self.output: Any = None

    def say(self, line: str) -> None:
        if self.speaks():
            self.lines.append(line)
            self.draw()

    def step(self, step: int, values: Mapping[str, Any], speed: Any) -> None:
        if not self.speaks():
            return
        done = round(BAR * step / self.config.steps)
        left, seconds = self.pace.left(step, self.config.steps), values.get("step_seconds", 0.0)
        self.now = f"[{'#' * done:<{BAR}}]\n{self.line(step, left, seconds, step_figures(values, speed))}"
        self.draw()

    def finish(self) -> None:
        self.lines += [self.now] if self.now else []
        self.now = ""
        self.draw()

    def draw(self) -> None:
        from IPython.display import HTML, display

        shown = [*self.lines[-SHOWN:], *([self.now] if self.now else [])]
        page = HTML(PRE.format(escape("\n".join(shown))))
        if self.output is None:
            self.output = display(page, display_id=True)
        else:
            self.output.update(page)
