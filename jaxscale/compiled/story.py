"""The stories behind `compile` and `plan`: config and topology in, figures out. No jax: compiles run in a child."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxscale import config as cfg
from jaxscale.bench.record import read_record
from jaxscale.compiled.child import compile_apart
from jaxscale.compiled.examine import Report, examine
from jaxscale.compiled.live import largest_buffers
from jaxscale.compiled.memory_error import buffers_of, needed_bytes
from jaxscale.compiled.store import Compiled, Store
from jaxscale.hardware.chips import GIB
from jaxscale.hardware.topology import Topology
from jaxscale.predict.measured import Measured, read_measured
from jaxscale.predict.memory import memory
from jaxscale.predict.plan import Choice


@dataclass(frozen=True)
class Answer:
    """What a compile told: a report, or by how much and why the program does not fit.

    Attributes:
        needed: bytes of one device, where the compiler says so.
        buffers: the largest ones (what, bytes).
        tried: changes that were compiled (or found not to work), in words.
        host, host_bytes: what a host keeps of all its devices by the compiler's count, and the memory that it has.
    """

    report: Report | None
    kept: Compiled
    cached: bool
    needed: int | None = None
    buffers: list[tuple[str, int]] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    host: float = 0.0
    host_bytes: float = 0.0

    @property
    def fits(self) -> bool:
        return self.report is not None and self.report.fits and self.host <= self.host_bytes


def fit_mesh(config: cfg.Config, topology: Topology) -> cfg.Config:
    """`config` with the slices of `topology` on its first axis of rows (data) where it says nothing of them."""
    slices = topology.slices
    if slices > 1 and not config.mesh.over_slices:
        return with_changes(config, {"mesh": {"dcn": {cfg.OVER_SLICES: slices}}}, source="--slices")
    return config


def measured_links(path: Path, topology: Topology) -> Measured:
    """The links of a record of `bench collectives`, for the plan of a topology of the same chip."""
    return read_measured(read_record(path).model_dump(mode="json"), path.name, topology)


def with_batch_tokens(config: cfg.Config, tokens: int) -> cfg.Config:
    """`config` with so many tokens a step; they must be whole sequences."""
    T = config.data.seq_len
    if tokens % T:
        raise ValueError(
            f"--batch-tokens {tokens} is not a multiple of data.seq_len {T}; try {max(1, tokens // T) * T}"
        )
    rows = tokens // T
    parts = config.step.microbatches if rows % config.step.microbatches == 0 else 1
    overrides = {"data": {"batch_size": rows}, "step": {"microbatches": parts}}
    return with_changes(config, overrides, source="--batch-tokens")


def write_config(choice: Choice, topology: Topology, path: Path) -> None:
    """The choice as a run file that `train` takes as it is."""
    forecast, between = choice.forecast, choice.forecast.interval
    usable, rate = topology.chip.usable_hbm_bytes / GIB, forecast.tokens_per_second_per_chip
    training = " for training, and samples" if forecast.sampling else ""
    head = (
        f"# {choice.config.name} on {topology.name}, chosen by `jaxscale plan`.\n# Predicted: {forecast.seconds:.4g} s "
        f"a step ({between.low:.4g} to {between.high:.4g}{training}), {rate:,.0f} tokens/s a chip, "
        f"{choice.memory.peak / GIB:.1f} GiB of {usable:.1f} a device.\n"
    )
    platform = "auto" if topology.chip.link == "xGMI" else topology.chip.platform  # gpu is JAX's cuda
    runtime = {"platform": platform, "simulated_devices": None}
    path.write_text(head + cfg.dump_config(with_changes(choice.config, {"runtime": runtime}, source=str(path))))


def compile_one(
    config: cfg.Config,
    topology: Topology,
    *,
    store: Store | None = None,
    save: Path | None = None,
    verbose: bool = False,
) -> tuple[Compiled, bool]:
    """The compiled step, from disk where it was compiled before; True in that case."""
    store = store or Store()
    kept = None if save else store.load(config, topology)
    if kept is not None:
        return kept, True
    kept = compile_apart(config, topology, save=save, verbose=verbose)
    store.save(config, topology, kept)
    return kept, False


def answer(config: cfg.Config, topology: Topology, **options: Any) -> Answer:
    """Compile and read; when it does not fit, say by how much and try what would."""
    kept, cached = compile_one(config, topology, **options)
    if kept.memory is None:
        buffers = buffers_of(kept.memory_error or "") or predicted_buffers(config, kept, topology)
        return Answer(None, kept, cached, bytes_needed(kept), buffers, try_changes(config, topology, options))
    report = examine(config, topology, kept)
    outcome = Answer(report, kept, cached, host=topology.on_host(kept.memory.host), host_bytes=topology.host_bytes)
    if report.fits:
        return outcome
    return replace(
        outcome,
        needed=report.memory_needed,
        buffers=largest_buffers(kept.hlo),
        tried=try_changes(config, topology, options),
    )


def bytes_needed(kept: Compiled) -> int | None:
    """Of one device, whether it fits or not; None where the compiler does not say."""
    if kept.memory is not None:
        return kept.memory.peak
    return needed_bytes(kept.memory_error or "", sum(kept.parts.values()))


def predicted_buffers(config: cfg.Config, kept: Compiled, topology: Topology) -> list[tuple[str, int]]:
    """The parts of the predicted peak, where the compiler names none."""
    forecast = memory(config, kept.mesh, chip=topology.chip)
    moment = max(forecast.loss, forecast.backward, key=lambda m: sum(m.values()))
    parts = [(f"{name} (predicted)", int(size)) for name, size in (forecast.state | moment).items() if size >= 2**20]
    return sorted(parts, key=lambda p: -p[1])


def changes(config: cfg.Config) -> list[tuple[str, dict[str, Any]]]:
    """What would save memory, the cheapest in speed first: (in words, overrides)."""
    savings: list[tuple[str, dict[str, Any]]] = []
    rows, T = config.data.batch_size // config.step.microbatches, config.data.seq_len
    chunk = config.loss.chunk or T
    if chunk > 512 and T % 512 == 0:
        savings.append(("loss.chunk=512", {"loss": {"chunk": 512}}))
    if config.step.remat != "full":
        savings.append(("step.remat=full", {"step": {"remat": "full"}}))
    for parts in (2, 4, 8):
        if rows % parts == 0:
            total = config.step.microbatches * parts
            savings.append((f"step.microbatches={total}", {"step": {"microbatches": total}}))
    return savings


def with_changes(config: cfg.Config, overrides: dict[str, Any], *, source: str) -> cfg.Config:
    """`config` with other values in some sections, validated anew."""
    values = config.model_dump(mode="json")
    for section, override in overrides.items():
        values[section] |= override
    return cfg.validate(values, source=source)


def try_changes(config: cfg.Config, topology: Topology, options: dict[str, Any]) -> list[str]:
    """Compile `config` with one change more each time, until it fits; says of each what came out."""
    lines: list[str] = []
    names: list[str] = []
    current = config
    options = options | {"save": None}
    for name, overrides in changes(config):
        if names and name.partition("=")[0] == names[-1].partition("=")[0]:
            names.pop()
        names.append(name)
        label = " ".join(names)
        try:
            changed = with_changes(current, overrides, source="tried")
            kept, _ = compile_one(changed, topology, **options)
        except ValueError as error:
            lines.append(f"tried {label}: {error}")
            names.pop()
            continue
        current = changed
        usable, needed = topology.chip.usable_hbm_bytes, bytes_needed(kept)
        size = f"{needed / GIB:,.2f} GiB of {usable / GIB:,.2f}, " if needed else ""
        fits = kept.memory is not None and kept.memory.peak <= usable
        lines.append(f"tried {label}: {size}{'fits' if fits else 'still does not fit'}")
        if fits:
            break
    else:
        lines.append(
            "none of these fits: split the state over more of the devices (mesh.fsdp, mesh.tensor), or take more; "
            f"`jaxscale plan --topology {replace(topology, slices=1).name}` says what would do"
        )
    return lines
