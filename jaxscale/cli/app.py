"""The verbs. Each imports its room when it runs, so that `--help` answers at once."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxscale.cli import bench as cli_bench
from jaxscale.cli import checkpoint as cli_checkpoint
from jaxscale.cli import data as cli_data
from jaxscale.cli import explain as cli_explain
from jaxscale.cli import launch as cli_launch
from jaxscale.cli import puzzle as cli_puzzle
from jaxscale.files.redact import one_line
from jaxscale.files.whole import require_file
from jaxscale.process.quiet import quiet_logs

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    suggest_commands=False,
    help="Train transformers across meshes of TPUs, GPUs or simulated devices.",
)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_bench.app, name="bench")
app.add_typer(cli_checkpoint.app, name="checkpoint")
app.command("explain")(cli_explain.explain)
app.add_typer(cli_puzzle.app, name="puzzle")

Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value ...", metavar="[section.key=value ...]")]
USAGE_ERROR: Any = typer.BadParameter.__base__  # click's, wherever typer keeps it
TOPOLOGY_HELP = (
    "e.g. v5p:8x8x8, v5p-128, v6e-256, v5litepod-16, h100:16x8 (nodes x GPUs), h200:8, a3-highgpu-8g, rtx4090:1"
)
TopologyName = Annotated[str, typer.Option(help=TOPOLOGY_HELP)]
Network = Annotated[
    str | None, typer.Option(help="Of a node (TPU: a host) to the others, e.g. 800Gb/s; or 400Gb/s/chip.")
]
HostMemory = Annotated[str | None, typer.Option(help="Of a host, for what is offloaded, e.g. 448GB or 64GB/gpu.")]
Slices = Annotated[int, typer.Option(min=1, help="TPU slices of that shape, joined by the slow network.")]
CONFIG_HELP = "a YAML file, a run's directory, or the name of a shipped config: quickstart, llama3.1-8b, ..."


def version(show: bool) -> None:
    if not show:
        return
    from importlib import metadata

    import jax

    from jaxscale.process.quiet import quiet_plugins

    with quiet_plugins():
        devices = jax.devices()
    print(f"jaxscale {metadata.version('jaxscale')}, jax {jax.__version__}, {len(devices)} x {devices[0].device_kind}")
    raise typer.Exit()


@app.callback()
def root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Package, jax and devices.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    overrides: Overrides = None,
    sample: Annotated[str | None, typer.Option(help="At the end, continue this text with the trained model.")] = None,
    executable: Annotated[
        Path | None, typer.Option(help="A step that `compile --save` wrote: nothing to compile.")
    ] = None,
) -> None:
    """Train a model; on a directory that has checkpoints, go on from the newest."""
    from jaxscale.config import load_config
    from jaxscale.console import train as console

    loaded = load_config(config, overrides or [])
    from jaxscale.process.heap import keep_heap
    from jaxscale.training.trainer import train as run

    if loaded.runtime.platform == "cpu":
        keep_heap()
    try:
        result = run(loaded, watcher=console.TrainingConsole(loaded), executable=executable)
    except KeyboardInterrupt as error:  # typer would leave without saying how to resume
        sys.exit(fail(str(error) or "stopped", getattr(error, "code", 130)))
    console.summarise(loaded, result, sample=sample)


app.command()(cli_launch.launch)


@app.command()
def show(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    overrides: Overrides = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Devices of the mesh, where one axis is -1. Need not be here.")
    ] = None,
) -> None:
    """The resolved config, parameter counts, and how every parameter is split. Nothing is allocated."""
    from jaxscale.config import load_config
    from jaxscale.console import train as console

    console.show_config(load_config(config, overrides or []), devices)


@app.command()
def generate(
    run: Annotated[Path, typer.Argument(help="The directory of a run, e.g. runs/quickstart.")],
    overrides: Overrides = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Text to continue; may be given several times.")] = None,
    max_new_tokens: int = 200,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    step: Annotated[int | None, typer.Option(help="Of this checkpoint; by default the newest.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="byte or a tokenizer.json, where the run has none.")] = None,
) -> None:
    """Sample from a checkpoint, on any mesh."""
    from jaxscale.serving.serve import continue_texts

    texts = continue_texts(
        run,
        prompt or [""],
        overrides or [],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        step=step,
        tokenizer=tokenizer,
        say=lambda line: print(line, file=sys.stderr),
    )
    for start, text in zip(prompt or [""], texts, strict=True):
        print(start + text)
        print()


@app.command("compile")
def compile_(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    overrides: Overrides = None,
    topology: TopologyName = "",
    slices: Slices = 1,
    network: Network = None,
    host_memory: HostMemory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
    hlo: Annotated[Path | None, typer.Option(help="Write the compiled program's text here.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the executable here, for train --executable.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Let the compilers speak.")] = False,
) -> None:
    """Compile the training step for machines that are not here: memory, FLOPs, collectives, predicted speed."""
    from jaxscale.compiled import story as predict
    from jaxscale.compiled.libtpu import older_libtpu
    from jaxscale.console import predict as console_predict

    loaded, where = load_for(config, overrides, topology, slices, network, host_memory)
    require_file(hlo, save)
    note = None if where.chip.node else older_libtpu()
    if note and not as_json:
        print(note, flush=True)
    found = predict.answer(loaded, where, save=save, verbose=verbose)
    if hlo is not None:
        hlo.write_text(found.kept.hlo)
    if as_json:
        console_predict.print_json(found, note)
    elif found.report is not None:
        console_predict.show_report(loaded, found)
        if save is not None:
            print(f"executable in {save}" if found.report.fits else f"--save {save}: not written, as it does not fit")
    if not found.fits:
        if not as_json and not (found.report and found.report.fits):  # else it is the host that is short
            console_predict.show_out_of_memory(loaded, where, found.needed, found.buffers, found.tried)
        raise typer.Exit(1)


@app.command()
def plan(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    overrides: Overrides = None,
    topology: TopologyName = "",
    slices: Slices = 1,
    network: Network = None,
    host_memory: HostMemory = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of a step; by default the config's.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many to show.")] = 10,
    measured: Annotated[
        Path | None, typer.Option(help="A record of `bench collectives`: its links in place of the datasheet's.")
    ] = None,
    compile_best: Annotated[int, typer.Option("--compile", min=0, help="Compile the best K, beside predicted.")] = 0,
    budget: Annotated[str | None, typer.Option(help="FLOPs to spend, e.g. 1e24 or 1mol: tokens, days.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the best one as a config for train.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
) -> None:
    """Rank every mesh, microbatch count and remat for a topology by predicted speed, among those that fit.

    What is given on the command line (mesh.*, step.microbatches, step.remat, loss.chunk) is held. Row 0 is the config.
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
    found = planning.plan(loaded, where, documents=documents, measured=own_links, held=held)
    advice = [] if found.choices else what_would_do(loaded, found, documents=documents)
    compiled = [predict.answer(c.config, where) for c in found.choices[:compile_best]]
    if out is not None and found.choices:
        predict.write_config(found.choices[0], where, out)
    spent = None if amount is None or not found.choices else planning.spend(amount, found.choices[0])
    if as_json:
        console_plan.print_plan_json(found, compiled, spent, rows, advice)
    else:
        console_plan.show_plan(loaded, found, compiled, spent, rows=rows, out=out, advice=advice)
    if not found.choices:
        raise typer.Exit(1)


def load_for(
    config: str, overrides: list[str] | None, topology: str, slices: int, network: str | None, host_memory: str | None
) -> tuple[Any, Any]:
    """A config for a topology, with a line on stderr where its name was read as another. The data need not be here."""
    from jaxscale.compiled.story import fit_mesh
    from jaxscale.config import load_config
    from jaxscale.hardware.stated import read_topology

    if not topology:
        raise ValueError("--topology is missing; give e.g. --topology v5p:4x4x4 or --topology h100:8")
    where, lines = read_topology(topology, slices, network=network, host_memory=host_memory)
    loaded = fit_mesh(load_config(config, overrides or []), where)
    for line in lines:
        print(line, file=sys.stderr)
    return loaded, where


@app.command()
def chips(
    names: Annotated[list[str] | None, typer.Argument(help="Only these, e.g. t4 l4.", metavar="[CHIP ...]")] = None,
) -> None:
    """The chip table: peaks, memory and links, with the source of every figure."""
    from jaxscale.console.plan import show_chips

    show_chips(names or [])


@app.command()
def report(
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


def main() -> None:
    """Run a verb; what a user can mend is one line on stderr and exit code 2, Ctrl-C is 130."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # XLA's INFO lines; its warnings stay
    quiet_logs()
    try:
        if any("://" in word for word in sys.argv):
            from jaxscale.cli.usage import refuse_urls

            refuse_urls(sys.argv[1:])
        code = app(standalone_mode=False)
    except USAGE_ERROR as error:
        if sys.argv[1:] in ([], ["data"], ["bench"], ["checkpoint"], ["puzzle"]):  # the help, as no verb was given
            print(error.format_message())
            sys.exit(2)
        from jaxscale.cli.usage import usage_message

        sys.exit(fail(usage_message(error), 2))
    except ValueError as error:
        sys.exit(fail(str(error), getattr(error, "code", 2)))  # silent data corruption has its own
    except OSError as error:  # a full disk, a file that may not be read
        sys.exit(fail(f"{error.filename or 'the operating system'}: {error.strerror or error}", 2))
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        from jaxscale.blame import SHOW, library_message

        message = None if os.environ.get(SHOW) == "1" else library_message(error)
        if message is None:
            raise  # a bug of ours: with all that helps to mend it
        sys.exit(fail(message, 1))
    sys.exit(fail("stopped", code) if code == 130 else code)


def fail(message: str, code: int) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code
