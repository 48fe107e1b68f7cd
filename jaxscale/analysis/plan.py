"""Which mesh, how many microbatches, which remat, which loss.chunk for a topology: all legal ways, costed. No jax."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from jaxscale import config as cfg
from jaxscale.analysis import costs
from jaxscale.analysis.forecast import Forecast, forecast
from jaxscale.analysis.measured import Measured
from jaxscale.analysis.memory import MemoryForecast, memory
from jaxscale.hardware import GIB
from jaxscale.parallel.rules import ACTIVATIONS, check_divides
from jaxscale.topology import Topology

KEEP_QKV = {"q": "save", "k": "save", "v": "save", "attention_context": "save"}
OFFLOAD = dict.fromkeys(("layer_in", "q", "k", "v", "attention_out"), "offload")
REMATS: dict[str, str | dict[str, str]] = {
    "none": "none", "dots": "dots", "q, k, v, context": KEEP_QKV, "full": "full", "to the host": OFFLOAD,
}  # fmt: skip
CHUNK = 512  # loss.chunk where the config's own does not fit
MOL = 6.02214076e23  # Avogadro's number, as a budget of FLOPs


@dataclass(frozen=True)
class Choice:
    """One way to run, with what it is predicted to need and to take."""

    config: cfg.Config
    mesh: dict[str, int]
    remat: str
    memory: MemoryForecast
    forecast: Forecast

    @property
    def binds(self) -> str:
        """What is busy the longest (compute, HBM, a network), and its share of the step."""
        time = self.forecast.time
        return f"{time.binds} {time.sums[time.binds] / time.best:.0%}"


@dataclass(frozen=True)
class Plan:
    """Those that fit, the fastest first; of the others, why: (reason, how many, the nearest to fitting)."""

    topology: Topology
    choices: list[Choice]
    left_out: list[tuple[str, int]]
    considered: int
    measured: Measured | None = None


def plan(config: cfg.Config, topology: Topology, *, documents: bool = False, measured: Measured | None = None) -> Plan:
    """Cost every mesh x microbatches x remat for `config`'s batch on `topology`.

    Where the config's own `loss.chunk` does not fit, a smaller one is taken if that does: it costs no time that is
    counted here. `measured`: links as a clock found them; axes that it does not cover keep the datasheet's.

    A plan without choices is an answer too. Raises ValueError when the config overrides sharding rules, or has an
    optimizer whose state has no formula.
    """
    if config.sharding.parameters or config.sharding.activations:
        raise ValueError("plan knows the default rules only; remove sharding.* from the config, or use `compile`")
    choices: list[Choice] = []
    reasons: Counter[str] = Counter()
    shortest, considered = (math.inf, ""), 0
    for mesh in meshes(config, topology):
        sizes = mesh.sizes(topology.devices)
        for candidate, name in variants(config, mesh, sizes):
            considered += 1
            try:
                check_divides(costs.PARAMETERS, ACTIVATIONS, sizes, candidate)
            except ValueError as error:
                reasons[reason_of(error)] += 1
                continue
            candidate, needed = with_chunk(candidate, sizes, topology, documents=documents)
            short = needed.peak - topology.chip.usable_hbm_bytes
            if short > 0:
                reasons["memory is short"] += 1
                shortest = min(shortest, (short, describe(sizes, candidate, name)))
                continue
            found = forecast(candidate, topology, sizes, measured=measured)
            choices.append(Choice(candidate, sizes, name, needed, found))
    if shortest[1]:
        count = reasons.pop("memory is short")
        reasons[f"memory is short by {shortest[0] / GIB:,.1f} GiB or more (nearest: {shortest[1]})"] = count
    choices.sort(key=lambda c: (c.forecast.time.best, c.memory.peak))
    return Plan(topology, choices, reasons.most_common(), considered, measured)


def reason_of(error: ValueError) -> str:
    """`embed_dim 4096 is not divisible by 3 (...)` -> without the numbers, so that alike ones are counted together."""
    text = str(error)
    return f"{text.partition(' is not divisible')[0]} does not divide" if " is not divisible" in text else text[:80]


def meshes(config: cfg.Config, topology: Topology) -> Iterator[cfg.Mesh]:
    """Every split of the devices over data, fsdp and tensor, and of the slices over data and fsdp."""
    inside = topology.devices // topology.slices
    for tensor in cfg.divisors(inside):
        if config.model.num_heads % tensor:
            continue
        for fsdp in cfg.divisors(inside // tensor):
            for over in cfg.divisors(topology.slices):
                yield cfg.Mesh(
                    data=inside // tensor // fsdp, fsdp=fsdp, tensor=tensor,
                    dcn=cfg.Dcn(data=over, fsdp=topology.slices // over),
                )  # fmt: skip


def variants(config: cfg.Config, mesh: cfg.Mesh, sizes: dict[str, int]) -> Iterator[tuple[cfg.Config, str]]:
    rows = config.data.batch_size
    shards = sizes.get("data", 1) * sizes.get("fsdp", 1)
    parts = [
        n for n in sorted({1, 2, 4, 8, 16, 32, config.step.microbatches}) if rows % n == 0 and rows // n >= shards
    ] or [1]
    remats = REMATS if config.step.remat in REMATS.values() else REMATS | {"the config's own": config.step.remat}
    for count, (name, remat) in itertools.product(parts, remats.items()):
        step = config.step.model_copy(update={"microbatches": count, "remat": remat})
        yield config.model_copy(update={"mesh": mesh, "step": step}), name


def with_chunk(
    config: cfg.Config, sizes: dict[str, int], topology: Topology, *, documents: bool
) -> tuple[cfg.Config, MemoryForecast]:
    """`config`, or the same with a smaller chunk of the loss where its own is what does not fit."""
    platform, T = topology.chip.platform, config.data.seq_len
    needed = memory(config, sizes, documents=documents, platform=platform)
    if needed.peak <= topology.chip.usable_hbm_bytes or (config.loss.chunk or T) <= CHUNK or T % CHUNK:
        return config, needed
    smaller = config.model_copy(update={"loss": config.loss.model_copy(update={"chunk": CHUNK})})
    return smaller, memory(smaller, sizes, documents=documents, platform=platform)


def describe(sizes: dict[str, int], config: cfg.Config, remat: str) -> str:
    return f"{mesh_words(sizes, config)}, {config.step.microbatches} microbatches, remat {remat}"


def mesh_words(sizes: dict[str, int], config: cfg.Config) -> str:
    """`data=4 (2 over slices), fsdp=64`."""
    over = config.mesh.over_slices
    return ", ".join(f"{a}={n}" + (f" ({over[a]} over slices)" if a in over else "") for a, n in sizes.items())


# --- budgets --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """What a number of FLOPs buys: model FLOPs by the config's convention, no recompute."""

    flops: float
    tokens: float
    steps: float
    days: float
    chips: int


def read_budget(text: str) -> float:
    """`1e24`, `1mol`, `2.5 mol`: FLOPs. Raises ValueError for another form."""
    number, mol = text.strip().removesuffix("mol").strip(), text.strip().endswith("mol")
    try:
        value = float(number or ("1" if mol else "none"))
    except ValueError:
        value = 0.0
    if not 0 < value < 1e40:
        raise ValueError(f"--budget {text!r} is no number of FLOPs; give e.g. 1e24, or 1mol for {MOL:.3g}")
    return value * (MOL if mol else 1)


def spend(flops: float, choice: Choice) -> Budget:
    """Tokens that the budget trains on, and days at the predicted speed."""
    found = choice.forecast
    tokens = flops / found.model_flops * found.tokens
    steps = tokens / found.tokens
    return Budget(flops, tokens, steps, steps * found.time.best / 86400, found.topology.chips)
