"""`jaxscale ladder ...`: runs of one recipe at several sizes."""

import json
import shlex
import sys
from typing import Annotated

import typer

from jaxscale.cli.options import Overrides, TopologyName
from jaxscale.cli.refusal import fail

PLACE = 20
EXAMPLE = "jaxscale ladder plan library"
app = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,
    help="Train one recipe at several sizes, for a law or for abilities.",
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(metavar="LADDER", help="A ladder file, or the name of a shipped one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Everything, for programs.")]


@app.command()
def plan(
    name: Name,
    overrides: Overrides = None,
    topology: TopologyName = "",
    as_json: AsJson = False,
) -> None:
    """Show each rung's size, tokens, FLOPs and, with a topology, seconds; and the cost as a share of the target."""
    from jaxscale.console import ladder as console
    from jaxscale.hardware.stated import read_topology
    from jaxscale.scaling.costed import costed
    from jaxscale.scaling.ladder import read_ladder, rungs_of

    read = read_ladder(name)
    rungs = rungs_of(read, overrides or [])
    where = None
    if topology:
        where, lines = read_topology(topology, 1)
        for line in lines:
            print(line, file=sys.stderr)
    costed_ladder = costed(read, rungs, where)
    if as_json:
        print(json.dumps(console.plan_as_json(read, costed_ladder, where), indent=1))
    else:
        console.show_plan(read, costed_ladder, where)


@app.command()
def run(
    name: Name,
    overrides: Overrides = None,
    prefix: Annotated[
        str,
        typer.Option(
            help="Command put before `train` for each rung, e.g. 'jaxscale launch --processes 2 --' or 'srun -l'."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Train each rung in a fresh process, the cheapest first. The same command resumes the ladder."""
    from jaxscale.console import ladder as console
    from jaxscale.scaling.climb import Ended, climb
    from jaxscale.scaling.ladder import read_ladder, rungs_of

    read = read_ladder(name)
    rungs = rungs_of(read, overrides or [])
    try:
        path = climb(read, rungs, shlex.split(prefix), say=lambda line: print(line, file=sys.stderr, flush=True))
    except Ended as end:
        sys.exit(fail(str(end), end.code))
    if as_json:
        print(path.read_text(encoding="utf-8"), end="")
    else:
        console.show_record(path)
