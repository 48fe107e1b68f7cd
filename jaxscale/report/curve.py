"""The loss curve of a run as a PNG."""

import warnings
from pathlib import Path
from typing import Any


def plot_losses(records: list[dict[str, Any]], path: Path, *, title: str, unit: str = "nats per token") -> Path:
    """Training and validation loss over steps, from the records of metrics.jsonl."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, label, color, marker in (
        ("train", "training", "#4477aa", ""),
        ("validation", "validation", "#cc6633", "o"),
    ):
        points = [(r["step"], r["loss"]) for r in records if r["kind"] == kind and isinstance(r.get("loss"), float)]
        if points:
            text = f"{label}, last {points[-1][1]:.3f}"
            axes.plot(*zip(*points, strict=True), label=text, color=color, marker=marker, markersize=4, linewidth=1.4)
    axes.set(xlabel="step", ylabel=f"loss ({unit})", title=title.replace("$", r"\$"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:  # matplotlib warns of a legend of nothing
        axes.legend(frameon=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in letters that its font lacks
        figure.savefig(path)
    return path
