"""`jaxscale report`."""

from pathlib import Path
from typing import Annotated

import typer

PLACE = 8


def verb(
    inputs: Annotated[
        list[Path], typer.Argument(help="Directories of runs, records of benchmarks, directories of records.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page: one file, which opens offline.")] = Path(
        "report.html"
    ),
    png: Annotated[Path | None, typer.Option(help="Also write each plot as a PNG into this directory.")] = None,
) -> None:
    """One page of runs and benchmarks: plots, the figures behind them, and where each is from."""
    from jaxscale.report.report import report as run

    for line in run(inputs, out, png):
        print(line)
