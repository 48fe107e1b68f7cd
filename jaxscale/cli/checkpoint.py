"""`jaxscale checkpoint ...`: what a run has saved, whether it is whole, and taking some of it away."""

import json
from typing import Annotated

import typer

PLACE = 16
EXAMPLE = "jaxscale checkpoint list runs/first"
app = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,
    help="List, verify and remove checkpoints.",
    rich_markup_mode=None,
)

Directory = Annotated[
    str, typer.Argument(metavar="DIR", help="A run's directory, its checkpoints' directory, or s3://bucket/prefix.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Everything, for programs.")]


@app.command("list")
def list_(directory: Directory, as_json: AsJson = False) -> None:
    """List checkpoints: step, date, size, and which are half-written or were set aside as damaged."""
    from jaxscale.checkpoint import inventory
    from jaxscale.console import checkpoint as console_checkpoint

    place = inventory.find_place(directory)
    kept = inventory.inventory(place)
    if as_json:
        print(json.dumps({"place": str(place), "checkpoints": [console_checkpoint.as_json(k) for k in kept]}, indent=2))
    else:
        console_checkpoint.show(place, kept)


@app.command()
def verify(
    directory: Directory,
    step: Annotated[int | None, typer.Option(min=0, help="Only the checkpoint of this step; by default all.")] = None,
) -> None:
    """Read every array and compare it with its checksum from the save. The exit code is 1 if one differs."""
    from jaxscale.checkpoint import inventory

    place = inventory.find_place(directory)
    kept = [k for k in inventory.inventory(place) if k.status == "committed"]
    there = inventory.steps_of(kept)
    if not kept or (step is not None and step not in there):
        what = "no checkpoint" if step is None or not kept else f"no checkpoint of step {step}"
        raise ValueError(f"{place} has {what}; it has {there or 'none'}")
    from jaxscale.checkpoint.verify import verify as read

    bad = 0
    for one in kept:
        if step is None or one.step == step:
            verdict = read(place, one)
            bad += bool(verdict.problems)
            print("\n".join(verdict.lines()), flush=True)
    if bad:
        raise typer.Exit(1)


@app.command()
def rm(
    directory: Directory,
    step: Annotated[list[int] | None, typer.Option(min=0, help="The step to remove; repeatable.")] = None,
    keep_last: Annotated[int | None, typer.Option(min=1, help="Remove all but the last N.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also remove the last whole checkpoint.")] = False,
) -> None:
    """Remove checkpoints, without asking, and say what was freed. --force also removes the last whole one.

    This is refused while a run trains there, because the run needs its checkpoints.
    """
    from jaxscale.checkpoint import inventory

    if bool(step) == (keep_last is not None):
        raise ValueError("say which: --step N (several times), or --keep-last N; one of the two")
    place = inventory.find_place(directory)
    with inventory.alone(place):
        kept = inventory.inventory(place)
        gone = inventory.chosen(kept, step or [], keep_last, where=place, force=force)
        for one in gone:
            inventory.take_away(place, one)
            print(f"removed step {one.step}: {one.bytes:,} bytes freed", flush=True)
    left = [s for s in inventory.steps_of(kept) if s not in [k.step for k in gone]]
    print(f"{sum(k.bytes for k in gone):,} bytes freed in all; left: {', '.join(map(str, left)) or 'none'}")
