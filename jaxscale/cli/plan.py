"""`jaxscale plan`."""

from pathlib import Path
from typing import Annotated

import typer

from jaxscale.cli.options import CONFIG_HELP, HostMemory, Network, Overrides, Slices, TopologyName, load_for
from jaxscale.files.whole import require_file

PLACE = 6
EXAMPLE = "jaxscale plan llama3.1-8b --topology v5p-128"


def verb(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    overrides: Overrides = None,
    topology: TopologyName = "",
    slices: Slices = 1,
    network: Network = None,
    host_memory: HostMemory = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens per step; by default the config's.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 10,
    measured: Annotated[
        Path | None, typer.Option(help="A record of `bench collectives`: use its link speeds, not the datasheet's.")
    ] = None,
    compile_best: Annotated[
        int, typer.Option("--compile", min=0, help="Also compile the best K and show both numbers.")
    ] = 0,
    budget: Annotated[
        str | None, typer.Option(help="FLOPs to spend, e.g. 1e24 or 1mol; shows tokens and days.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the best row as a run file for train.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
) -> None:
    """Rank every mesh for a topology by predicted speed. It also tries microbatches and remat, and keeps what fits.

    Keys on the command line (mesh.*, step.microbatches, step.remat, loss.chunk) stay fixed. Row 0 is the config.
    """
    from jaxscale.compiled import story as predict
    from jaxscale.console import plan as console_plan
    from jaxscale.predict import costs
    from jaxscale.predict import plan as planning
    from jaxscale.predict.advice import what_would_do
    from jaxscale.predict.ways import held_keys

    amount = None if budget is None else planning.read_budget(budget)
    require_file(out)
    loaded, where = load_for(config, overrides, topology, slices, network, host_memory)
    if batch_tokens is not None:
        loaded = predict.with_batch_tokens(loaded, batch_tokens)
    own_links = predict.measured_links(measured, where) if measured else None
    documents, held = costs.packs_documents(loaded), held_keys(overrides or [])
    plan = planning.plan(loaded, where, documents=documents, measured=own_links, held=held)
    advice = [] if plan.choices else what_would_do(loaded, plan, documents=documents)
    compiled = [predict.answer(c.config, where) for c in plan.choices[:compile_best]]
    if out is not None and plan.choices:
        predict.write_config(plan.choices[0], where, out)
    spent = None if amount is None or not plan.choices else planning.spend(amount, plan.choices[0])
    if as_json:
        console_plan.print_plan_json(plan, compiled, spent, rows, advice)
    else:
        console_plan.show_plan(loaded, plan, compiled, spent, rows=rows, out=out, advice=advice)
    if not plan.choices:
        raise typer.Exit(1)
