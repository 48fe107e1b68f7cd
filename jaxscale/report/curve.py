"""The loss curve of a run as a PNG."""

from pathlib import Path
from typing import Any


def plot_losses(records: list[dict[str, Any]], path: Path, *, title: str) -> Path:
    """Training and validation loss (nats a token) over steps, from the records of metrics.jsonl."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, style, label in (("train", {"lw": 1.2, "color": "#4477aa"}, "training"),
                               ("validation", {"lw": 1.6, "color": "#cc6633", "marker": "o", "ms": 4}, "validation")):  # fmt: skip
        points = [(r["step"], r["loss"]) for r in records if r["kind"] == kind and isinstance(r.get("loss"), float)]
        if points:
            axes.plot(*zip(*points, strict=True), label=f"{label}, last {points[-1][1]:.3f}", **style)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
    return path
