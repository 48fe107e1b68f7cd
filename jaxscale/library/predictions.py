"""`jaxscale.plan` and `jaxscale.explain`: the verbs' predictions as values. No jax in this process."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxscale import config as cfg
from jaxscale.compiled.story import fit_mesh
from jaxscale.config.mesh_text import mesh_text
from jaxscale.explain import story
from jaxscale.hardware.stated import read_topology
from jaxscale.hardware.topology import Topology
from jaxscale.library.views import ExplanationView, PlanView
from jaxscale.predict import costs
from jaxscale.predict.advice import what_would_do
from jaxscale.predict.plan import plan as plan_of


def plan(config: cfg.Config | str | Path, topology: Topology | str, *, held: Sequence[str] = ()) -> PlanView:
    """Every mesh, microbatch count and remat for a config on a topology, the fastest that fit first.

    Args:
        config: a config, or what `load_config` takes.
        topology: e.g. `v5p:4x4x4` or `h100:8`.
        held: keys of the config that stay as they are, e.g. `mesh.tensor`.

    Raises:
        ValueError: no such config or topology.
    """
    where = found_topology(topology)
    loaded = fit_mesh(found_config(config), where)
    documents = costs.packs_documents(loaded)
    ranking = plan_of(loaded, where, documents=documents, held=tuple(held))
    advice = [] if ranking.choices else what_would_do(loaded, ranking, documents=documents)
    return PlanView.of(ranking, config=loaded, advice=advice)


def explain(
    config: cfg.Config | str | Path,
    mesh: Mapping[str, int] | str | None = None,
    topology: Topology | str | None = None,
    *,
    compiler: str = "auto",
    backward: bool = False,
) -> ExplanationView:
    """Every matmul of the training step: how it is cut, what is sent for it, what it costs.

    Args:
        mesh: `data=2,tensor=4`, or a mapping; None: the config's.
        topology: whose speeds; None: those of a v5p slice of as many chips.
        compiler: whose program stands beside: auto, chip, cpu, or none, which is fast.
        backward: show the backward pass too; the rows have it in any case.

    Raises:
        ValueError: a mesh that does not fit the model or the topology.
    """
    where = None if topology is None else found_topology(topology)
    loaded = found_config(config)
    if mesh is not None:
        loaded = story.with_mesh(loaded, mesh if isinstance(mesh, str) else mesh_text(mesh))
    elif where is None and -1 in loaded.mesh.model_dump().values() and not loaded.runtime.simulated_devices:
        raise ValueError(
            f"the mesh of {loaded.name} takes all devices there are (-1); say how many: mesh='data=2,fsdp=4', "
            "or topology='v5p:2x2x2'"
        )
    if where is not None:
        loaded = fit_mesh(loaded, where)
    return ExplanationView.of(story.explain(loaded, where, compiler=compiler), backward=backward)


def found_config(config: cfg.Config | str | Path) -> cfg.Config:
    return config if isinstance(config, cfg.Config) else cfg.load_config(config)


def found_topology(topology: Topology | str) -> Topology:
    return topology if isinstance(topology, Topology) else read_topology(topology)[0]
