"""`jaxscale puzzle ...`: ten exercises, hints, and a grader. Each verb imports its room when it runs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

PLACE = 22
EXAMPLE = "jaxscale puzzle list"
app = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,
    help="Ten exercises in cutting matmuls, with a grader.",
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A puzzle's name or number; `puzzle list` has them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Everything, for programs.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The puzzles in order of difficulty: what each is about, which collective it turns on, the course's chapter."""
    from jaxscale.console import puzzle as console_puzzle

    print(json.dumps(console_puzzle.catalogue_values(), indent=2)) if as_json else console_puzzle.show_list()


@app.command()
def get(
    name: Name,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file, or the directory to put it in; by default here.")
    ] = None,
) -> None:
    """Write a puzzle's file, for you to edit. Never writes over a file."""
    from jaxscale.puzzles import catalogue, files

    path = files.write_fresh(catalogue.find(name), out)
    print(f"{path}: read it, replace its `raise NotImplementedError`, then: jaxscale puzzle check {path}")


@app.command()
def hint(
    name: Name,
    number: Annotated[int, typer.Argument(min=1, metavar="[N]", help="Which hint; they get plainer.")] = 1,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Hints, one at a time: from a nudge to nearly there."""
    from jaxscale.console import puzzle as console_puzzle
    from jaxscale.puzzles import catalogue

    console_puzzle.show_hints(catalogue.find(name), None if every else number)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files that `puzzle get` wrote, edited.")],
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Longest time for a file.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Run solutions on 8 simulated devices: numbers, layout, what is sent and held. Exit code 1 unless all pass."""
    from jaxscale.console import puzzle as console_puzzle
    from jaxscale.puzzles import grade
    from jaxscale.puzzles.files import which

    verdicts = []
    for verdict in grade.grade([(path, which(path)) for path in files], seconds):
        verdicts.append(verdict)
        if not as_json:
            console_puzzle.show_verdict(verdict)
    if as_json:
        print(json.dumps([asdict(v) | {"solved": v.solved} for v in verdicts], indent=2))
    elif len(verdicts) > 1:
        print(f"{sum(v.solved for v in verdicts)} of {len(verdicts)} solved")
    if not all(v.solved for v in verdicts):
        raise typer.Exit(1)
