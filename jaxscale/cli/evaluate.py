"""`jaxscale evaluate`."""

import json
import sys
from typing import Annotated

import typer

from jaxscale.cli.options import Overrides
from jaxscale.cli.refusal import fail

PLACE = 4


def verb(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The directory of a run, or hf:DIR: a published model.")],
    overrides: Overrides = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="A prepared dataset, or a file or directory of text; several times. Else the run's."),
    ] = None,
    split: Annotated[str, typer.Option(help="Of prepared datasets: validation or train.")] = "validation",
    step: Annotated[int | None, typer.Option(help="Of this checkpoint; by default the newest.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="byte or a tokenizer.json, where the run has none.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
) -> None:
    """Loss, perplexity and bits a byte of a model on text, source by source, on any mesh. Nothing is trained."""
    from jaxscale.console import evaluate as console
    from jaxscale.serving.evaluate import evaluate_places, first_process

    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    try:
        found = evaluate_places(run, data or [], overrides or [], split=split, step=step, tokenizer=tokenizer, say=say)
    except KeyboardInterrupt as error:
        sys.exit(fail(str(error) or "stopped", getattr(error, "code", 130)))
    if not first_process():
        return
    if as_json:
        print(json.dumps(console.as_json(found), indent=1))
    else:
        console.show(found)
