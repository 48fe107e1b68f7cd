"""`jaxscale train`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from jaxscale.cli.options import CONFIG_HELP, Overrides
from jaxscale.cli.refusal import fail

PLACE = 9
EXAMPLE = "jaxscale train quickstart steps=200 out=runs/first"


def verb(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    overrides: Overrides = None,
    sample: Annotated[str | None, typer.Option(help="After training, continue this text with the model.")] = None,
    executable: Annotated[
        Path | None, typer.Option(help="A step that `compile --save` wrote. Nothing is compiled.")
    ] = None,
) -> None:
    """Train a model. If the run's directory has checkpoints, training resumes from the newest."""
    from jaxscale.config import load_config
    from jaxscale.console import train as console

    loaded = load_config(config, overrides or [])
    from jaxscale.process.heap import keep_heap
    from jaxscale.training.trainer import train as run

    if loaded.runtime.platform == "cpu":
        keep_heap()
    try:
        result = run(loaded, watcher=console.TrainingConsole(loaded), executable=executable)
    except KeyboardInterrupt as error:  # typer would leave without saying how to resume
        sys.exit(fail(str(error) or "stopped", getattr(error, "code", 130)))
    console.summarise(loaded, result, sample=sample)
