"""What `compile` prints."""

import json
from collections.abc import Iterable

from rich.markup import escape

from jaxscale import config as cfg
from jaxscale.compiled.examine import Report
from jaxscale.compiled.story import Answer
from jaxscale.config.mesh_text import mesh_text
from jaxscale.console.sampling import sampling_lines
from jaxscale.console.tables import FittedTable, make_console, make_table, tell
from jaxscale.hardware.chips import GIB
from jaxscale.hardware.topology import Topology
from jaxscale.predict.costs import CONVENTIONS
from jaxscale.predict.timing import WHOLE


def gib(size: float) -> str:
    """`5.54 GiB`, and in MiB what would be lost in that."""
    return f"{size / GIB:,.2f} GiB" if abs(size) >= GIB / 10 else f"{size / 2**20:,.2f} MiB"


def tera(flops: float) -> str:
    return f"{flops / 1e12:,.3f}" if flops >= 1e11 else f"{flops / 1e12:.3g}"


# --- compile --------------------------------------------------------------------------------------------------


def show_report(config: cfg.Config, answer: Answer) -> None:
    """Print all of the report that `answer` has."""
    report, cached = answer.report, answer.cached
    assert report is not None
    console = make_console()
    how = "kept from an earlier compile" if cached else f"compiled in {report.compile_seconds:.0f} s"
    tell(console, f"{config.name} on {report.topology}, mesh {mesh_text(report.mesh)}; {how}")
    console.print(memory_table(report))
    console.print(flops_table(report))
    console.print(collectives_table(report))
    console.print(time_table(report))
    if report.fits:  # else what does not fit is told by `show_out_of_memory`
        for line in [*verdict(report), *sampling_lines(config, report.sampling, report.time.best)]:
            tell(console, line)
    for line in host_words(answer):
        tell(console, line)


def host_words(answer: Answer) -> Iterable[str]:
    """Of what is offloaded: nothing where nothing is."""
    if answer.host:
        there = f"{answer.host / 1e9:,.1f} GB of a host's {answer.host_bytes / 1e9:,.0f} GB, all its devices together"
        short = answer.host > answer.host_bytes
        yield f"{'DOES NOT FIT THE HOST: offloaded activations take' if short else 'offloaded:'} {there}" + (
            "; offload less (step.remat), more microbatches, or --host-memory where it has more" if short else ""
        )


def memory_table(report: Report) -> FittedTable:
    table = make_table("HBM of one device, compiled", "part", "size", "share of usable")
    for name, size in report.memory.items():
        table.add_row(name, gib(size), f"{size / report.memory_usable:.1%}")
    table.add_row("all", gib(report.memory_needed), f"{report.memory_needed / report.memory_usable:.1%}", style="bold")
    table.add_row("usable", gib(report.memory_usable), "")
    return table


def flops_table(report: Report) -> FittedTable:
    table = make_table("FLOPs of one device and step", "what", "TFLOP", "<from")
    forward, backward = report.attention_calls
    done = report.matmul_flops + report.attention_flops
    table.add_row("matmuls", tera(report.matmul_flops), "compiled program, loops multiplied out")
    if forward:
        table.add_row(
            "attention kernels",
            tera(report.attention_flops),
            f"{forward} forward and {backward} backward calls in the program, FLOPs by formula (causal)",
        )
    for name, flops, wanted in expert_lines(report):
        source = (
            f"checked by compiled FLOPs: {flops / wanted:.3f} of those wanted" if flops else "not stated by its kernels"
        )
        table.add_row(f"experts, {name}", tera(flops), source)
    table.add_row("the model's", tera(report.model_flops), f"formula, {report.convention}, no recompute")
    if report.model_flops:
        table.add_row("done : model's", f"{done / report.model_flops:.3f}", "more than 1: recompute, repeated kv heads")
    return table


def expert_lines(report: Report) -> Iterable[tuple[str, float, float]]:
    """Of the experts' matmuls: which pass, FLOPs in the program, and those wanted; for the most rows there can be."""
    for i, name in enumerate(("forward", "backward")):
        if report.experts_wanted[i]:
            yield name, report.expert_flops[i], report.experts_wanted[i]


MORE = 1.05  # times the FLOPs wanted, from which it is worth a word


def collectives_table(report: Report) -> FittedTable:
    table = make_table(
        "Collectives of one device and step, compiled; seconds predicted",
        "kind",
        "<mesh axes",
        "runs",
        "GB (V)",
        "ms",
        "hidden",
        "<how",
        "<network",
        spare=("how", "network", "hidden"),
    )
    for s in report.sent:
        table.add_row(
            s.kind,
            "+".join(s.axes) or "other groups",
            f"{s.times:,}",
            f"{s.bytes / 1e9:,.3f}",
            f"{s.seconds * 1e3:,.2f}",
            f"{s.hidden / s.seconds:.0%}" if s.seconds else "",
            "asynchronous" if s.asynchronous else "synchronous",
            s.network,
        )
    if not report.sent:
        table.add_row("none", "", "", "", "", "", "", "")
    return table


def time_table(report: Report) -> FittedTable:
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
    yield (
        f"fits, with {gib(left)} of {gib(report.memory_usable)} to spare"
        if report.fits
        else f"DOES NOT FIT: {gib(-left)} too much for {gib(report.memory_usable)}"
    )
    yield f"{report.tokens_per_second_per_chip:,.0f} tokens/s a chip, predicted"
    yield f"a step takes {report.interval.words}"
    yield (
        f"MFU {report.mfu:.1%}, predicted, of {report.peak / 1e12:,.0f} TFLOP/s ({report.peak_source}); convention "
        f"{report.convention}: {CONVENTIONS[report.convention]}"
    )
    for name, flops, wanted in expert_lines(report):
        if flops > MORE * wanted:
            yield (
                f"WARNING: the experts' matmuls, {name}, take {flops / wanted:.2f} times the FLOPs wanted: rows are "
                "multiplied by experts that are not theirs"
            )
    if report.unknown_loops:
        yield f"counted once, as their trip count could not be read: loops {', '.join(report.unknown_loops)}"


def show_out_of_memory(
    config: cfg.Config, topology: Topology, needed: int | None, buffers: list[tuple[str, int]], tried: list[str]
) -> None:
    console = make_console()
    usable = int(topology.chip.usable_hbm_bytes)
    tell(console, f"{config.name} on {topology.name}")
    if needed is not None:
        tell(console, f"DOES NOT FIT: needs {gib(needed)} of {gib(usable)} usable, {gib(needed - usable)} too much")
    else:
        tell(console, f"DOES NOT FIT in {gib(usable)}")
    if buffers:
        table = make_table("Largest buffers, compiled unless it says predicted", "size", "<what")
        for name, size in buffers:
            table.add_row(gib(size), escape(name))
        console.print(table)
    for line in tried:
        tell(console, line)


def print_json(answer: Answer, note: str | None) -> None:
    """One object: the report (null where there is no program), what out of memory told, a note on the compiler."""
    print(json.dumps({
        "basis": "compiled", "report": answer.report.as_json() if answer.report else None, "cached": answer.cached,
        "needed": answer.needed, "host": answer.host, "host_memory": answer.host_bytes,
        "largest_buffers": answer.buffers, "tried": answer.tried, "note": note,
    }, indent=1))  # fmt: skip
