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
    help="Ten exercises in splitting matmuls, with a grader.",
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A puzzle's name or number; `puzzle list` shows them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Everything, for programs.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the puzzles by difficulty: topic, main collective, chapter of the course."""
    from jaxscale.console import puzzle as console_puzzle

    print(json.dumps(console_puzzle.catalogue_values(), indent=2)) if as_json else console_puzzle.show_list()


@app.command()
def get(
    name: Name,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file or its directory; by default the current directory.")
    ] = None,
) -> None:
    """Write a puzzle's file, for you to edit. It never overwrites a file."""
    from jaxscale.puzzles import catalogue, files

    path = files.write_fresh(catalogue.find(name), out)
    print(f"{path}: read it, replace its `raise NotImplementedError`, then: jaxscale puzzle check {path}")


@app.command()
def hint(
    name: Name,
    number: Annotated[int, typer.Argument(min=1, metavar="[N]", help="Number of the hint; later hints say more.")] = 1,
    every: Annotated[bool, typer.Option("--all", help="Show all hints.")] = False,
) -> None:
    """Show hints one at a time, from a first idea to almost the solution."""
    from jaxscale.console import puzzle as console_puzzle
    from jaxscale.puzzles import catalogue

    console_puzzle.show_hints(catalogue.find(name), None if every else number)


@app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Your edited files from `puzzle get`.")],
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Time limit per file, in seconds.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Grade solutions on 8 simulated devices: numbers, layout, communication, memory. Exit code 1 unless all pass."""
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
