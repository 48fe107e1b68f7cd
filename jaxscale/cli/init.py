"""`jaxscale init`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxscale.cli.options import TOPOLOGY_HELP

if TYPE_CHECKING:
    from jaxscale.hardware.topology import Topology

PLACE = 1
EXAMPLE = "jaxscale init --text books/ --machine this --hours 1"
HERE = "this"
QUESTIONS = {
    "text": "Text to learn from: a file, a folder, JSON lines, Parquet, or a prepared dataset",
    "machine": f"Machine: {HERE}, or one by name, e.g. h100:8 or v5p:2x2x2",
    "hours": "Hours the run may take",
}


def verb(
    text: Annotated[str | None, typer.Option(help=f"{QUESTIONS['text']}.")] = None,
    machine: Annotated[str | None, typer.Option(help=f"{HERE}, or a topology: {TOPOLOGY_HELP}")] = None,
    hours: Annotated[float | None, typer.Option(help=f"{QUESTIONS['hours']}.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The run file.")] = Path("run.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Write a run file for your text, your machine and your time. It asks for what you do not give.

    The text and the hours decide the model's size; `plan` chooses its mesh. Nothing is trained or downloaded.
    """
    if out.exists() and not overwrite:
        raise ValueError(f"{out} already exists; give another file with -o, or --overwrite")
    text = text or ask("text")
    machine = machine or ask("machine", HERE)
    hours = hours if hours is not None else float_of(ask("hours", "1"))
    if not 0 < hours < 1e5:
        raise ValueError(f"--hours {hours:g}: give a number of hours above 0")
    from jaxscale.data.guess import guess_corpus
    from jaxscale.scaling.first_run import Wish, clock, first_run, run_file

    corpus = guess_corpus(text)
    dataset = Path(text) if corpus.prepared else Path("data") / Path(text.rstrip("/*")).name.split(".")[0]
    topology, peak = of_machine(machine)
    wish = Wish(dataset, corpus.tokens, corpus.vocab_size, hours, peak, topology)
    run = first_run(wish)
    command = ["jaxscale", "data", "prepare", *corpus.options, "--out", str(dataset)]
    prepare = None if corpus.prepared else shlex.join(command)
    out.write_text(run_file(wish, run, prepare, out))
    print(f"wrote {out}: {run.config.model.name}, {run.config.steps:,} steps, about {clock(run.seconds)}")
    for line in (prepare, f"jaxscale train {shlex.quote(str(out))}"):
        if line:
            print(f"  {line}")


def ask(name: str, default: str | None = None) -> str:
    """The answer to a question; without a terminal a ValueError that names the option."""
    if not sys.stdin.isatty():
        raise ValueError(f"--{name} is missing, and no terminal can be asked; give --{name}")
    return str(typer.prompt(QUESTIONS[name], default=default))


def float_of(answer: str) -> float:
    try:
        return float(answer)
    except ValueError:
        raise ValueError(f"hours: {answer!r} is no number; give e.g. 2 or 0.5") from None


def of_machine(name: str) -> "tuple[Topology | None, float]":
    """(The topology, None for a CPU; FLOP/s of all its devices) of a machine's name, or of the one here."""
    from jaxscale.hardware.stated import read_topology

    if name != HERE:
        topology, lines = read_topology(name)
        for line in lines:
            print(line, file=sys.stderr)
        return topology, topology.chip.bf16_flops * topology.chips
    from jaxscale.hardware.topology import topology_of
    from jaxscale.training.peak import devices_here

    devices, peak = devices_here()
    if devices[0].platform == "cpu" and peak is not None:
        return None, peak.flops_per_second
    here = topology_of(devices)
    if peak is None or here is None:
        kind = devices[0].device_kind
        raise ValueError(f"this machine has {len(devices)} x {kind}; name it with --machine, e.g. {TOPOLOGY_HELP}")
    return here, peak.flops_per_second
