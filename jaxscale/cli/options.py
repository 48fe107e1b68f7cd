"""Options that several verbs take, and the config that they mean."""

import sys
from typing import Annotated, Any

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Keys of the config, e.g. steps=100; `jaxscale config keys` lists them.", metavar="[section.key=value ...]"
    ),
]
TOPOLOGY_HELP = (
    "e.g. v5p:8x8x8, v5p-128, v6e-256, v5litepod-16, h100:16x8 (nodes x GPUs), h200:8, a3-highgpu-8g, rtx4090:1"
)
TopologyName = Annotated[str, typer.Option(help=TOPOLOGY_HELP)]
Network = Annotated[
    str | None, typer.Option(help="Network bandwidth of a node (TPU: a host), e.g. 800Gb/s; or 400Gb/s/chip.")
]
HostMemory = Annotated[str | None, typer.Option(help="Memory of a host, for offloading, e.g. 448GB or 64GB/gpu.")]
Slices = Annotated[int, typer.Option(min=1, help="Number of TPU slices of that shape, joined by the slow network.")]
MaxNewTokens = Annotated[int, typer.Option(help="Maximum tokens of a sample.")]
TopK = Annotated[int | None, typer.Option(help="Sample from this many likeliest tokens; by default all.")]
TopP = Annotated[float | None, typer.Option(help="Sample from the likeliest tokens whose probabilities sum to this.")]
SampleSeed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Random seed.")]
CONFIG_HELP = "a YAML file, a run's directory, or the name of a shipped config: quickstart, llama3.1-8b, ..."


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
