"""From a compiled program to what a person asks: memory by part, FLOPs, collectives by axis, seconds. No jax."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.rules import DEFAULT_RULES, split_by
from jaxscale.compiled.collectives import Collective, collectives
from jaxscale.compiled.groups import SubAxis
from jaxscale.compiled.hlo import parse
from jaxscale.compiled.store import Compiled
from jaxscale.compiled.work import Work, Worker, expert_flops, kernels, matmuls
from jaxscale.hardware.topology import Topology, links
from jaxscale.predict import costs
from jaxscale.predict.attention import AttentionCost, attention_cost
from jaxscale.predict.experts import exchange
from jaxscale.predict.forecast import attention_flops, axis_links
from jaxscale.predict.interval import Interval, interval
from jaxscale.predict.rollouts import Sampling, sampling
from jaxscale.predict.timing import (
    WEIGHT_PASSES,
    Rates,
    Sent,
    StepTime,
    collective_seconds,
    rates,
    step_time,
    with_launches,
)

BASIS = {
    "memory": "compiled", "memory_needed": "compiled", "matmul_flops": "compiled", "expert_flops": "compiled",
    "experts_wanted": "predicted", "attention_calls": "compiled",
    "hbm_bytes": "compiled", "sent": "compiled; seconds and hidden predicted", "fits": "compiled",
    "attention_flops": "compiled calls by formula", "model_flops": "predicted", "time": "predicted",
    "interval": "from published runs", "tokens_per_second_per_chip": "predicted", "mfu": "predicted",
    "sampling": "predicted",
    "lower_seconds": "measured",
    "compile_seconds": "measured",
}  # fmt: skip
SMALL = 4096  # bytes: collectives below are scalars and vectors


@dataclass(frozen=True)
class Report:
    """Figures of one device and step, compiled unless they say otherwise.

    Attributes:
        memory: part -> bytes; `memory_needed` their sum; `memory_usable` what the device has for a program.
        matmul_flops: in the compiled program; `model_flops`: what the model needs without recompute, a device's share.
        expert_flops, experts_wanted: of the experts' matmuls, forward (with recompute) and backward: in the program,
            and by formula, both for the worst case that arrays have room for; zeros where there are none.
        attention_calls: forward, backward kernels a step; their FLOPs are by formula (opaque to the compiler).
        time: predicted from the compiled program; `interval`: how far to believe it.
        sampling: what makes a step's batch, of a run that trains on samples; tokens/s and MFU are over both.
    """

    topology: str
    mesh: dict[str, int]
    fits: bool
    memory: dict[str, int]
    memory_needed: int
    memory_usable: int
    matmul_flops: float
    attention_flops: float
    model_flops: float
    expert_flops: tuple[float, float]
    experts_wanted: tuple[float, float]
    attention_calls: tuple[int, int]
    hbm_bytes: float
    sent: list[Sent]
    time: StepTime
    interval: Interval
    tokens_per_second_per_chip: float
    mfu: float
    convention: str
    peak: float
    peak_source: str
    unknown_loops: list[str]
    lower_seconds: float
    compile_seconds: float
    sampling: Sampling | None = None

    def as_json(self) -> dict[str, Any]:
        """All of it; `basis` says of each figure what it is."""
        values = {"basis": BASIS} | asdict(self)
        values["time"]["binds"] = self.time.binds
        return values


def examine(config: cfg.Config, topology: Topology, kept: Compiled) -> Report:
    """Read a compiled step. Raises ValueError when there is no program (it ran out of memory)."""
    if kept.memory is None:
        raise ValueError("the program did not fit the device's memory; there is nothing to examine")
    program = parse(kept.hlo)
    speed = rates(topology.chip, config.step.compute_dtype)
    attention = attention_cost(config, kept.mesh, platform=topology.chip.platform)
    at = exchange(config, kept.mesh)
    room = at.room if at else 1.0
    worker = Worker(program, seconds_of(speed, attention, attention_flops(config, topology, speed)), 1 / room)
    of_experts = expert_flops(program)
    every = sum(m.flops * m.times for m in matmuls(program)) - sum(of_experts) * (1 - 1 / room)
    work = worker.of_computation(program.entry)
    inside, over = split_mesh(config, topology, kept.mesh)
    all_collectives = collectives(program, kept.mesh, worker, over if topology.slices > 1 else None)
    sent = [timed(c, topology, inside, over, speed) for c in all_collectives]
    by_kernel = kernel_flops(work, attention)
    passes = WEIGHT_PASSES * weight_bytes(sent, kept.mesh) / speed.memory
    compute = with_launches({"compute and HBM": work.seconds + passes}, sent, kernels(program), speed)
    time = step_time(compute, sent, topology.slices)
    tokens = config.data.batch_size * config.data.seq_len
    flops_per_token = costs.train_flops_per_token(config.model, config.data.seq_len, convention=config.metrics.mfu)
    peak = topology.chip.bf16_flops * topology.chips
    rate = attention_flops(config, topology, speed)
    mesh_links = axis_links(topology, kept.mesh, config.mesh.over_slices)
    samples = sampling(config, topology.chip.usable_hbm_bytes, kept.mesh, speed, rate, mesh_links)
    whole = time.best + (samples.seconds if samples else 0.0)
    memory = memory_parts(kept)
    return Report(
        topology.name, kept.mesh, sum(memory.values()) <= topology.chip.usable_hbm_bytes, memory, sum(memory.values()),
        int(topology.chip.usable_hbm_bytes), every, by_kernel,
        flops_per_token * tokens / topology.devices, of_experts, wanted_of_experts(config, kept.mesh, room),
        (work.forward_kernels, work.backward_kernels), work.bytes,
        merged(sent), time, interval(time.best, topology), tokens / whole / topology.chips,
        flops_per_token * tokens / whole / peak,
        config.metrics.mfu, peak, topology.chip.source, program.unknown_loops, kept.lower_seconds, kept.compile_seconds,
        samples,
    )  # fmt: skip


def wanted_of_experts(config: cfg.Config, mesh: Mapping[str, int], room: float) -> tuple[float, float]:
    """FLOPs of the experts' matmuls, forward with recompute and backward, for `room` times the rows of even loads."""
    model = blueprint(config.model)
    expert_matmuls = [m for m in costs.matmuls(config, mesh) if model.op(m.name).rows_move]
    forward = sum(m.flops * (m.forward + m.recomputed) for m in expert_matmuls)
    return forward * room, sum(m.flops * m.backward for m in expert_matmuls) * room


def weight_bytes(sent: list[Sent], mesh: Mapping[str, int]) -> float:
    """V of what fsdp gathers and scatters in a step: the program counts what matmuls read, not what a gather writes."""
    kinds, axes = ("all-gather", "reduce-scatter", "all-reduce"), split_by(DEFAULT_RULES.parameters["embed"], mesh)
    return sum(s.bytes * s.times for s in sent if s.kind in kinds and s.axes == axes)


def kernel_flops(work: Work, attention: AttentionCost) -> float:
    """FLOPs of attention kernels by formula: they are opaque to the compiler."""
    done = work.forward_kernels * attention.forward_flops + work.backward_kernels * attention.backward_flops
    return done / attention.blocks


def seconds_of(speed: Rates, attention: AttentionCost, attention_rate: float):
    """Work of one instruction -> seconds."""

    def seconds(work: Work) -> float:
        return max(speed.seconds(work.flops, work.bytes), kernel_flops(work, attention) / attention_rate)

    return seconds


def memory_parts(kept: Compiled) -> dict[str, int]:
    """Bytes of one device: the state and batch from the abstract tree, the rest as the compiler says."""
    assert kept.memory is not None
    named = {name: size for name, size in kept.parts.items() if size}
    parts = named | {"gradients and temporaries": kept.memory.temporaries, "code": kept.memory.code}
    other = kept.memory.peak - sum(parts.values())  # padding of arguments, outputs that are not donated
    return parts | ({"other arguments and outputs": other} if other > 0 else {})


def timed(c: Collective, topology: Topology, inside: Mapping[str, int], over: Mapping[str, int], speed: Rates) -> Sent:
    mesh_links = links(topology, {}, over) if c.between_slices else links(topology, cut_axes(inside, c.parts))
    names = [p.name for p in c.parts] + [a for a in c.axes if a not in {p.axis for p in c.parts}]
    once, network = collective_seconds(c.kind, tuple(names) or tuple(inside), c.bytes, mesh_links, speed.network)
    hidden = speed.overlap * min(once, c.meanwhile.seconds) if c.asynchronous else 0.0
    return Sent(c.kind, c.axes, c.bytes, c.times, once * c.times, network, hidden * c.times, c.asynchronous, c.source)


def cut_axes(mesh: Mapping[str, int], parts: Iterable[SubAxis]) -> dict[str, int]:
    """A mesh with the axes cut where these parts of them begin and end; the parts by their names."""
    cut_mesh: dict[str, int] = {}
    for axis, size in mesh.items():
        done = 1
        for part in sorted((p for p in parts if p.axis == axis), key=lambda p: p.before):
            cut_mesh |= {f"{axis} before {part.before}": part.before // done, part.name: part.size}
            done = part.before * part.size
        cut_mesh |= {axis if done == 1 else f"{axis} from {done}": size // done}
    return cut_mesh


def split_mesh(
    config: cfg.Config, topology: Topology, mesh: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, int]]:
    """A mesh's sizes within a slice and over slices. GPU nodes are no slices: there all is within."""
    over = {} if topology.chip.node else {a: n for a, n in config.mesh.over_slices.items() if a in mesh}
    return {a: n // over.get(a, 1) for a, n in mesh.items()}, over


def merged(sent: list[Sent]) -> list[Sent]:
    """One line for each kind, axes and whether asynchronous; the largest first, scalars and vectors left out."""
    lines: dict[tuple, Sent] = {}
    for s in sent:
        if s.bytes < SMALL:
            continue
        key = (s.kind, s.axes, s.asynchronous)
        old = lines.get(key)
        total = s.bytes * s.times
        if old is None:
            lines[key] = replace(s, bytes=total, what="")
        else:
            sums = {name: getattr(old, name) + getattr(s, name) for name in ("times", "seconds", "hidden")}
            lines[key] = replace(old, bytes=old.bytes + total, **sums)
    return sorted(lines.values(), key=lambda s: -s.seconds)
