"""`jaxscale bench ...`: what a clock says. Each verb writes one record, and imports its room when it runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxscale.cli.options import Overrides

if TYPE_CHECKING:
    from jaxscale.bench.record import BenchRecord

PLACE = 18
EXAMPLE = "jaxscale bench step quickstart"
app = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,
    help="Measure this machine. Each verb writes one record (JSON).",
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option("-o", "--out", help="The file of the record, or its directory.")]
Platform = Annotated[str, typer.Option(help="auto, cpu, gpu or tpu.")]
Repeats = Annotated[int, typer.Option(min=3, help="Maximum samples of each case.")]
Seconds = Annotated[float, typer.Option(min=0.01, help="Take no new sample of a case after this many seconds.")]
ConfigName = Annotated[
    str, typer.Argument(help="a YAML file, or the name of a shipped one: quickstart, llama3.1-8b, ...")
]
Dtypes = Annotated[list[str] | None, typer.Option("--dtype", help="bfloat16 or float32; repeatable.")]
RECORDS = Path("runs/bench")


@app.command()
def matmul(
    overrides: Overrides = None,
    shape: Annotated[list[str] | None, typer.Option(help="MxKxN of x[M, K] · w[K, N]; repeatable.")] = None,
    dtype: Dtypes = None,
    search: Annotated[bool, typer.Option("--search", help="Search for the fastest shape.")] = False,
    budget: Annotated[float, typer.Option(min=1, help="With --search: seconds of search for each dtype.")] = 60.0,
    model: Annotated[str | None, typer.Option(help="A run file: measure its matmuls on one device.")] = None,
    mesh: Annotated[
        str | None, typer.Option(help="With --model: axis=size,... The devices need not exist here.")
    ] = None,
    platform: Platform = "auto",
    repeats: Repeats = 20,
    seconds: Seconds = 2.0,
    out: Out = RECORDS,
) -> None:
    """Measure the FLOP/s of matmuls: given shapes, the fastest shape, or a model's matmuls on a mesh."""
    if sum((bool(shape), search, model is not None)) > 1:
        raise ValueError("--shape, --search and --model are three benchmarks; give one of them")
    if overrides and model is None:
        raise ValueError(f"{overrides[0]!r} changes a model's run file; give one with --model")
    if mesh and model is None:
        raise ValueError("--mesh says how a model is cut; give one with --model")
    from jaxscale.bench import verbs

    effort = verbs.Effort(repeats, seconds)
    out = ready(out)
    if model is not None:
        finish(verbs.model_matmul(model, overrides or [], mesh, platform, effort), out)
    else:
        finish(verbs.matmul(shape or [], dtype or [], platform, effort, budget=budget if search else None), out)


@app.command()
def memory(
    size: Annotated[list[int] | None, typer.Option(min=4, help="Bytes; repeatable.")] = None,
    platform: Platform = "auto",
    repeats: Repeats = 20,
    seconds: Seconds = 2.0,
    out: Out = RECORDS,
) -> None:
    """Measure bandwidths: a copy within the device, host to device, and device to host."""
    out = ready(out)
    from jaxscale.bench import verbs

    finish(verbs.memory(size or [], platform, verbs.Effort(repeats, seconds)), out)


@app.command()
def collectives(
    mesh: Annotated[str, typer.Option(help="axis=size,... e.g. data=2,tensor=4; one axis may be -1.")] = "data=-1",
    size: Annotated[list[int] | None, typer.Option(min=4, help="Bytes, as nccl-tests counts them; repeatable.")] = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "float32",
    devices: Annotated[int | None, typer.Option(min=1, help="Simulated devices, on a CPU.")] = None,
    platform: Platform = "auto",
    repeats: Repeats = 20,
    seconds: Seconds = 1.0,
    out: Out = RECORDS,
) -> None:
    """Measure each collective over each axis: algbw, busbw, a fitted latency and bandwidth."""
    out = ready(out)
    from jaxscale.bench import verbs

    finish(verbs.collectives(mesh, size or [], dtype, devices, platform, verbs.Effort(repeats, seconds)), out)


@app.command()
def attention(
    seq_len: Annotated[list[int] | None, typer.Option(min=16, help="Tokens per row; repeatable.")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=16, help="Tokens per call; the number of rows is tokens / seq_len.")
    ] = None,
    heads: Annotated[int, typer.Option(min=1, help="Query heads.")] = 16,
    kv_heads: Annotated[
        int | None, typer.Option(min=1, help="Key and value heads; by default as many as query heads.")
    ] = None,
    head_dim: Annotated[int, typer.Option(min=8, help="Size of one head.")] = 128,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.")] = "bfloat16",
    context: Annotated[int, typer.Option(min=1, help="Devices that share a row; on a CPU they are simulated.")] = 1,
    platform: Platform = "auto",
    repeats: Repeats = 10,
    seconds: Seconds = 2.0,
    out: Out = RECORDS,
) -> None:
    """Measure each attention kernel of this device, forward and backward: FLOP/s, memory, error."""
    out = ready(out)
    from jaxscale.bench import verbs

    sizes = (tokens, heads, kv_heads or heads, head_dim)
    effort = verbs.Effort(repeats, seconds)
    finish(verbs.attention(seq_len or [], sizes, dtype, platform, effort, context=context), out)


@app.command()
def step(
    config: ConfigName,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=3, help="Timed steps.")] = 20,
    burn_in: Annotated[int, typer.Option(min=1, help="Warm-up steps before the timed ones.")] = 5,
    ceilings: Annotated[
        bool, typer.Option(help="Also measure the best matmul and the model's own, as ceilings.")
    ] = True,
    profile: Annotated[
        Path | None, typer.Option(help="Write a profiler trace here, and show where the time goes.")
    ] = None,
    out: Out = RECORDS,
) -> None:
    """Measure the trainer's own step and loop: seconds, tokens/s, MFU, HFU, memory, shares of the ceilings."""
    from jaxscale.config import load_config

    out = ready(out)
    if profile is not None:
        ready(profile)
    loaded = load_config(config, overrides or [])
    from jaxscale.bench.step import Plan, bench_step
    from jaxscale.process.heap import keep_heap

    if loaded.runtime.platform == "cpu":
        keep_heap()  # as `train` does
    finish(bench_step(loaded, Plan(steps, burn_in, ceilings, profile), say=tell), out)


@app.command()
def sweep(
    grid: Annotated[str, typer.Argument(help="A grid file, or weak-scaling, strong-scaling, width, context, experts.")],
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=3, help="Timed steps of each run.")] = 10,
    out: Out = RECORDS,
) -> None:
    """Measure a grid of runs, each in a fresh process. A failed run is a row. The same command resumes the sweep."""
    from jaxscale.bench import sweep as sweeps
    from jaxscale.bench.record import INTERRUPTED, folder_of
    from jaxscale.files.redact import command_line

    out = ready(out)
    read = sweeps.read_grid(grid)
    folder = folder_of(out) / f"{read.name}-runs"
    options = ["--steps", str(steps), "--no-ceilings"]
    rows = []
    try:
        for row in sweeps.sweep(read, folder, overrides or [], options, say=tell):
            rows.append(row)
    except KeyboardInterrupt:
        tell(f"stopped; what is done is kept in {folder}, and the same command goes on from there")
        if not any(record for _, record in rows):
            raise
        record = sweeps.summary(read, rows, command_line())
        finish(record.model_copy(update={"notes": [*record.notes, f"{INTERRUPTED} after {len(rows)} runs"]}), out)
    finish(sweeps.summary(read, rows, command_line()), out)


@app.command()
def loader(
    config: ConfigName,
    overrides: Overrides = None,
    batches: Annotated[int, typer.Option(min=3, help="Timed batches.")] = 50,
    text: Annotated[list[str] | None, typer.Option(help="Also prepare this text: file, folder or glob.")] = None,
    tokenizer: Annotated[str, typer.Option(help="With --text: byte, bpe:N or a tokenizer.json.")] = "byte",
    out: Out = RECORDS,
) -> None:
    """Measure tokens/s of loading a run's data onto its mesh, and of preparing text."""
    out = ready(out)
    from jaxscale.bench import verbs

    finish(verbs.loader(config, overrides or [], batches=batches, texts=text or [], tokenizer=tokenizer), out)


@app.command()
def checkpoint(
    config: ConfigName,
    overrides: Overrides = None,
    folder: Annotated[Path, typer.Option(help="Where to write checkpoints; this disk is measured.")] = Path(),
    repeats: Annotated[int, typer.Option(min=3, help="How many times the state is saved and restored.")] = 3,
    out: Out = RECORDS,
) -> None:
    """Measure saving a run's state (the blocking part separately) and restoring it: seconds and bytes/s."""
    out = ready(out)
    from jaxscale.bench import verbs

    finish(verbs.checkpoint(config, overrides or [], folder, repeats=repeats), out)


@app.command()
def startup(
    config: ConfigName,
    overrides: Overrides = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs without the cache, and the same number with it.")] = 3,
    out: Out = RECORDS,
) -> None:
    """Measure the time from command to first step, by part, with and without the compilation cache."""
    out = ready(out)
    from jaxscale.bench import verbs

    finish(verbs.startup(config, overrides or [], repeats=repeats, say=tell), out)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A record.")],
    b: Annotated[Path, typer.Argument(help="Another one of the same kind.")],
    across_devices: Annotated[
        bool, typer.Option("--across-devices", help="Compare even if the devices differ.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Also show differences inside the noise.")] = False,
) -> None:
    """Compare two records: ratios b : a with their spread, and which differences are inside the noise."""
    from jaxscale.bench import compare as comparing
    from jaxscale.bench.record import read_record
    from jaxscale.console import bench as console_bench

    first, second = read_record(a), read_record(b)
    ratios = comparing.compare(first, second, across_devices=across_devices)
    differ = comparing.differences(first, second)
    console_bench.show_ratios(a.name, b.name, ratios, differ, all_rows=every)


def ready(out: Path) -> Path:
    """Where something goes, known to be writable before anything is measured."""
    from jaxscale.bench.record import require_writable

    return require_writable(out)


def finish(record: "BenchRecord", out: Path) -> None:
    from jaxscale.bench.record import FAILED, INTERRUPTED, write_record
    from jaxscale.console import bench as console_bench

    try:
        path = write_record(record, out)
    finally:  # what was measured is seen also where it cannot be written
        console_bench.show_record(record)
    print(f"record in {path}")
    if any(note.startswith(INTERRUPTED) for note in record.notes):
        raise typer.Exit(130)
    if failed := [note for note in record.notes if note.startswith(FAILED)]:
        raise ValueError(failed[0])


def tell(line: str) -> None:
    typer.echo(line, err=True)
