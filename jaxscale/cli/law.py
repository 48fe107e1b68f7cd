"""The `law` verbs: scaling laws out of a ladder's runs, and what they forecast."""

from pathlib import Path
from typing import Annotated

import typer

from jaxscale.cli.options import CONFIG_HELP, HostMemory, Network, Overrides, Slices, TopologyName

PLACE = 19
EXAMPLE = "jaxscale law fit runs.csv"
app = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,
    help="Fit scaling laws and forecast with them.",
    rich_markup_mode=None,
)
LawFile = Annotated[Path, typer.Argument(metavar="LAW", help="The file that `law fit` wrote.")]
AsJson = Annotated[bool, typer.Option("--json", help="Everything, for programs.")]


@app.command()
def fit(
    file: Annotated[Path, typer.Argument(help="A ladder's record, or a CSV or Parquet file with one row per run.")],
    form: Annotated[
        str | None,
        typer.Option(
            help="compute, chinchilla, isoflop, envelope, data or task; by default the ladder's own, or chinchilla."
        ),
    ] = None,
    hold_out: Annotated[
        str | None,
        typer.Option(
            help="Hold out the largest rung (`largest`), or the largest N, and compare them with the forecast."
        ),
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="QUANTITY=COLUMN, if a column has another name; repeatable.")
    ] = None,
    ability: Annotated[str | None, typer.Option(help="For the form task: the ability in the ladder's record.")] = None,
    with_embeddings: Annotated[bool, typer.Option("--with-embeddings", help="Count embeddings in N.")] = False,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file of the law.")] = Path("law.json"),
    as_json: AsJson = False,
) -> None:
    """Fit a law to runs, with 90 % intervals. Also shows its error on the largest rung, forecast from the others."""
    from jaxscale.console import law as console
    from jaxscale.files.whole import require_file
    from jaxscale.scaling import laws, table
    from jaxscale.scaling.law import write_law

    if form is not None:
        laws.form_of(form)
    require_file(out, give="give -o")
    if form == "task" and file.suffix == ".json" and ability is None:
        raise ValueError(f"--form task: say which ability of {file} with --ability NAME")
    runs = table.read_table(file, columns=pairs(column or []), ability=ability, embeddings=with_embeddings)
    if hold_out is not None:
        runs = table.hold_out(runs, hold_out)
    if form is None and runs.form == "none":
        raise ValueError(f"{file} is of a ladder for abilities alone; give --form to fit a law all the same")
    law = laws.fit(form or runs.form, runs)
    write_law(law, out)
    if as_json:
        console.print_json(law)
    else:
        console.show_law(law, out, runs.not_read)


def pairs(given: list[str]) -> dict[str, str]:
    """QUANTITY=COLUMN, each once."""
    columns: dict[str, str] = {}
    for one in given:
        quantity, equals, column = one.partition("=")
        if not equals or not quantity or not column or quantity in columns:
            raise ValueError(f"--column {one!r}: give QUANTITY=COLUMN once for a quantity, e.g. 'flops=Training FLOP'")
        columns[quantity] = column
    return columns


@app.command()
def forecast(
    law: LawFile,
    overrides: Overrides = None,
    config: Annotated[str, typer.Option(help=f"The run to forecast: {CONFIG_HELP}")] = "",
    tokens: Annotated[
        float | None, typer.Option(help="D, e.g. 2e12; by default the tokens of the config's steps.")
    ] = None,
    unique_tokens: Annotated[float | None, typer.Option(help="For the form data: unique tokens; by default D.")] = None,
    register: Annotated[
        Path | None, typer.Option(help="Write the forecast to this file before the run; `law verify` reads it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Forecast the loss of a future run, with a 90 % interval and its distance from the fitted data."""
    from jaxscale.config import load_config
    from jaxscale.console import law as console
    from jaxscale.scaling import forecast as forecasts
    from jaxscale.scaling.law import read_law
    from jaxscale.scaling.register import register as write

    read = read_law(law)
    if not config:
        raise ValueError("--config is missing: a law forecasts a run; give e.g. --config llama3.1-8b")
    loaded = load_config(config, overrides or [])
    prediction = forecasts.forecast(read, loaded, tokens=tokens, unique_tokens=unique_tokens)
    new = None if register is None else write(prediction, read, law, loaded, register)
    if as_json:
        console.print_json(prediction)
    else:
        console.show_forecast(prediction, register, new=new)


@app.command()
def optimum(
    law: LawFile,
    overrides: Overrides = None,
    flops: Annotated[str | None, typer.Option(help="The budget, e.g. 1e24 or 1mol.")] = None,
    days: Annotated[float | None, typer.Option(help="Instead: days on the topology.")] = None,
    topology: TopologyName = "",
    slices: Slices = 1,
    network: Network = None,
    host_memory: HostMemory = None,
    config: Annotated[str, typer.Option(help=f"The config that gives shape and batch: {CONFIG_HELP}")] = "llama3.1-8b",
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens per step; by default the config's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the best size and tokens for a budget: a model, its mesh and loss, and the command that trains it."""
    from jaxscale.cli.options import load_for
    from jaxscale.config import load_config
    from jaxscale.console import law as console
    from jaxscale.predict.plan import read_budget
    from jaxscale.scaling import optimum as best
    from jaxscale.scaling.law import read_law

    read = read_law(law)
    if (flops is None) == (days is None):
        raise ValueError("give the budget once: --flops 1e24, or --days 7 with --topology")
    where = None
    if topology or days is not None:
        base, where = load_for(config, overrides, topology, slices, network, host_memory)
    else:
        base = load_config(config, overrides or [])
    request = best.Request(read, base, config, tuple(overrides or ()), where, batch_tokens)
    if days is not None:
        solution = best.optimum_of_days(request, days)
    else:
        solution = best.optimum(request, read_budget(str(flops), option="--flops"))
    if as_json:
        console.print_optimum_json(solution)
    else:
        console.show_optimum(solution)


@app.command()
def verify(
    forecast: Annotated[
        Path, typer.Argument(metavar="FORECAST", help="The file that `law forecast --register` wrote.")
    ],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of the run that was forecast.")],
    as_json: AsJson = False,
) -> None:
    """Compare a registered forecast with its run: is the measured loss inside the interval, and if not, how far off?"""
    from jaxscale.console import law as console
    from jaxscale.scaling.register import verify as check

    verdict = check(forecast, run)
    if as_json:
        console.print_verdict_json(verdict)
    else:
        console.show_verdict(verdict)
    if not verdict.inside:
        raise typer.Exit(1)
