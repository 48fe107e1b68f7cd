"""The trainer's own step in the trainer's own loop, timed: compile, steps, MFU and HFU, memory, shares of ceilings."""

import contextlib
import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxscale import config as cfg
from jaxscale.bench.clock import Effort, trace
from jaxscale.bench.header import Header
from jaxscale.bench.matmul import best_row, model_matmuls, search
from jaxscale.bench.profile import classify, profile_rows, read_events
from jaxscale.bench.record import INTERRUPTED, BenchRecord, Figure, Row, measured
from jaxscale.compiled import hlo
from jaxscale.compiled.aot import compile_on
from jaxscale.compiled.store import Compiled
from jaxscale.compiled.work import matmuls
from jaxscale.files.jsonl import read_records
from jaxscale.hardware.topology import Topology, topology_of
from jaxscale.parallel.mesh import start_devices
from jaxscale.predict import costs
from jaxscale.predict.attention import attention_cost
from jaxscale.predict.costs import CONVENTIONS
from jaxscale.predict.forecast import forecast
from jaxscale.predict.memory import memory
from jaxscale.process.heap import peak_bytes as process_peak_bytes
from jaxscale.training.peak import Peak, find_peak
from jaxscale.training.trainer import train
from jaxscale.training.watcher import Silent


@dataclass(frozen=True)
class Plan:
    """How much of a run is measured: `steps` after `burn_in` ones; with `ceilings` the best and the model's matmuls."""

    steps: int = 20
    burn_in: int = 5
    ceilings: bool = True
    profile: Path | None = None
    profiled: int = 3


SAMPLED = "a step's seconds hold its samples and their rewards; FLOPs, MFU and HFU count its training alone"


class Enough(Exception):
    """The steps that were wanted are done."""


class Stopper(Silent):
    """Traces some steps, takes the device's memory while the state is there, and ends the run."""

    def __init__(self, plan: Plan, say: Callable[[str], None]):
        self.plan, self.speak, self.memory, self.tracing = plan, say, None, contextlib.ExitStack()

    def say(self, line: str) -> None:
        self.speak(line)

    def step(self, step: int, values: Mapping[str, Any], speed) -> None:
        plan, measured_all = self.plan, self.plan.burn_in + self.plan.steps
        if plan.profile and step == measured_all:
            self.tracing.enter_context(trace(plan.profile))
        if step == measured_all + (plan.profiled + 1 if plan.profile else 0):
            stats = [s for d in jax.local_devices() if (s := d.memory_stats())]
            self.memory = max((s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s), default=None)
            raise Enough


def bench_step(config: cfg.Config, plan: Plan, *, say: Callable[[str], None]) -> BenchRecord:
    """Train for some steps as `train` would, and tell what the clock, the compiler and the arithmetic say of the step.

    Checkpoints, evaluation and TensorBoard are left out; the compilation cache is an empty one of its own, so that
    compile seconds (tracing, lowering, compiling) are no cache's. Raises ValueError for what `train` would refuse.
    """
    devices = start_devices(config.runtime)
    sizes = config.mesh.sizes(len(devices))
    header = Header("step", config.name, devices, config, sizes)
    with tempfile.TemporaryDirectory(prefix="jaxscale-bench-") as folder:
        run = shortened(config, plan, Path(folder))
        stopper = Stopper(plan, say)
        with contextlib.suppress(Enough), stopper.tracing:
            train(run, watcher=stopper)
        gc.collect()
        events = read_records(Path(folder) / "run" / "events.jsonl")
        kept = compile_on(run, devices, documents=costs.packs_documents(run)).kept  # from the run's own cache
    header.peak = find_peak(devices, config.step.compute_dtype)
    samples = step_samples(events, plan, sampled=config.objective.samples)
    figures = speed_figures(config, sizes, samples, header.peak, len(devices))
    figures["compile_seconds"] = Figure(value=compile_seconds(events), unit="s")
    program = hlo.parse(kept.hlo)
    figures |= memory_figures(kept, stopper.memory, devices[0]) | compiled_figures(program)
    where = topology_of(devices)
    if where:
        figures |= predicted_figures(config, where, sizes)
    rows: list[Row] = []
    notes = [SAMPLED] if config.objective.samples else []
    try:  # the steps are measured: what comes on top may fail, or be stopped, without losing them
        if plan.profile:
            say("reading the trace")
            rows += profile_rows(read_events(plan.profile, classify(program)), figures["step_seconds"].value)
            notes.append(f"profile in {plan.profile}: shares of traced steps, seconds of the others")
        if plan.ceilings:
            say("measuring the best matmul and the model's own")
            ceilings = list(ceiling_rows(config, sizes, devices[0], header.peak, len(devices)))
            figures |= shares(config, figures["tokens_per_second"], ceilings, len(devices))
            rows += ceilings
    except KeyboardInterrupt:
        notes.append(f"{INTERRUPTED} in what comes after the steps")
    except (ValueError, MemoryError, jax.errors.JaxRuntimeError) as error:
        notes.append(f"without profile or ceilings: {' '.join(str(error).split())[:300]}")
    convention = CONVENTIONS[config.metrics.mfu]
    return header.record([Row(figures=figures), *rows], burn_in=plan.burn_in, notes=notes, convention=convention)


def shortened(config: cfg.Config, plan: Plan, folder: Path) -> cfg.Config:
    """The run of `config` in a folder of its own, without what is not the step; its schedule stays as long."""
    values = config.model_dump(mode="json")
    values["out"] = str(folder / "run")
    together = config.outer.every or 1
    values["steps"] = max(config.steps, -(-(plan.burn_in + plan.steps + plan.profiled + 3) // together) * together)
    values["checkpoint"] |= {"every": 0}
    values["evaluation"] |= {"every": 0}
    values["metrics"] |= {"tensorboard": False, "wandb": False}
    values["runtime"] |= {"compilation_cache": str(folder / "cache")}
    return cfg.validate(values, source="bench step")


def step_samples(events: list[dict], plan: Plan, *, sampled: bool = False) -> list[float]:
    """Seconds of the steps after the burn-in, each from the end of the step before it to its own end.

    Args:
        sampled: with the making of its samples, which the host waits for.
    """
    steps = [e for e in events if e["event"] == "step" and plan.burn_in < e["step"] <= plan.burn_in + plan.steps]
    return [e["seconds"] + e["data_wait_seconds"] * sampled for e in steps]


def compile_seconds(events: list[dict]) -> float:
    start, end = (
        next(e["time"] for e in events if e["event"] == "compile" and e["phase"] == p) for p in ("start", "end")
    )
    return end - start


def speed_figures(
    config: cfg.Config, sizes: dict[str, int], samples: list[float], peak: Peak | None, devices: int
) -> dict[str, Figure]:
    """Seconds, tokens/s, and utilization by both conventions: of model FLOPs (MFU), with recompute (HFU)."""
    tokens = config.data.batch_size * config.data.seq_len
    figures = {
        "step_seconds": measured(samples, "s"),
        "tokens_per_second": measured([tokens / s for s in samples], "tokens/s"),
        "tokens_per_second_per_device": measured([tokens / s / devices for s in samples], "tokens/s"),
    }
    figures["step_seconds_p95"] = Figure(value=figures["step_seconds"].p95, unit="s")
    for convention in ("causal", "palm"):
        model, hardware = step_flops(config, sizes, devices, convention)
        figures[f"model_flops_{convention}"] = Figure(value=model, unit="FLOPs", basis="predicted")
        if peak:
            for name, flops in (("mfu", model), ("hfu", hardware)):
                rates = [flops / s / peak.flops_per_second for s in samples]
                figures[f"{name}_{convention}"] = measured(rates, "share")
    return figures


def step_flops(config: cfg.Config, sizes: dict[str, int], devices: int, convention: str) -> tuple[float, float]:
    """(model, hardware) FLOPs of a step, all devices. Hardware: with every matmul and attention call done again."""
    tokens, T = config.data.batch_size * config.data.seq_len, config.data.seq_len
    model = costs.train_flops_per_token(config.model, T, convention=convention) * tokens
    attention = attention_cost(config, sizes)
    again = sum(m.flops * m.recomputed for m in costs.matmuls(config, sizes))
    calls = attention.forward_calls - attention.backward_calls  # one forward call a backward one is the model's
    scale = 1.0 if convention == "causal" else T / costs.visible_keys(config.model, T)
    return model, model + devices * (again + calls * attention.forward_flops * scale)


def memory_figures(kept: Compiled, peak_bytes: int | None, device: jax.Device) -> dict[str, Figure]:
    figures = {}
    if kept.memory:
        figures["compiled_memory_bytes"] = Figure(value=kept.memory.peak, unit="bytes", basis="compiled")
    if peak_bytes is not None:
        figures["peak_memory_bytes"] = Figure(value=peak_bytes, unit="bytes")
    # XLA's CPU backend keeps no count: the process at its largest, all devices and code
    elif device.platform == "cpu" and (most := process_peak_bytes()) is not None:
        figures["process_peak_memory_bytes"] = Figure(value=most, unit="bytes")
    return figures


def compiled_figures(program: hlo.Program) -> dict[str, Figure]:
    """Matmul FLOPs of a device as the compiler wrote them, without kernels that are opaque to it (attention's)."""
    flops = sum(m.flops * m.times for m in matmuls(program))
    return {"compiled_matmul_flops": Figure(value=flops, unit="FLOPs", basis="compiled")}


def predicted_figures(config: cfg.Config, where: Topology, sizes: dict[str, int]) -> dict[str, Figure]:
    prediction, needed = forecast(config, where, sizes), memory(config, sizes, chip=where.chip)
    return {
        "predicted_step_seconds": Figure(value=prediction.seconds, unit="s", basis="predicted"),
        "predicted_tokens_per_second": Figure(
            value=prediction.tokens / prediction.seconds, unit="tokens/s", basis="predicted"
        ),
        "predicted_memory_bytes": Figure(value=needed.peak, unit="bytes", basis="predicted"),
    }


def ceiling_rows(
    config: cfg.Config, sizes: dict[str, int], device: jax.Device, peak: Peak | None, devices: int
) -> Iterator[Row]:
    """The best matmul that a short search finds, and the model's own matmuls, on one device with all of its cores."""
    one = peak.flops_per_second / (1 if device.platform == "cpu" else devices) if peak else None
    effort = Effort(repeats=10, seconds=1.0)
    rows = list(search(device, config.step.compute_dtype, one, seconds=6.0, effort=effort))
    best = best_row(rows)
    yield best.model_copy(update={"labels": best.labels | {"what": "best matmul"}})
    yield from model_matmuls(config, sizes, device, one, effort)


def shares(config: cfg.Config, rate: Figure, ceilings: list[Row], devices: int) -> dict[str, Figure]:
    """The step's model FLOP/s over what matmuls reach on this device: simulated devices share one CPU's."""
    per_token = costs.train_flops_per_token(config.model, config.data.seq_len, convention=config.metrics.mfu)
    figures = {}
    for what, name in (("best matmul", "share_of_best_matmul"), ("model-shaped peak", "share_of_model_shaped_peak")):
        row = next(r for r in ceilings if r.labels.get("what") == what)
        whole = row.figures["flops_per_second"].value * devices_of(devices)
        figures[name] = measured([per_token * tokens / whole for tokens in rate.samples], "share")
    return figures


def devices_of(devices: int) -> int:
    """How many devices compute beside each other: simulated ones share the cores on which one was measured."""
    return 1 if jax.default_backend() == "cpu" else devices
