"""What `explain` prints."""

import math
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

from jaxscale.compiled.collectives import wire_share
from jaxscale.config.mesh_text import mesh_text
from jaxscale.console.sampling import sampling_lines
from jaxscale.console.tables import beside, make_console, make_table, tell
from jaxscale.explain.follow import Stop
from jaxscale.explain.match import SMALL
from jaxscale.explain.rows import CASES, Row
from jaxscale.explain.story import Explanation

TEXT_COLUMNS, FIGURE_COLUMNS = 60, 40  # columns of what is sent, and of its figures
MARK = {"same": "= compiled", "form": "≈ compiled", "different": "≠ compiled", "not compiled": ""}


def show(explanation: Explanation, *, backward: bool) -> None:
    """The matmuls of the step, each with what is sent for it."""
    console = make_console()
    for line in header(explanation):
        tell(console, line)
    served: dict[str, dict[str, None]] = {}  # a matmul -> what is sent for it where another one stands
    for row in explanation.rows:
        for send in row.sends:
            for title in send.shared:
                served.setdefault(title, {})[f"{row.words(send)}: with {row.title}"] = None  # once, of several loops
    parts = [("forward", explanation.phase("forward"))]
    parts += [("backward, with what is recomputed", explanation.phase("recomputed", "backward"))] if backward else []
    for title, rows in parts:
        tell(console, f"\n{title}", "bold")
        for row in rows:
            for line, style in matmul_lines(row, list(served.get(row.title, {})), console):
                tell(console, line, style)
    if others := [o for o in explanation.others if o.bytes >= SMALL]:
        tell(console, "\nsent for no matmul", "bold")
        for o in others:
            text = f"{o.what} ({o.phase}): {o.kind} over {'+'.join(o.axes)}"
            figures = f"{size(o.bytes):>9}  x{o.times:<4}{MARK[o.compiled]}"
            tell(console, beside(console, f"  {text}", figures, room=TEXT_COLUMNS, needs=FIGURE_COLUMNS), "cyan")
            if o.compiled == "different":
                tell(console, f"    ≠ {o.note}", "yellow")
    if small := [o for o in explanation.others if o.bytes < SMALL]:
        tell(
            console,
            f"  {len(small)} more of less than {size(SMALL)}: sums of the loss, norms' gradients, the gradient's norm",
        )
    tell(console, "")
    for line in footer(explanation, backward=backward):
        tell(console, line)


def header(explanation: Explanation) -> list[str]:
    model, data, step = explanation.config.model, explanation.config.data, explanation.config.step
    devices = math.prod(explanation.mesh.values())
    rows = data.batch_size // step.microbatches
    heads = f"K={model.kv_heads} H={model.head_size}"
    if model.latent:
        heads = f"H={model.head_size} O={model.latent.value_head_dim} J={model.latent.kv_rank} X={model.latent.q_rank}"
    sizes = (
        f"B={rows} T={data.seq_len} D={model.embed_dim} F={model.mlp_dim} N={model.num_heads} "
        f"{heads} V={model.padded_vocab_size} L={model.num_layers}"
    )
    if len(explanation.mesh) == 1 and devices == 1:
        sizes += " (BT: B and T as one dim)"
    if model.kv_heads < explanation.kv_shards:
        sizes += f" (K repeated to {explanation.kv_shards}, one for each shard)"
    speeds = f"speeds of {explanation.topology.name}" + (", as no --topology was given" if explanation.assumed else "")
    by = (
        f"=, ≈, ≠: beside {explanation.compiled_by}"
        if explanation.compiled_by
        else f"nothing compiled ({explanation.why})"
    )
    return [
        *([f"\n{explanation.stages.words}"] if explanation.stages else []),
        f"{explanation.config.name} on {mesh_text(explanation.mesh)} ({devices} device{'s' * (devices > 1)}); {sizes}; "
        f"{step.compute_dtype}, remat {step.remat if isinstance(step.remat, str) else 'by name'}",
        f"shardings: from the traced program (jax {explanation.jax}); {by}; seconds: predicted, {speeds}",
        "D_fsdp: dim D, split over the mesh axis fsdp; bytes (the scaling book's V), FLOPs, times: of a device and run",
    ]


def matmul_lines(row: Row, served: list[str], console: Console) -> Iterator[tuple[str, str]]:
    """The lines of a matmul, each with its style: what it is, what it costs, what is sent for it here and elsewhere."""
    matmul_seconds = max(row.seconds["compute"], row.seconds["HBM"])
    yield f"{row.title} x{row.times}   {row.x} · {row.w} -> {row.out}", "bold"
    on_a_device = (
        f"  on a device [{row.m:,}, {row.k:,}]·[{row.k:,}, {row.n:,g}]: {count(row.flops)}, {row.intensity:,.0f} "
        f"FLOP/B, {micro(matmul_seconds)}; {cases(row)}; bound by {row.bound}"
    )
    yield on_a_device, ""
    if row.note:
        yield f"  {row.note}", ""
    for text in served:
        yield f"  {text}", "cyan"
    for send in row.sends:
        text = row.words(send)
        text += f" x{send.times}" if send.times != row.times else ""
        text += f", also for {'; '.join(send.shared)}" if send.shared else ""
        figures = f"{size(send.bytes):>9}{micro(send.seconds):>11} {send.network:<8}{MARK[send.compiled]}"
        yield beside(console, f"  {text}", figures, room=TEXT_COLUMNS, needs=FIGURE_COLUMNS), "cyan"
        if send.compiled == "different":
            yield f"    ≠ {send.note}", "yellow"


def cases(row: Row) -> str:
    """`case 2 over fsdp, 4 over tensor`; case 1 where nothing is sent."""
    sending = {axis: case for axis, case in row.cases.items() if case > 1}
    return "case " + (", ".join(f"{case} over {axis}" for axis, case in sending.items()) or "1")


def footer(explanation: Explanation, *, backward: bool) -> list[str]:
    used = sorted({case for row in explanation.rows for case in row.cases.values()} | {1})
    lines = [f"case {case}: {CASES[case]}" for case in used]
    for f in explanation.inserted:
        lines.append(
            f"≠ inserted by the compiler: {f.kind} over {'+'.join(f.axes) or 'other groups'}, {size(f.bytes)} "
            f"x{f.times}, filed under {f.name} ({f.phase})"
        )
    if explanation.compiled_by:
        sends = [s for r in explanation.rows for s in r.sends]
        counts = {kind: sum(s.compiled == kind for s in sends) for kind in ("same", "form", "different")}
        lines.append(
            f"{len(sends)} collectives of matmuls, both passes: = {counts['same']} compiled as asked, "
            f"≈ {counts['form']} in another form, ≠ {counts['different']} otherwise"
        )
        lines += [f"≈ {note}" for note in sorted({s.note for s in sends if s.compiled == "form"})]
    step = explanation.step
    labels = {"compute": "matmuls and attention", "HBM": "other HBM traffic"}
    by_time = sorted(step.time.sums.items(), key=lambda part: -part[1])
    parts = ", ".join(f"{labels.get(name, name)} {micro(seconds)}" for name, seconds in by_time)
    lines.append(
        f"the whole step, predicted: {micro(step.time.best)} ({parts}, partly at the same time); "
        f"{labels.get(step.time.binds, step.time.binds)} binds"
    )
    lines.append(f"the step's interval: {step.interval.words}")
    lines += sampling_lines(explanation.config, step.sampling, step.time.best)
    if step.left_out:
        lines.append(f"not counted in the step: {step.left_out}")
    if not backward:
        lines.append("the backward pass too: --backward; a page to play with: -o explain.html")
    return lines


# --- two meshes ---------------------------------------------------------------------------------------------------


def show_compared(a: Explanation, b: Explanation) -> None:
    """Two meshes side by side: what is sent for each matmul, and the whole step."""
    console = make_console()
    names = [mesh_text(mesh, config.mesh.over_slices) for config, _, mesh in (a.whole, b.whole)]
    title = f"{a.config.name}: the collectives of each matmul, bytes (V) of a step, and predicted times"
    table = make_table(title, "<matmul", *(f"<{n}" for n in names), "first", "second")
    others = {r.title: r for r in b.rows}
    for row in a.rows:
        pair = (row, others.get(row.title))
        table.add_row(row.title, *(sent_words(r) for r in pair), *(micro(row_seconds(r)) if r else "" for r in pair))
    console.print(table)
    for name, one in zip(names, (a, b), strict=True):
        step = one.step
        every = [s for r in one.rows for s in r.sends] + one.others
        shares = [wire_share(s.kind, math.prod(one.mesh[a] for a in s.axes)) for s in every]
        total = sum(s.bytes * s.times * share for s, share in zip(every, shares, strict=True))
        tell(
            console,
            f"{name}: {size(total)} sent by a device in a step{along(one)}; predicted {micro(step.time.best)} on "
            f"{one.whole[1].name} ({micro(step.interval.low)} to {micro(step.interval.high)}), "
            f"{step.time.binds} binds",
        )


def along(explanation: Explanation) -> str:
    """What is sent along stages too."""
    return f", {size(sum(explanation.stages.sent.values()))} (V) along its stages" if explanation.stages else ""


def sent_words(row: Row | None) -> str:
    if row is None:
        return "-"
    lines = [f"{row.words(s).replace(' over ', ' ')} {size(s.bytes * s.times)}" for s in row.sends]
    return "\n".join(lines) or "nothing"


def row_seconds(row: Row) -> float:
    """Of a step, nothing overlapped: the matmul and its collectives."""
    sends = sum(s.seconds * s.times for s in row.sends)
    return max(row.seconds["compute"], row.seconds["HBM"]) * row.times + sends


# --- one tensor ---------------------------------------------------------------------------------------------------


def show_stops(name: str, stops: list[Stop]) -> None:
    table = make_table(
        f"{name} through the step; bytes of one device", "when", "<how it lies", "bytes", "<what happens"
    )
    for stop in stops:
        table.add_row(stop.when, escape(stop.layout), size(stop.bytes) if stop.bytes else "", escape(stop.words))
    make_console().print(table)


def size(count_: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count_ >= factor:
            return f"{count_ / factor:,.3g} {unit}"
    return f"{count_:.0f} B"


def count(flops: float) -> str:
    for unit, factor in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if flops >= factor:
            return f"{flops / factor:,.3g} {unit}"
    return f"{flops / 1e3:,.3g} kFLOP"


def micro(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= factor:
            return f"{seconds / factor:,.3g} {unit}"
    return f"{seconds * 1e6:,.3g} us"
