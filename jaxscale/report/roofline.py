"""The roofline: each matmul by its intensity and what it reached, under what the machine could do."""

from jaxscale.bench.record import Row
from jaxscale.report.plots import Axis, Plot, Section, Series, figure_columns, finite
from jaxscale.report.rows import Item, curves, failures, number, text, without

X = Axis("intensity", "intensity, FLOPs a byte moved", "FLOPs/byte", log=True)
Y = Axis("flops_per_second", "FLOP/s", "FLOP/s", log=True)
BANDWIDTH = Axis("bytes_per_second", "bandwidth", "bytes/s", zero=True)


def roofline_section(matmuls: list[Item], memories: list[Item]) -> Section:
    """A roofline of one device of each kind, and the bandwidths measured."""
    section = Section("roofline", "Roofline")
    section.about.append(
        "A matmul of intensity I (its FLOPs over the bytes it must read and write) can reach at most the lesser of the "
        "peak and I times the memory's bandwidth."
    )
    for order, kind in enumerate(dict.fromkeys(item[2].device.kind for item in matmuls)):
        mine, copies = ([item for item in some if item[2].device.kind == kind] for some in (matmuls, memories))
        section.plots.append(roofline(f"roofline-{order + 1}", kind, mine, copies))
    if memories:
        section.plots.append(memory_plot(memories))
    return section


def roofline(id: str, kind: str, items: list[Item], memories: list[Item]) -> Plot:
    plot = Plot(id, f"Roofline of one {kind}", "lines", x=[X], y=[Y], failed=failures(items))
    for item in items:
        for name, rows in by_pass(item).items():
            full = f"{item[1]}, {name}" if len(items) > 1 else name
            plot.series.append(matmuls(item[0], full, rows, len(plot.series)))
    add_roof(plot, items, memories)
    return plot


def by_pass(item: Item) -> dict[str, list[Row]]:
    """Rows that have a place, by the pass of the model's matmul, or by how those of no model came to be tried."""
    groups: dict[str, list[Row]] = {}
    for row in item[2].rows:
        if "flops_per_second" in row.figures and intensity(row) is not None:
            name = next((str(row.labels[k]) for k in ("pass", "what", "stage") if k in row.labels), "other shapes")
            name += f", {row.labels['dtype']}" if "dtype" in row.labels else ""
            groups.setdefault(name, []).append(row)
    return groups


def intensity(row: Row) -> float | None:
    """As recorded, or from FLOPs and bytes."""
    if "intensity" in row.figures:
        return finite(row.figures["intensity"].value)
    if {"flops", "bytes"} <= row.figures.keys() and row.figures["bytes"].value:
        return finite(row.figures["flops"].value / row.figures["bytes"].value)
    return None


def matmuls(source: int, name: str, rows: list[Row], order: int) -> Series:
    columns = {"intensity": [intensity(row) for row in rows]}
    columns |= figure_columns("flops_per_second", [row.figures["flops_per_second"] for row in rows])
    tags = [str(row.labels.get("matmul", "")) for row in rows]
    shapes = [text(without(row.labels, ["dtype", "pass", "matmul", "what", "stage"])) for row in rows]
    labels = [f"{tag}: {shape}" if tag else shape for tag, shape in zip(tags, shapes, strict=True)]
    basis = rows[0].figures["flops_per_second"].basis
    return Series(name, source, columns, basis, order, order, line="none", marks=True, labels=labels, tags=tags)


def add_roof(plot: Plot, items: list[Item], memories: list[Item]) -> None:
    """The peak, the bandwidth of the largest copy, and the model-shaped peak; what is absent is said."""
    seen = [x for series in plot.series for x in series.columns["intensity"] if x]
    least, most = min(seen, default=1.0) / 2, max(seen, default=1000.0) * 2
    peaks, copy = peaks_of(items), largest_copy(memories)
    if not peaks:
        plot.about.append("The roof's flat part is absent: no peak on record for this device.")
    if copy is None:
        plot.about.append(
            "The roof's slope is absent: no record of kind memory with a device copy on this device is here."
        )
    else:
        plot.about.append(f"Slope: {copy[1] / 1e9:,.4g} GB/s, the largest device copy measured ({copy[0][1]}).")
    ridges = [most]
    for dtype, (rate, item) in peaks.items():
        name = f"peak, {dtype}" if len(peaks) > 1 else "peak"
        known = item[2].peak
        source = known.source if known else "by the shares of it on record"
        plot.about.append(f"{name.capitalize()}: {rate / 1e12:,.4g} TFLOP/s; {source}.")
        ridges.append(rate / copy[1] if copy else least)
        plot.series.append(roof(name, item[0], [max(ridges[-1], least), max(most, ridges[-1] * 2)], [rate] * 2))
    if copy:
        end = max(ridges[1:], default=most)
        if end > least:
            plot.series.append(roof("memory bound", copy[0][0], [least, end], [least * copy[1], end * copy[1]]))
    add_shaped(plot, items, [least, most])


def peaks_of(items: list[Item]) -> dict[str, tuple[float, Item]]:
    """FLOP/s of one device for each dtype: what the rows are given as shares of, else the record's own; the highest."""
    peaks: dict[str, tuple[float, Item]] = {}
    for item in items:
        rows = [
            r for r in item[2].rows if {"flops_per_second", "share_of_peak"} <= r.figures.keys() and "dtype" in r.labels
        ]
        for row in rows:
            share, rate = row.figures["share_of_peak"].value, row.figures["flops_per_second"].value
            if share > 0 and rate / share > peaks.get(str(row.labels["dtype"]), (0.0, item))[0]:
                peaks[str(row.labels["dtype"])] = (rate / share, item)
        if not rows and item[2].peak and item[2].peak.flops_per_second > peaks.get("", (0.0, item))[0]:
            peaks[""] = (item[2].peak.flops_per_second, item)
    return {k: v for k, v in peaks.items() if k or len(peaks) == 1}


def add_shaped(plot: Plot, items: list[Item], across: list[float]) -> None:
    """What a model's matmuls reach together: a dotted line."""
    shaped = [(item, row) for item in items for row in item[2].rows if row.labels.get("what") == "model-shaped peak"]
    for item, row in shaped:
        if figure := row.figures.get("flops_per_second"):
            name = "model-shaped peak" if len(shaped) == 1 else f"model-shaped peak, {item[1]}"
            series = roof(name, item[0], across, [figure.value] * 2)
            series.basis, series.line = figure.basis, "dotted"
            plot.series.append(series)


def roof(name: str, source: int, x: list[float], y: list[float]) -> Series:
    return Series(
        name, source, {"intensity": [*x], "flops_per_second": [*y]}, "limit", color=7, marker=7, line="dashed"
    )


def largest_copy(memories: list[Item]) -> tuple[Item, float] | None:
    """The rate of the largest copy, which no cache holds; of several records the fastest."""
    copies = [
        (row.labels.get("bytes") or 0, row.figures["bytes_per_second"].value, order)
        for order, item in enumerate(memories)
        for row in item[2].rows
        if row.labels.get("what") == "device copy" and "bytes_per_second" in row.figures
    ]
    if not copies:
        return None
    largest = max(size for size, _, _ in copies)
    rate, order = max((rate, order) for size, rate, order in copies if size == largest)
    return memories[order], rate


def memory_plot(memories: list[Item]) -> Plot:
    x = Axis("bytes", "bytes copied", "bytes", log=True)
    series, said = curves(memories, "bytes", [BANDWIDTH], lambda row: number(row, "bytes") is not None)
    about = [f"All of them: {text(said)}."] if said else []
    return Plot(
        "memory-bandwidth", "Memory bandwidth", "lines", [BANDWIDTH], [x], series, about, failed=failures(memories)
    )
