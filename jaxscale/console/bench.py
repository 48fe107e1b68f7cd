"""Records and comparisons as tables in a terminal. No jax."""

from rich.console import Console
from rich.markup import escape

from jaxscale.bench.compare import Ratio
from jaxscale.bench.record import BenchRecord, Figure, Label, Row
from jaxscale.config.mesh_text import mesh_text
from jaxscale.console.tables import make_console, make_table, tell

LEFT_OUT = ("flops", "bytes", "bytes_moved", "mean_flops_per_second")  # in the record; one column too many here
# unit -> (scale, name) from the largest: a column takes the first that its largest value reaches
SCALES = {
    "FLOP/s": ((1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s")),
    "bytes/s": ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")),
    "bytes": ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "bytes")),
    "FLOPs": ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs")),
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")),
    "share": ((0.01, "%"),),
    "count": ((1.0, ""),),
    "absolute": ((1.0, ""),),
}
SWEEP = (
    "step_seconds",
    "tokens_per_second",
    "mfu_causal",
    "compile_seconds",
    "peak_memory_bytes",
    "compiled_memory_bytes",
    "predicted_step_seconds",
    "ideal_tokens_per_second",
)
NAMES = {"flops_per_second": "", "best_flops_per_second": "best", "bytes_per_second": "", "tokens_per_second": ""}


def show_record(record: BenchRecord) -> None:
    """Rows with the same labels and figures share a table; then what it was measured on."""
    console = make_console()
    groups: dict[tuple, list[Row]] = {}
    for row in record.rows:
        groups.setdefault((tuple(row.labels), tuple(row.figures)), []).append(row)
    for (labels, figures), rows in groups.items():
        if labels:
            shown = [f for f in figures if (f in SWEEP if record.kind == "sweep" else f not in LEFT_OUT)]
            show_rows(console, record, rows, shown)
        else:
            show_single(console, record, rows[0].figures)
    for line in provenance(record):
        tell(console, line)


def show_rows(console: Console, record: BenchRecord, rows: list[Row], shown: list[str]) -> None:
    labels = [f"<{name.replace('_', ' ')}" for name in rows[0].labels]
    scales = {name: scale_of([r.figures[name].value for r in rows], rows[0].figures[name].unit) for name in shown}
    columns = []
    for name in shown:
        heading = NAMES.get(name, name.removesuffix("_seconds").replace("_", " "))
        basis = "" if rows[0].figures[name].basis == "measured" else rows[0].figures[name].basis
        columns.append("\n".join(filter(None, (heading, scales[name][1], basis))))
    failed = any(row.error for row in rows)
    table = make_table(f"{record.kind}, {record.name}", *labels, *columns, *["<why not"] * failed, spare=columns[:0:-1])
    for row in rows:
        cells = [escape(label_text(v)) for v in row.labels.values()]
        cells += [number(row.figures[name].value / scales[name][0]) for name in shown]
        table.add_row(*cells, *([escape(row.error or "")] if failed else []))
    console.print(table)


def show_single(console: Console, record: BenchRecord, figures: dict[str, Figure]) -> None:
    table = make_table(f"{record.kind}, {record.name}", "<figure", "value", "from", "to", "<basis")
    for name, figure in figures.items():
        scale, unit = scale_of([figure.value], figure.unit)
        spread = [number(x / scale) for x in (figure.low, figure.high)] if figure.samples else ["", ""]
        count = f", {len(figure.samples)} samples" if figure.samples else ""
        table.add_row(name.replace("_", " "), f"{number(figure.value / scale)} {unit}", *spread, figure.basis + count)
    console.print(table)


def provenance(record: BenchRecord) -> list[str]:
    device, clock = record.device, record.clock
    mesh = mesh_text(record.mesh)
    lines = [f"{device.count} x {device.kind}" + (f", mesh {mesh}" if mesh else "")]
    if record.peak:
        lines.append(f"peak {record.peak.flops_per_second / 1e12:,.4g} TFLOP/s: {record.peak.source}")
    if record.convention:
        lines.append(f"convention {record.convention}")
    load = f"; load {clock.load[0]:.1f} before, {clock.load[1]:.1f} after" if clock.load else ""
    marks = [record.under_load] if record.under_load else []
    return [*lines, f"median of the samples; {clock.source}{load}", *marks, *record.notes]


def show_ratios(a: str, b: str, ratios: list[Ratio], differ: list[str], *, all_rows: bool) -> None:
    """Ratios b : a; those inside the noise are counted and left out unless `all_rows`."""
    console = make_console()
    table = make_table(f"{b} : {a}", "<row", "<figure", "a", "b", "ratio", "95 %", "<verdict", spare=("a", "b"))
    noise = 0
    for r in ratios:
        if r.verdict == "inside the noise" and not all_rows:
            noise += 1
            continue
        where = " ".join(f"{k}={label_text(v)}" for k, v in r.labels.items())
        spread = "" if r.low is None or r.high is None else f"{r.low:.3f} to {r.high:.3f}"
        table.add_row(
            escape(where),
            r.figure.replace("_", " "),
            figure_text(r.a),
            figure_text(r.b),
            f"{r.value:.3f}",
            spread,
            r.verdict,
        )
    if table.row_count:
        console.print(table)
    if differ:
        tell(console, f"Not the same in both ({a} : {b}):")
        for line in differ:
            tell(console, f"  {line}")
    compared = f"{len(ratios)} figures compared"
    tell(console, compared + (f", {noise} of them inside the noise (--all shows them)" if noise else ""))


def label_text(value: Label) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def scale_of(values: list[float], unit: str) -> tuple[float, str]:
    """(divisor, unit's name) in which the largest value is at least 1."""
    scales = SCALES.get(unit, ((1.0, unit),))
    largest = max(map(abs, values), default=0.0)
    return next((s for s in scales if largest >= s[0]), scales[-1])


def figure_text(figure: Figure) -> str:
    scale, unit = scale_of([figure.value], figure.unit)
    return f"{number(figure.value / scale)} {unit}".strip()


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) < 1 else f"{value:.3g}"
