"""`jaxscale report`."""

from pathlib import Path
from typing import Annotated

import typer

PLACE = 11
EXAMPLE = "jaxscale report runs/first -o report.html"


def verb(
    inputs: Annotated[
        list[Path], typer.Argument(help="Runs' directories, benchmark records, or directories of records.")
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The page: one file that opens offline; by default report.html.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Also write each plot as a PNG into this directory.")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Follow running runs in a browser.")] = False,
    port: Annotated[
        int, typer.Option(help="With --serve: the port, on this machine only; 0 takes any free one.")
    ] = 8000,
) -> None:
    """Write one page about runs and benchmarks. It has plots, the figures behind them, and the source of each."""
    if serve:
        if out or png:
            raise ValueError("--serve writes no file; give it without -o and --png, or leave it out")
        from jaxscale.report.serve import serve as follow

        follow(inputs, port, lambda line: print(line, flush=True))
        return
    from jaxscale.report.report import report as run

    for line in run(inputs, out or Path("report.html"), png):
        print(line)
