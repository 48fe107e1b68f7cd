"""`jaxscale compile`."""

from pathlib import Path
from typing import Annotated

import typer

from jaxscale.cli.options import CONFIG_HELP, HostMemory, Network, Overrides, Slices, TopologyName, load_for
from jaxscale.files.whole import require_file

PLACE = 7
EXAMPLE = "jaxscale compile llama3.1-8b --topology v5p:2x2x4"


def verb(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    overrides: Overrides = None,
    topology: TopologyName = "",
    slices: Slices = 1,
    network: Network = None,
    host_memory: HostMemory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
    hlo: Annotated[Path | None, typer.Option(help="Write the compiled program's text here.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the executable here, for train --executable.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the compilers' own output.")] = False,
) -> None:
    """Compile the training step for a machine you do not have. It shows memory, FLOPs, collectives, predicted speed."""
    from jaxscale.compiled import story as predict
    from jaxscale.compiled.libtpu import older_libtpu
    from jaxscale.console import predict as console_predict

    loaded, where = load_for(config, overrides, topology, slices, network, host_memory)
    require_file(hlo, save)
    note = None if where.chip.node else older_libtpu()
    if note and not as_json:
        print(note, flush=True)
    answer = predict.answer(loaded, where, save=save, verbose=verbose)
    if hlo is not None:
        hlo.write_text(answer.kept.hlo)
    if as_json:
        console_predict.print_json(answer, note)
    elif answer.report is not None:
        console_predict.show_report(loaded, answer)
        if save is not None:
            print(f"executable in {save}" if answer.report.fits else f"--save {save}: not written, as it does not fit")
    if not answer.fits:
        if not as_json and not (answer.report and answer.report.fits):  # else it is the host that is short
            console_predict.show_out_of_memory(loaded, where, answer.needed, answer.buffers, answer.tried)
        raise typer.Exit(1)
