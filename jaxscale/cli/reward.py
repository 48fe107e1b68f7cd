"""`jaxscale reward`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jaxscale.cli.options import Overrides
from jaxscale.cli.refusal import ended_at_once

PLACE = 15
EXAMPLE = "jaxscale reward runs/judge pairs.jsonl -o scores.jsonl"


def verb(
    run: Annotated[Path, typer.Argument(help="The directory of a reward model's run.")],
    file: Annotated[
        Path,
        typer.Argument(help='JSONL: {"prompt", "completion"} or {"prompt", "chosen", "rejected"}, text or messages.'),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL file to write: each record with its scores.")],
    overrides: Overrides = None,
    step: Annotated[int | None, typer.Option(help="Step of the checkpoint; by default the newest.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary, for programs.")] = False,
) -> None:
    """Score each text of a file with a reward model. For pairs it also shows the accuracy."""
    from jaxscale.console.reward import lines
    from jaxscale.serving.reward import score_file

    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    with ended_at_once():
        summary = score_file(run, file, out, overrides or [], step=step, say=say)
    if summary is not None:
        print(json.dumps(summary, indent=1) if as_json else "\n".join(lines(summary)))
