"""What a ladder costs before it is run: FLOPs, seconds on a topology by `plan`, and the share of its target. No jax."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxscale import config as cfg
from jaxscale.config.mesh_text import mesh_text
from jaxscale.hardware.topology import Topology
from jaxscale.predict.costs import packs_documents
from jaxscale.predict.plan import plan
from jaxscale.scaling.counts import law_parameters, tokens_of
from jaxscale.scaling.ladder import Ladder, Rung


@dataclass(frozen=True)
class Cost:
    """Of one rung; `seconds` are predicted, on the mesh that is fastest, and None without a topology."""

    rung: Rung
    seconds: float | None = None
    mesh: str = ""


@dataclass(frozen=True)
class Ladders:
    """All rungs with their costs, and the target's FLOPs where the ladder names one."""

    costs: list[Cost]
    target_flops: float | None

    @property
    def flops(self) -> float:
        return sum(c.rung.flops for c in self.costs)


def costed(ladder: Ladder, rungs: Sequence[Rung], topology: Topology | None) -> Ladders:
    """Raises ValueError for a rung that does not fit the topology, and a target that no config is."""
    known: dict[str, tuple[float, str]] = {}  # seeds cost the same
    costs = []
    for rung in rungs:
        if topology is None:
            costs.append(Cost(rung))
            continue
        key = rung.name.rpartition("-s")[0]
        if key not in known:
            known[key] = seconds_of(rung, topology)
        costs.append(Cost(rung, *known[key]))
    return Ladders(costs, target_flops(ladder))


def seconds_of(rung: Rung, topology: Topology) -> tuple[float, str]:
    """Of all steps, by the fastest way that fits."""
    config = rung.config.model_copy(update={"mesh": cfg.Mesh()})
    planned = plan(config, topology, documents=packs_documents(config))
    if not planned.choices:
        raise ValueError(
            f"rung {rung.name} does not fit {topology.name}: {'; '.join(why for why, _ in planned.left_out[:2])}; take "
            "another topology, or a smaller rung"
        )
    best = planned.choices[0]
    return rung.config.steps * best.forecast.seconds, mesh_text(best.mesh)


def target_flops(ladder: Ladder) -> float | None:
    """6 N D of the run that the ladder is for."""
    if ladder.target is None:
        return None
    config = cfg.load_config(ladder.target.config)
    return 6.0 * law_parameters(config) * (ladder.target.tokens or tokens_of(config))
