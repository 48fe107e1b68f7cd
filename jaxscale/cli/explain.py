"""`jaxscale explain`: every matmul of the step, how it is cut, and what that costs."""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxscale.cli.options import Network, Overrides, Slices

PLACE = 8
EXAMPLE = "jaxscale explain llama3.1-8b --topology v5p:2x2x4 -o explain.html"

if TYPE_CHECKING:
    from jaxscale.explain.story import Explanation
    from jaxscale.hardware.topology import Topology


def verb(
    config: Annotated[
        str, typer.Argument(help="A YAML file, or the name of a shipped one: quickstart, llama3.1-8b, ...")
    ],
    overrides: Overrides = None,
    mesh: Annotated[
        str | None, typer.Option(help="Over all slices, e.g. data=2,fsdp=2,tensor=2; by default the config's mesh.")
    ] = None,
    topology: Annotated[
        str | None,
        typer.Option(help="The machine, e.g. v5p:2x2x2 or h100:8; its compiler is used if installed."),
    ] = None,
    slices: Slices = 1,
    backward: Annotated[bool, typer.Option("--backward", help="Show the backward pass too.")] = False,
    tensor: Annotated[str | None, typer.Option(help="Follow one parameter (w_up) or activation (mlp_up).")] = None,
    compare: Annotated[
        tuple[str, str] | None, typer.Option(help="Show two meshes side by side.", metavar="MESH MESH")
    ] = None,
    compiler: Annotated[str, typer.Option(help="auto, chip, cpu (simulated devices), or none: no compile.")] = "auto",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write an interactive page, which opens offline.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
    network: Network = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the compilers' own output.")] = False,
) -> None:
    """Explain every matmul of the training step. It shows the split, communication, cost, and what the compiler did."""
    from jaxscale.console import explain as console
    from jaxscale.explain import story
    from jaxscale.files.whole import require_file
    from jaxscale.hardware.stated import read_topology

    given = {"--mesh": mesh, "--tensor": tensor, "-o": out, "--json": as_json or None, "--backward": backward or None}
    refuse_together("--compare", compare, given, but=("--json",))
    refuse_together("--tensor", tensor, given, but=("--tensor", "--mesh"))
    refuse_together("-o", out, given, but=("-o", "--mesh"))
    if compiler == "auto" and (compare or tensor is not None):
        compiler = "none"  # what was compiled is not shown there
    require_file(out)
    if network and not topology:
        raise ValueError(f"--network {network} needs --topology, e.g. --topology h100:12x8")
    where, lines = read_topology(topology, slices, network=network) if topology else (None, [])
    print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr)

    # all of them before the first takes its time
    loaded = [load(config, overrides, text, where, slices) for text in compare or (mesh,)]
    if out is not None and loaded[0][0].model.lora:
        raise ValueError(f"-o {out}: the page's sliders know no model.lora yet; leave -o out, or set model.lora=null")
    explanations = [story.explain(*one, compiler=compiler, verbose=verbose) for one in loaded]
    if compare:
        if as_json:
            print(json.dumps([story.as_json(one) for one in explanations], indent=1))
        else:
            console.show_compared(*explanations)
        return
    show(explanations[0], tensor, out, as_json=as_json, backward=backward)


def show(explanation: "Explanation", tensor: str | None, out: Path | None, *, as_json: bool, backward: bool) -> None:
    """The explanation as a page, as JSON, as one tensor's stops, or as tables."""
    from jaxscale.console import explain as console
    from jaxscale.console.timeline import show_timeline
    from jaxscale.explain import follow, story
    from jaxscale.explain.page import write_page

    if out is not None:
        write_page(story.as_json(explanation), out)
        print(f"{out}: {len(explanation.rows)} matmuls; open it in a browser")
    elif as_json:
        print(json.dumps(story.as_json(explanation), indent=1))
    elif tensor is not None:
        console.show_stops(tensor, follow.follow(explanation, tensor))
    else:
        if explanation.stages:
            show_timeline(explanation.stages)
        console.show(explanation, backward=backward)


def refuse_together(name: str, value: object, given: Mapping[str, object], *, but: tuple[str, ...]) -> None:
    """A ValueError for options that have no meaning beside one that was given."""
    others = [option for option, setting in given.items() if setting is not None and option not in but]
    if value is not None and others:
        raise ValueError(
            f"{name} has no use for {' and '.join(others)}; leave {'it' if len(others) == 1 else 'them'} out"
        )


def load(config: str, overrides: list[str] | None, mesh: str | None, where: "Topology | None", slices: int) -> Any:
    """The config on its mesh, and its topology (None: none was given)."""
    from jaxscale.compiled.story import fit_mesh
    from jaxscale.config import load_config
    from jaxscale.explain.story import with_mesh

    if slices > 1 and not where:
        raise ValueError(f"--slices {slices} needs --topology, e.g. --topology v5p:2x2x2")
    loaded = load_config(config, overrides or [])
    mesh_axes = [(axis, n) for axis, n in loaded.mesh.model_dump().items() if axis != "dcn" and n != 1]
    if mesh is None and slices > 1 and not loaded.mesh.over_slices and all(n > 1 for _, n in mesh_axes):
        mesh = ",".join(f"{axis}={n}" for axis, n in mesh_axes)  # of all slices, as one that is given
    if mesh is not None:
        loaded = with_mesh(loaded, mesh, slices)
        devices = math.prod(loaded.mesh.sizes(None).values())
        if where and devices != where.devices:
            raise ValueError(
                f"mesh {mesh} is of {devices} devices, and {where.name} has {where.devices}; make them the same"
            )
    elif where is None and -1 in loaded.mesh.model_dump().values() and not loaded.runtime.simulated_devices:
        raise ValueError(
            f"the mesh of {config} takes all devices there are (-1); say how many: --mesh data=2,fsdp=4, "
            "or --topology v5p:2x2x2"
        )
    return (fit_mesh(loaded, where) if where else loaded), where
