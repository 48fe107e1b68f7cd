"""Which mesh, how many microbatches, which remat, which loss.chunk for a topology: all legal ways, costed. No jax."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from jaxscale import config as cfg
from jaxscale.blueprint.legal import require_legal
from jaxscale.blueprint.rules import STAGE_AXES
from jaxscale.config.mesh_text import mesh_text
from jaxscale.hardware.chips import GIB
from jaxscale.hardware.topology import BETWEEN, Topology
from jaxscale.predict.forecast import Forecast, forecast
from jaxscale.predict.measured import Measured
from jaxscale.predict.memory import MemoryForecast, memory
from jaxscale.predict.ways import not_tried, remat_name, ways, with_chunk

WAITS = 0.05  # of a step, from which waiting for weights from other nodes or slices is worth a pipeline's trial
MOL = 6.02214076e23  # Avogadro's number, as a budget of FLOPs


@dataclass(frozen=True)
class Choice:
    """One way to run, with what it is predicted to need and to take.

    Attributes:
        host_bytes: what a host keeps of offloaded activations.
        short: of which memory it lacks how many bytes; empty where it fits.
    """

    config: cfg.Config
    mesh: dict[str, int]
    remat: str
    memory: MemoryForecast
    forecast: Forecast
    host_bytes: float
    short: dict[str, float]

    @property
    def binds(self) -> str:
        """What is busy the longest in training (compute, HBM, a network), and its share of that."""
        time = self.forecast.time
        return f"{time.binds} {time.sums[time.binds] / time.best:.0%}"


@dataclass(frozen=True)
class Plan:
    """Those that fit, the fastest first; of the others, why: (reason, how many, the nearest to fitting).

    Attributes:
        own: the config as it is; None where its mesh does not fit the topology, which `own_problem` explains.
        held: keys that were given, and so were not varied.
        not_tried: axes that were not varied by themselves, and why.
        legal: how many ways break no rule, whether they fit or not.
    """

    topology: Topology
    choices: list[Choice]
    left_out: list[tuple[str, int]]
    considered: int
    legal: int
    own: Choice | None
    own_problem: str
    held: tuple[str, ...] = ()
    measured: Measured | None = None
    not_tried: Mapping[str, str] = field(default_factory=dict)


def plan(
    config: cfg.Config,
    topology: Topology,
    *,
    documents: bool = False,
    measured: Measured | None = None,
    held: tuple[str, ...] = (),
) -> Plan:
    """Cost every mesh x microbatches x remat for `config`'s batch on `topology`.

    Where the config's own `loss.chunk` does not fit, a smaller one is taken if that does: it costs no time that is
    counted here. `measured`: links as a clock found them; axes that it does not cover keep the datasheet's.

    Args:
        held: keys of the config that stay as they are (see `ways.held_keys`).

    A plan without choices is an answer too. Raises ValueError when the config holds a mesh that the topology has no
    devices for.
    """
    search = Search(topology, held, documents, measured)
    search.among(ways(config, topology, held))
    skipped = not_tried(config, held)
    if search.wants_stages():
        search.among(ways(config, topology, held, in_stages=True))
        skipped = {axis: why for axis, why in skipped.items() if axis not in STAGE_AXES}
    if config.loss.balance and not {"step", "step.microbatches"} & set(held):
        skipped |= {"step.microbatches": "loss.balance counts over the whole batch, which microbatches never see"}
    unchanged, problem = as_it_is(config, topology, documents=documents, measured=measured)
    left_out, legal = search.left_out(), len(search.choices) + sum(search.reasons[what] for what in search.nearest)
    return Plan(
        topology, search.choices, left_out, search.considered, legal, unchanged, problem, held, measured, skipped
    )


@dataclass
class Search:
    """The ways that were weighed so far. `nearest`: of each memory that is short, the least that lacks, and where."""

    topology: Topology
    held: tuple[str, ...]
    documents: bool
    measured: Measured | None
    choices: list[Choice] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    nearest: dict[str, tuple[float, str]] = field(default_factory=dict)
    considered: int = 0

    def among(self, candidates: Iterable[tuple[cfg.Config, dict[str, int], str]]) -> None:
        """Weigh each; the choices stay sorted, the fastest first."""
        for candidate, sizes, name in candidates:
            self.considered += 1
            try:
                require_legal(candidate, sizes)
            except ValueError as error:
                self.reasons[reason_of(error)] += 1
                continue
            self.weigh(candidate, sizes, name)
        self.choices.sort(key=lambda c: (c.forecast.seconds, c.memory.peak))

    def weigh(self, candidate: cfg.Config, sizes: dict[str, int], name: str) -> None:
        candidate, needed = with_chunk(candidate, sizes, self.topology, documents=self.documents, held=self.held)
        if short := short_of(needed, self.topology):
            what, size = next(iter(short.items()))
            self.reasons[what] += 1
            here = (size, describe(sizes, candidate, name))
            self.nearest[what] = min(self.nearest.get(what, (math.inf, "")), here)
        else:
            self.choices.append(judge(candidate, self.topology, sizes, name, needed, self.measured))

    def wants_stages(self) -> bool:
        """Is a pipeline worth trying? Where memory is short, or the fastest way waits for weights from other nodes."""
        if not self.choices:
            return bool(self.nearest)
        best = self.choices[0].forecast
        waits = sum(s.exposed for s in best.sent if s.weight and s.network in BETWEEN)
        return waits > WAITS * best.time.best

    def left_out(self) -> list[tuple[str, int]]:
        """Why ways were left out, and how many."""
        said = {what: f"{what} is short by {size / GIB:,.1f} GiB or more (nearest: {where})"
                for what, (size, where) in self.nearest.items()}  # fmt: skip
        return Counter({said.get(what, what): n for what, n in self.reasons.items()}).most_common()


def judge(
    config: cfg.Config,
    topology: Topology,
    sizes: dict[str, int],
    remat: str,
    needed: MemoryForecast,
    measured: Measured | None,
) -> Choice:
    predicted = forecast(config, topology, sizes, measured=measured)
    return Choice(config, sizes, remat, needed, predicted, topology.on_host(needed.host), short_of(needed, topology))


def short_of(needed: MemoryForecast, topology: Topology) -> dict[str, float]:
    """Bytes that are missing, of a device's memory and of a host's; of neither where it fits."""
    over = {
        "memory": needed.peak - topology.chip.usable_hbm_bytes,
        "host memory": topology.on_host(needed.host) - topology.host_bytes,
    }
    return {what: size for what, size in over.items() if size > 0}


def as_it_is(
    config: cfg.Config, topology: Topology, *, documents: bool, measured: Measured | None
) -> tuple[Choice | None, str]:
    """The config with nothing changed, and why it cannot run on the topology."""
    slices = math.prod(config.mesh.over_slices.values())
    try:
        if not topology.chip.node and slices != topology.slices:
            raise ValueError(f"mesh.dcn is over {slices} slices and there are {topology.slices}")
        sizes = config.mesh.sizes(topology.devices)
        require_legal(config, sizes)
    except ValueError as error:
        return None, str(error)
    needed = memory(config, sizes, documents=documents, chip=topology.chip)
    return judge(config, topology, sizes, remat_name(config), needed, measured), ""


def reason_of(error: ValueError) -> str:
    """`embed_dim 4096 is not divisible by 3 (...)` -> without the divisor, so that alike ones are counted together."""
    what, separator, _ = str(error).partition(" is not divisible")
    if what.startswith("rows of a microbatch"):
        what = what.rpartition(" ")[0]
    return f"the mesh does not divide {what}" if separator else str(error)[:80]


def describe(sizes: dict[str, int], config: cfg.Config, remat: str) -> str:
    mesh = mesh_text(sizes, config.mesh.over_slices)
    return f"{mesh}, {config.step.microbatches} microbatches, remat {remat}"


# --- budgets --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """What a number of FLOPs buys: model FLOPs by the config's convention, no recompute."""

    flops: float
    tokens: float
    steps: float
    days: float
    chips: int


def read_budget(text: str, *, option: str = "--budget") -> float:
    """`1e24`, `1mol`, `2.5 mol`: FLOPs. Raises ValueError for another form."""
    number, mol = text.strip().removesuffix("mol").strip(), text.strip().endswith("mol")
    try:
        value = float(number or ("1" if mol else "none"))
    except ValueError:
        value = 0.0
    if not 0 < value < 1e40:
        raise ValueError(f"{option} {text!r} is no number of FLOPs; give e.g. 1e24, or 1mol for {MOL:.3g}")
    return value * (MOL if mol else 1)


def spend(flops: float, choice: Choice) -> Budget:
    """Tokens that the budget trains on, and days at the predicted speed."""
    predicted = choice.forecast
    tokens = flops / predicted.model_flops * predicted.tokens
    steps = tokens / predicted.tokens
    return Budget(flops, tokens, steps, steps * predicted.seconds / 86400, predicted.topology.chips)
