"""What `compile`, `plan` and `chips` print."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxscale import config as cfg
from jaxscale.analysis.costs import CONVENTIONS
from jaxscale.analysis.examine import Report
from jaxscale.analysis.plan import Budget, Plan, mesh_words
from jaxscale.analysis.timing import WHOLE
from jaxscale.hardware import CHIPS, GIB
from jaxscale.predict import Answer
from jaxscale.topology import Topology

FIGURES = ("bf16_flops", "hbm_bytes", "usable_hbm_bytes", "hbm_bandwidth", "link_bandwidth", "network_bandwidth",
           "host_bandwidth")  # fmt: skip


def make_console() -> Console:
    """At least 120 columns: a wrapped row cannot be read."""
    console = Console(highlight=False)
    return console if console.width >= 120 else Console(highlight=False, width=120)


def make_table(title: str, *columns: str) -> Table:
    """The first column is left-aligned; of the others those that begin with `<` are too."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        left = i == 0 or name.startswith("<")
        table.add_column(name.removeprefix("<"), justify="left" if left else "right", no_wrap=not left)
    return table


def gib(size: float) -> str:
    """`5.54 GiB`, and in MiB what would be lost in that."""
    return f"{size / GIB:,.2f} GiB" if abs(size) >= GIB / 10 else f"{size / 2**20:,.2f} MiB"


def tera(flops: float) -> str:
    return f"{flops / 1e12:,.3f}" if flops >= 1e11 else f"{flops / 1e12:.3g}"


def mesh_text(mesh: dict[str, int]) -> str:
    return ", ".join(f"{axis}={n}" for axis, n in mesh.items())


# --- compile --------------------------------------------------------------------------------------------------


def show_report(config: cfg.Config, report: Report, *, cached: bool) -> None:
    console = make_console()
    how = "kept from an earlier compile" if cached else f"compiled in {report.compile_seconds:.0f} s"
    console.print(f"{config.name} on {report.topology}, mesh {mesh_text(report.mesh)}; {how}", markup=False)
    console.print(memory_table(report))
    console.print(flops_table(report))
    console.print(collectives_table(report))
    console.print(time_table(report))
    if report.fits:  # else what does not fit is told by `show_out_of_memory`
        for line in verdict(report):
            console.print(line, markup=False, soft_wrap=True)


def memory_table(report: Report) -> Table:
    table = make_table("HBM of one device, compiled", "part", "size", "share of usable")
    for name, size in report.memory.items():
        table.add_row(name, gib(size), f"{size / report.memory_usable:.1%}")
    table.add_row("all", gib(report.memory_needed), f"{report.memory_needed / report.memory_usable:.1%}", style="bold")
    table.add_row("usable", gib(report.memory_usable), "")
    return table


def flops_table(report: Report) -> Table:
    table = make_table("FLOPs of one device and step", "what", "TFLOP", "<from")
    forward, backward = report.attention_calls
    done = report.matmul_flops + report.attention_flops
    table.add_row("matmuls", tera(report.matmul_flops), "compiled program, loops multiplied out")
    if forward:
        table.add_row(
            "attention kernels", tera(report.attention_flops),
            f"{forward} forward and {backward} backward calls in the program, FLOPs by formula (causal)",
        )  # fmt: skip
    table.add_row("the model's", tera(report.model_flops), f"formula, {report.convention}, no recompute")
    if report.model_flops:
        table.add_row("done : model's", f"{done / report.model_flops:.3f}", "more than 1: recompute, repeated kv heads")
    return table


def collectives_table(report: Report) -> Table:
    table = make_table(
        "Collectives of one device and step, compiled; seconds predicted",
        "kind", "<mesh axes", "runs", "GB (V)", "ms", "hidden", "<how", "<network",
    )  # fmt: skip
    for s in report.sent:
        table.add_row(
            s.kind, "+".join(s.axes) or "other groups", f"{s.times:,}", f"{s.bytes / 1e9:,.3f}",
            f"{s.seconds * 1e3:,.2f}",
            f"{s.hidden / s.seconds:.0%}" if s.seconds else "", "asynchronous" if s.asynchronous else "synchronous",
            s.network,
        )  # fmt: skip
    if not report.sent:
        table.add_row("none", "", "", "", "", "", "", "")
    return table


def time_table(report: Report) -> Table:
    time = report.time
    table = make_table("One step, predicted from the compiled program", "what", "seconds", "<")
    for name, seconds in sorted(time.parts.items(), key=lambda p: -p[1]):
        table.add_row(name, f"{seconds:.4g}", "binds" if WHOLE.get(name, name) == time.binds else "")
    table.add_row("if all overlapped", f"{time.overlapped:.4g}", "lower bound")
    table.add_row("if nothing overlapped", f"{time.nothing_overlapped:.4g}", "upper bound")
    table.add_row(
        "best estimate", f"{time.best:.4g}", f"{time.exposed:.4g} s of communication not hidden", style="bold"
    )
    table.add_row("between", f"{report.interval.low:.4g} and {report.interval.high:.4g}", "see below")
    return table


def verdict(report: Report) -> Iterable[str]:
    left = report.memory_usable - report.memory_needed
    yield (f"fits, with {gib(left)} of {gib(report.memory_usable)} to spare" if report.fits else
           f"DOES NOT FIT: {gib(-left)} too much for {gib(report.memory_usable)}")  # fmt: skip
    yield f"{report.tokens_per_second_per_chip:,.0f} tokens/s a chip, predicted"
    yield f"a step takes {report.interval.words}"
    yield (f"MFU {report.mfu:.1%}, predicted, of {report.peak / 1e12:,.0f} TFLOP/s ({report.peak_source}); convention "
           f"{report.convention}: {CONVENTIONS[report.convention]}")  # fmt: skip
    if report.unknown_loops:
        yield f"counted once, as their trip count could not be read: loops {', '.join(report.unknown_loops)}"


def show_out_of_memory(
    config: cfg.Config, topology: Topology, needed: int | None, buffers: list[tuple[str, int]], tried: list[str]
) -> None:
    console = make_console()
    usable = int(topology.chip.usable_hbm_bytes)
    console.print(f"{config.name} on {topology.name}", markup=False)
    if needed is not None:
        console.print(f"DOES NOT FIT: needs {gib(needed)} of {gib(usable)} usable, {gib(needed - usable)} too much")
    else:
        console.print(f"DOES NOT FIT in {gib(usable)}")
    if buffers:
        table = make_table("Largest buffers, compiled unless it says predicted", "size", "<what")
        for name, size in buffers:
            table.add_row(gib(size), escape(name))
        console.print(table)
    for line in tried:
        console.print(line, markup=False, soft_wrap=True)


def print_json(found: Answer) -> None:
    """One object: the report (null where there is no program), and what out of memory told."""
    print(json.dumps({
        "basis": "compiled", "report": found.report.as_json() if found.report else None, "cached": found.cached,
        "needed": found.needed, "largest_buffers": found.buffers, "tried": found.tried,
    }, indent=1))  # fmt: skip


# --- plan -----------------------------------------------------------------------------------------------------


def show_plan(
    config: cfg.Config, found: Plan, compiled: list[Answer], spent: Budget | None, *, rows: int, out: Path | None
) -> None:
    console = make_console()
    tokens = config.data.batch_size * config.data.seq_len
    ways = f"{found.considered} ways of mesh, microbatches and remat in place of the config's own"
    words = (
        f"{config.name} on {found.topology.name}: {tokens:,} tokens a step; {ways}, {len(found.choices)} fit, predicted"
    )
    console.print(words, markup=False, soft_wrap=True)
    table = make_table("The fastest, predicted", "mesh", "micro-\nbatches", "<remat", "loss\nchunk", "HBM",
                       "of\nusable", "s a step", "tokens/s\na chip", "MFU", "<binds (share of the step)")  # fmt: skip
    usable = found.topology.chip.usable_hbm_bytes
    for c in found.choices[:rows]:
        table.add_row(
            mesh_words(c.mesh, c.config), str(c.config.step.microbatches), c.remat, str(c.config.loss.chunk or "none"),
            gib(c.memory.peak),
            f"{c.memory.peak / usable:.0%}", f"{c.forecast.time.best:.4g}",
            f"{c.forecast.tokens_per_second_per_chip:,.0f}", f"{c.forecast.mfu:.1%}", c.binds,
        )  # fmt: skip
    if found.choices:
        console.print(table)
    else:
        console.print(
            f"DOES NOT FIT on {found.topology.name}: take more chips, or another data.batch_size", markup=False
        )
    if compiled:
        console.print(compiled_table(found, compiled))
    if found.left_out:
        table = make_table("Left out", "why", "ways")
        for reason, count in found.left_out:
            table.add_row(escape(reason), f"{count:,}")
        console.print(table)
    if not found.choices:
        return
    chip = found.topology.chip
    words = f"MFU by convention {config.metrics.mfu}, of {chip.bf16_flops / 1e12:,.0f} TFLOP/s a chip ({chip.source})"
    console.print(words, markup=False, soft_wrap=True)
    console.print(f"the first one takes {found.choices[0].forecast.interval.words}", markup=False, soft_wrap=True)
    if found.measured:
        known = found.measured
        rode = (f"{axis} (over {known.sizes[axis]}, {' and '.join(known.networks[axis])})" for axis in known.pairs)
        words = (
            f"links measured in {found.measured.source}: {', '.join(rode)}; of other axes and networks the datasheet's"
        )
        console.print(words, markup=False, soft_wrap=True)
    if spent:
        console.print(
            f"{spent.flops:.3g} FLOPs: {spent.tokens:,.3g} tokens, {spent.steps:,.0f} steps, {spent.days:,.1f} days on "
            f"{spent.chips:,} chips, predicted", markup=False, soft_wrap=True,
        )  # fmt: skip
    if out:
        console.print(f"the first one is in {out}: jaxscale train {out}", markup=False, soft_wrap=True)


def compiled_table(found: Plan, compiled: list[Answer]) -> Table:
    pairs = [f"{what}\n{how}" for what in ("HBM", "TFLOP", "s a step") for how in ("predicted", "compiled")]
    table = make_table("Predicted beside compiled", "mesh", "<remat", *pairs, "<fits")
    for choice, answer in zip(found.choices, compiled, strict=False):
        report = answer.report
        needed = report.memory_needed if report else answer.needed
        table.add_row(
            mesh_words(choice.mesh, choice.config), choice.remat, gib(choice.memory.peak),
            gib(needed) if needed else "?",
            f"{choice.forecast.flops / 1e12:,.1f}",
            f"{(report.matmul_flops + report.attention_flops) / 1e12:,.1f}" if report else "",
            f"{choice.forecast.time.best:.4g}", f"{report.time.best:.4g}" if report else "",
            "yes" if report and report.fits else "no",
        )  # fmt: skip
    return table


def print_plan_json(found: Plan, compiled: list[Answer], spent: Budget | None, rows: int) -> None:
    choices = [
        {
            "basis": "predicted", "mesh": c.mesh, "over_slices": c.config.mesh.over_slices,
            "microbatches": c.config.step.microbatches,
            "remat": c.config.step.remat, "loss_chunk": c.config.loss.chunk, "hbm_bytes": c.memory.peak,
            "host_bytes": c.memory.host, "step_seconds": c.forecast.time.best,
            "interval": asdict(c.forecast.interval),
            "tokens_per_second_per_chip": c.forecast.tokens_per_second_per_chip, "mfu": c.forecast.mfu,
            "parts": c.forecast.time.parts, "binds": c.forecast.time.binds,
        }
        for c in found.choices[:rows]
    ]  # fmt: skip
    print(json.dumps({
        "topology": found.topology.name, "considered": found.considered, "fit": len(found.choices), "choices": choices,
        "measured_links": found.measured.source if found.measured else None,
        "left_out": [{"why": why, "ways": n} for why, n in found.left_out],
        "compiled": [a.report.as_json() if a.report else {"basis": "compiled", "needed": a.needed} for a in compiled],
        "budget": {"basis": "predicted"} | asdict(spent) if spent else None,
    }, indent=1))  # fmt: skip


# --- chips ----------------------------------------------------------------------------------------------------


def show_chips() -> None:
    console = make_console()
    table = make_table("Chips (dense bf16; one way; GB is 1e9 bytes)", "chip", "TFLOP/s", "HBM", "usable a device",
                       "HBM GB/s", "link GB/s", "network GB/s", "host GB/s", "devices", "<shape")  # fmt: skip
    for c in CHIPS:
        shape = f"{c.torus_dims}D torus" if c.torus_dims else f"NVLink domain of {c.node}"
        table.add_row(
            c.name, f"{c.bf16_flops / 1e12:,.0f}", gib(c.hbm_bytes), gib(c.usable_hbm_bytes),
            f"{c.hbm_bandwidth / 1e9:,.0f}", f"{c.link_bandwidth / 1e9:,.0f}", f"{c.network_bandwidth / 1e9:,.3g}",
            f"{c.host_bandwidth / 1e9:,.0f}", str(c.devices), shape,
        )  # fmt: skip
    console.print(table)
    table = make_table("Where each figure is from", "chip", "<figure", "<source")
    for c in CHIPS:
        for i, figure in enumerate(FIGURES):
            table.add_row(c.name if i == 0 else "", figure, escape(c.sources[figure]))
    console.print(table)
