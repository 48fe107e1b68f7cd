"""`jaxscale launch ... -- train CONFIG ...`: what is asked for, read with `train`'s own parser."""

from typing import Annotated, Any

import typer

PLACE = 10
EXAMPLE = "jaxscale launch --processes 2 -- train quickstart"


def verb(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="-- train CONFIG ...", help="What each process runs.")],
    processes: Annotated[int, typer.Option(min=1, help="Processes on this machine; with GPUs, one per GPU.")],
    devices_per_process: Annotated[
        int | None,
        typer.Option(min=1, help="Simulated devices per process, on a CPU; by default the config's number is shared."),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0,
            help="Restarts after a failure, from the newest checkpoint. It gives up after three that gain no step.",
        ),
    ] = 0,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds the other processes have to end after one failed.")
    ] = 10.0,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the coordinator, on loopback; by default a free one.")
    ] = None,
) -> None:
    """Train in several processes on this machine. If one fails, all are stopped, and restarted if you ask for it."""
    from jaxscale.cluster import launch as room

    if command[0] != "train":
        raise ValueError(f"launch starts `train`, not {command[0]!r}; give `-- train CONFIG ...`")
    verbs: Any = context.find_root().command  # the group of all verbs
    asked = verbs.commands["train"].make_context("jaxscale train", command[1:]).params
    team = room.Team(processes, devices_per_process, max_restarts, grace, port)
    raise typer.Exit(room.launch(command, asked["config"], asked["overrides"] or [], team))
