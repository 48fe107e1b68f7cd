"""What `plan` and `chips` print."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from jaxscale import config as cfg
from jaxscale.compiled.story import Answer
from jaxscale.config.mesh_text import mesh_text, split_axes
from jaxscale.console.predict import gib
from jaxscale.console.sampling import sampling_lines, sampling_values
from jaxscale.console.tables import FittedTable, make_console, make_table, tell
from jaxscale.hardware.chips import CHIPS, GIB, Chip
from jaxscale.predict.costs import parameter_words
from jaxscale.predict.plan import Budget, Choice, Plan
from jaxscale.predict.ways import remat_name

FIGURES = (
    "bf16_flops",
    "hbm_bytes",
    "usable_hbm_bytes",
    "hbm_bandwidth",
    "link_bandwidth",
    "network_bandwidth",
    "host_bandwidth",
    "host_bytes",
)


# --- plan -----------------------------------------------------------------------------------------------------


def show_plan(
    config: cfg.Config,
    plan: Plan,
    compiled: list[Answer],
    spent: Budget | None,
    *,
    rows: int,
    out: Path | None,
    advice: list[str],
) -> None:
    console = make_console()
    for line in plan_header(config, plan):
        tell(console, line)
    console.print(plan_table(config, plan, rows))
    tell(console, own_words(plan))
    if not plan.choices:
        for line in no_way(plan, advice):
            tell(console, line)
    if compiled:
        console.print(compiled_table(plan, compiled))
    if plan.left_out:
        table = make_table("Left out", "<why", "ways")
        for reason, count in plan.left_out:
            table.add_row(escape(reason), f"{count:,}")
        console.print(table)
    for axis, why in plan.not_tried.items():
        tell(console, f"{axis} was not tried: {why}")
    if not plan.choices:
        return
    for line in plan_footer(config, plan, spent, out):
        tell(console, line)


def plan_header(config: cfg.Config, plan: Plan) -> Iterable[str]:
    tokens = config.data.batch_size * config.data.seq_len
    ways = f"{plan.considered:,} ways of mesh, microbatches and remat in place of the config's own"
    fit = f"{len(plan.choices)} fit, predicted"
    yield f"{config.name} on {plan.topology.name}: {tokens:,} tokens a step; {ways}, {fit}"
    if parameters := parameter_words(config.model):
        yield f"{config.model.name} has {parameters}; MFU counts the active ones"
    if plan.held:
        yield f"held as given: {', '.join(plan.held)}"


def plan_table(config: cfg.Config, plan: Plan, rows: int) -> FittedTable:
    """Row 0 is the config as it is, whether it fits or not."""
    columns = ["#", "<mesh", "micro-\nbatches", "<remat", "loss\nchunk", "HBM", "of\nusable", "s a step",
               "sampling, s\n(decoding)", "tokens/s\na chip", "MFU",
               f"<binds (share of {'training' if config.objective.samples else 'the step'})"]  # fmt: skip
    left_out = set() if config.objective.samples else {8}
    table = make_table(
        "The fastest, predicted; 0 is the config as it is",
        *(c for i, c in enumerate(columns) if i not in left_out),
        # the other columns, and lines below, say most of what these do
        spare=("loss\nchunk", "HBM", "tokens/s\na chip", *(["sampling, s\n(decoding)"] * config.objective.samples)),
    )

    def add(number: int, c: Choice, style: str | None = None) -> None:
        cells = [
            str(number),
            mesh_text(c.mesh, c.config.mesh.over_slices),
            str(c.config.step.microbatches),
            c.remat,
            str(c.config.loss.chunk or "none"),
            gib(c.memory.peak),
            f"{c.memory.peak / plan.topology.chip.usable_hbm_bytes:.0%}",
            f"{c.forecast.seconds:.4g}",
            sampled(c),
            f"{c.forecast.tokens_per_second_per_chip:,.0f}",
            f"{c.forecast.mfu:.1%}",
            "DOES NOT FIT" if c.short else c.binds,
        ]
        table.add_row(*(cell for i, cell in enumerate(cells) if i not in left_out), style=style)

    if plan.own:
        add(0, plan.own, "red" if plan.own.short else "bold")
    else:
        cells = [
            "0",
            own_mesh(config),
            str(config.step.microbatches),
            remat_name(config),
            str(config.loss.chunk or "none"),
            *[""] * 6,
            "cannot run",
        ]
        table.add_row(*(cell for i, cell in enumerate(cells) if i not in left_out), style="red")
    for number, choice in enumerate(plan.choices[:rows], 1):
        add(number, choice)
    return table


def sampled(c: Choice) -> str:
    """Seconds of a step's samples, and decoding's share of the step."""
    sampling = c.forecast.sampling
    return f"{sampling.seconds:.3g} ({sampling.share_of_decode(c.forecast.time.best):.0%})" if sampling else ""


def own_mesh(config: cfg.Config) -> str:
    """As it is written, where it does not fit the devices."""
    axes = {a: getattr(config.mesh, a) for a in cfg.AXES} | {f"dcn.{a}": n for a, n in config.mesh.over_slices.items()}
    return mesh_text(split_axes(axes))


def own_words(plan: Plan) -> str:
    """Of row 0, in a line: does it fit, by how much not, or why it cannot run."""
    choice, topology = plan.own, plan.topology
    if choice is None:
        return f"0, the config as it is, cannot run on {topology.name}: {plan.own_problem}"
    if not choice.short:
        return "0, the config as it is, fits"
    host = f"{choice.host_bytes / 1e9:,.0f} GB on a host of {topology.host_bytes / 1e9:,.0f}"
    about = {
        "memory": f"{gib(choice.memory.peak)} of {gib(topology.chip.usable_hbm_bytes)} a device",
        "host memory": host,
    }
    shortages = (f"{gib(size)} too much {what} ({about[what]})" for what, size in choice.short.items())
    return f"0, the config as it is, DOES NOT FIT: {', '.join(shortages)}"


def no_way(plan: Plan, advice: list[str]) -> Iterable[str]:
    name = plan.topology.name
    if plan.legal:
        yield f"DOES NOT FIT on {name} in any way that was considered"
    else:
        yield f"NO WAY on {name}: the sizes do not divide one another ('Left out' says which); memory is not the reason"
    nothing = "nothing near was found that would do: no other batch, mesh or machine of this chip"
    yield f"what would do: {'; '.join(advice)}" if advice else nothing


def plan_footer(config: cfg.Config, plan: Plan, spent: Budget | None, out: Path | None) -> Iterable[str]:
    chip = plan.topology.chip
    yield f"MFU by convention {config.metrics.mfu}, of {chip.bf16_flops / 1e12:,.0f} TFLOP/s a chip ({chip.source})"
    if chip.dtype == "fp16":
        yield (
            f"{chip.name} has neither bf16 nor a fused attention kernel: matmuls run in float32, and the scores "
            "that attention then holds are not in this memory"
        )
    offload = [c for c in plan.choices if c.host_bytes]
    if offload:
        most, host = max(c.host_bytes for c in offload) / 1e9, plan.topology.host_bytes / 1e9
        chips = plan.topology.host_chips
        yield f"offloaded activations take up to {most:,.0f} GB of a host's {host:,.0f} GB ({chips} chips a host)"
    first = plan.choices[0].forecast
    yield f"number 1 takes {first.interval.words}{', for training' if first.sampling else ''}"
    yield from sampling_lines(plan.choices[0].config, first.sampling, first.time.best)
    if left_out := first.left_out:
        yield f"not counted: {left_out}; `compile` counts them"
    if plan.measured:
        known = plan.measured
        rode = (f"{axis} (over {known.sizes[axis]}, {' and '.join(known.networks[axis])})" for axis in known.pairs)
        yield f"links measured in {known.source}: {', '.join(rode)}; of other axes and networks the datasheet's"
    if spent:
        yield (
            f"{spent.flops:.3g} FLOPs: {spent.tokens:,.3g} tokens, {spent.steps:,.0f} steps, {spent.days:,.1f} days "
            f"on {spent.chips:,} chips, predicted"
        )
    if out:
        yield f"number 1 is in {out}: jaxscale train {out}"


def compiled_table(plan: Plan, compiled: list[Answer]) -> FittedTable:
    pairs = [f"{what}\n{how}" for what in ("HBM", "TFLOP", "s a step") for how in ("predicted", "compiled")]
    table = make_table("Predicted beside compiled", "<mesh", "<remat", *pairs, "<fits", spare=pairs[2:4])
    for choice, answer in zip(plan.choices, compiled, strict=False):
        report = answer.report
        needed = report.memory_needed if report else answer.needed
        table.add_row(
            mesh_text(choice.mesh, choice.config.mesh.over_slices),
            choice.remat,
            gib(choice.memory.peak),
            gib(needed) if needed else "?",
            f"{choice.forecast.flops / 1e12:,.1f}",
            f"{(report.matmul_flops + report.attention_flops) / 1e12:,.1f}" if report else "",
            f"{choice.forecast.time.best:.4g}",
            f"{report.time.best:.4g}" if report else "",
            "yes" if answer.fits else "no",
        )
    return table


def print_plan_json(plan: Plan, compiled: list[Answer], spent: Budget | None, rows: int, advice: list[str]) -> None:
    topology = plan.topology
    print(json.dumps({
        "topology": topology.name, "considered": plan.considered, "fit": len(plan.choices), "held": plan.held,
        "network_bandwidth": topology.network_bandwidth, "host_memory": topology.host_bytes,
        "own": choice_values(plan.own) if plan.own else {"basis": "predicted", "cannot_run": plan.own_problem},
        "choices": [choice_values(c) for c in plan.choices[:rows]],
        "measured_links": plan.measured.source if plan.measured else None,
        "left_out": [{"why": why, "ways": n} for why, n in plan.left_out], "what_would_do": advice,
        "not_tried": plan.not_tried,
        "compiled": [a.report.as_json() if a.report else {"basis": "compiled", "needed": a.needed} for a in compiled],
        "budget": {"basis": "predicted"} | asdict(spent) if spent else None,
    }, indent=1))  # fmt: skip


def choice_values(c: Choice) -> dict[str, Any]:
    return {
        "basis": "predicted", "mesh": c.mesh, "over_slices": c.config.mesh.over_slices,
        "microbatches": c.config.step.microbatches, "remat": c.config.step.remat, "loss_chunk": c.config.loss.chunk,
        "hbm_bytes": c.memory.peak, "host_bytes": c.memory.host, "host_bytes_a_host": c.host_bytes,
        "fits": not c.short, "short_bytes": c.short, "step_seconds": c.forecast.seconds,
        "sampling": sampling_values(c.forecast.sampling, c.forecast.time.best),
        "interval": asdict(c.forecast.interval), "not_counted": c.forecast.left_out,
        "tokens_per_second_per_chip": c.forecast.tokens_per_second_per_chip, "mfu": c.forecast.mfu,
        "parts": c.forecast.time.parts, "binds": c.forecast.time.binds,
    }  # fmt: skip


# --- chips ----------------------------------------------------------------------------------------------------


def show_chips(names: list[str]) -> None:
    """All of the table, or some chips of it. Raises ValueError for a name that is none."""
    if unknown := [n for n in names if n not in {c.name for c in CHIPS}]:
        raise ValueError(f"no chip {' and '.join(unknown)}; there are {', '.join(c.name for c in CHIPS)}")
    chips = [c for c in CHIPS if not names or c.name in names]
    console = make_console()
    console.print(chips_table(chips))
    table = make_table("Where each figure is from", "chip", "<figure", "<source")
    for c in chips:
        for i, figure in enumerate(FIGURES):
            table.add_row(c.name if i == 0 else "", figure, escape(c.sources[figure]))
    console.print(table)


def chips_table(chips: list[Chip]) -> FittedTable:
    columns = ["chip", "TFLOP/s", "HBM\nGiB", "usable\nGiB", "HBM\nGB/s", "link\nGB/s", "network\nGB/s",
               "<shape", "devices", "host\nGB/s", "chips\na host", "host\nmemory, GB"]  # fmt: skip
    title = "Chips (dense bf16, * fp16; usable: of a device; one way; GB is 1e9 bytes)"
    spare = ("host\nGB/s", "devices", "chips\na host", "host\nmemory, GB", "HBM\nGiB")
    table = make_table(title, *columns, spare=spare)
    for c in chips:
        cells = (
            c.name,
            f"{c.bf16_flops / 1e12:,.0f}{'*' if c.dtype == 'fp16' else ''}",
            f"{c.hbm_bytes / GIB:,.1f}",
            f"{c.usable_hbm_bytes / GIB:,.2f}",
            f"{c.hbm_bandwidth / 1e9:,.0f}",
            f"{c.link_bandwidth / 1e9:,.0f}",
            f"{c.network_bandwidth / 1e9:,.3g}",
            f"{c.torus_dims}D torus" if c.torus_dims else f"{c.link} of {c.node}",
            str(c.devices),
            f"{c.host_bandwidth / 1e9:,.0f}",
            str(c.host),
            f"{c.host_bytes / 1e9:,.0f}",
        )
        table.add_row(*cells)
    return table
