"""The course's drawings of ideas: docs/course/drawings/NAME.svg, one function each.

    python docs/drawings.py                       # all of them; also `make figures`
    python docs/drawings.py --out DIR torus       # one, elsewhere

A chapter's figures come from its own code; these need none. The same version of matplotlib gives the same bytes.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

DOCS = Path(__file__).resolve().parent
OUT = DOCS / "course" / "drawings"
# Okabe and Ito's colours; each part also has a pattern, so that no two differ in colour alone
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
HATCHES = ("", "///", "---", "xxx")
INK, PALE, GRAY = "#222222", "#ffffff", "#888888"
DRAWINGS: dict[str, Callable[[], Figure]] = {}


def drawing(draw: Callable[[], Figure]) -> Callable[[], Figure]:
    """Lists a drawing by the name of its file."""
    DRAWINGS[draw.__name__.replace("_", "-")] = draw
    return draw


def sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """Paper 7.5 inches wide with units of its own; y goes down."""
    figure = Figure(figsize=(7.5, 7.5 * height / width))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def say(axes: Axes, x: float, y: float, text: str, size: float = 10, **style) -> None:
    axes.text(x, y, text, **({"ha": "center", "va": "center", "fontsize": size, "color": INK} | style))


def part(axes: Axes, x: float, y: float, w: float, h: float, i: int | None, text: str = "", *, new: bool = False,
         layer: float = 0) -> None:  # fmt: skip
    """A block of an array that belongs to device i; None for a place that is empty."""
    low = 2 + layer
    if i is None:
        axes.add_patch(Rectangle((x, y), w, h, fc=PALE, ec="#bbbbbb", lw=0.8, ls=":", zorder=low))
        return
    color, heavy = blend(COLORS[i]), 0.2 if new else 0.1
    style = {"hatch": HATCHES[i], "ec": blend(COLORS[i], 0.6), "lw": 0} if HATCHES[i] else {"ec": "none"}
    axes.add_patch(Rectangle((x, y), w, h, fc=color, zorder=low, **style))
    axes.add_patch(Rectangle((x, y), w, h, fc="none", ec=INK, lw=2.4 if new else 0.9, zorder=low + heavy))
    if text:
        plate = {"boxstyle": "round,pad=0.12", "fc": color, "ec": "none"}
        say(axes, x + w / 2, y + h / 2, text, zorder=low + 0.3, bbox=plate)


def blend(color: str, strength: float = 0.35) -> str:
    """The colour as on white paper, through which nothing shines."""
    channels = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - strength * (255 - c)):02x}" for c in channels)


def arrow(axes: Axes, start: tuple, end: tuple, bend: float = 0, **style) -> None:
    look = {"arrowstyle": "-|>", "mutation_scale": 11, "lw": 1.3, "color": INK, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", **(look | style)))


def box(axes: Axes, x: float, y: float, w: float, h: float, text: str, below: str = "", color: str = "") -> None:
    """An operation, its corner at (x, y): square and coloured for a matmul, round and white for anything else."""
    if color:
        axes.add_patch(Rectangle((x, y), w, h, fc=blend(color), ec=INK, lw=1))
    else:
        style = "round,pad=0,rounding_size=.18"
        axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, fc=PALE, ec=GRAY, lw=1, ls="--"))
    say(axes, x + w / 2, y + h * (0.36 if below else 0.5), text, weight="bold" if color else "normal")
    if below:
        say(axes, x + w / 2, y + h * 0.72, below, 9)


# --- chapter 2 --------------------------------------------------------------------------------------------------


@drawing
def ring_all_gather() -> Figure:
    """Four devices, three steps: the block that came last goes on to the next device."""
    figure, axes = sheet(20, 7.9)
    n, cell, gap = 4, 0.88, 1.5
    for step in range(n):
        left = 2.2 + step * 4.55
        title = "start" if step == 0 else f"after step {step}"
        say(axes, left + n * cell / 2, 0.55, title, 11, weight="bold")
        for device in range(n):
            top = 1.15 + device * gap
            if step == 0:
                say(axes, left - 0.35, top + cell / 2, f"device {device}", ha="right")
            for block in range(n):
                age = (device - block) % n  # the step in which it comes
                here = age <= step
                label = "ABCD"[block] if here else ""
                part(
                    axes, left + block * cell, top, cell, cell, block if here else None, label, new=here and age == step
                )
            if step < n - 1:  # what is sent next, from its cell to the row below
                sent = (device - step) % n
                x = left + (sent + 0.5) * cell
                if device < n - 1:
                    arrow(axes, (x, top + cell), (x, top + gap), lw=1.8)
                else:
                    arrow(axes, (x, top + cell), (x, top + cell + 0.42), arrowstyle="-", lw=1.8, ls="--")
                    arrow(axes, (x, 0.8), (x, 1.15), lw=1.8, ls="--", mutation_scale=9)
    say(axes, 10, 7.5, "Each arrow carries one block of V/n bytes. The last device sends to the first one.")
    return figure


@drawing
def torus() -> Figure:
    """A torus of 4 x 4 x 4 chips with an axis on one of its dims and another on two."""
    figure, axes = sheet(20, 10.4)
    n, step, deep = 4, 1.42, (0.62, -0.5)

    def at(i: float, j: float, k: float) -> tuple[float, float]:
        return 1.7 + i * step + k * deep[0], 3.5 + j * step + k * deep[1]

    axes.add_patch(Polygon([at(-0.3, 1.7, 0), at(3.3, 1.7, 0), at(3.3, 1.7, 0), at(3.3, 2.3, 0), at(-0.3, 2.3, 0)],
                           fc=blend(COLORS[1], 0.45), ec="none"))  # fmt: skip
    plane = [at(0, -0.25, -0.35), at(0, 3.25, -0.35), at(0, 3.25, 3.35), at(0, -0.25, 3.35)]
    axes.add_patch(Polygon(plane, fc=blend(COLORS[0], 0.25), ec=COLORS[0], lw=1.2, ls="--"))
    for k in reversed(range(n)):
        for i in range(n):
            for j in range(n):
                for other in ((i + 1, j, k), (i, j + 1, k), (i, j, k + 1)):
                    if max(other) < n:
                        axes.plot(*zip(at(i, j, k), at(*other), strict=True), color="#bbbbbb", lw=0.9, zorder=2)
        for i in range(n):
            for j in range(n):
                in_ring, in_plane = (j, k) == (2, 0), i == 0
                color = COLORS[1] if in_ring else COLORS[0] if in_plane else "#dddddd"
                chip(axes, at(i, j, k), color, zorder=6 - k)
    say(axes, 5.1, 0.65, "64 chips, 4 x 4 x 4", 11, weight="bold")
    say(axes, 6.1, 1.2, "each line of chips closes to a ring", 9)
    say(axes, 5.1, 9.1, "fsdp = 4 lies on one dim: a ring of 4 chips", color=COLORS[1], weight="bold")
    say(axes, 5.1, 9.75, "data = 16 lies on the two others: a plane", color=COLORS[0], weight="bold")
    rings(axes)
    return figure


def chip(axes: Axes, where: tuple[float, float], color: str, zorder: int = 3) -> None:
    axes.plot(*where, "o", color=color, mec=INK, mew=0.7, markersize=10, zorder=zorder)


def rings(axes: Axes) -> None:
    """Beside the torus: the ring of one dim, and the plane of two with its links around the edge."""
    say(axes, 15.2, 0.65, "the ring of fsdp", 11, weight="bold", color=COLORS[1])
    for i in range(4):
        x = 12.2 + 2 * i
        if i < 3:
            axes.plot([x, x + 2], [1.75, 1.75], color=COLORS[1], lw=2.4, zorder=1)
        chip(axes, (x, 1.75), COLORS[1])
    arrow(axes, (12.2, 1.75), (18.2, 1.75), 0.17, arrowstyle="-", color=COLORS[1], lw=2.4, zorder=1)
    say(axes, 15.2, 2.75, "2 links a chip", 9)
    say(axes, 15.2, 3.75, "the plane of data", 11, weight="bold", color=COLORS[0])
    for i in range(4):
        for j in range(4):
            x, y = 12.8 + 1.6 * i, 4.75 + 1.15 * j
            chip(axes, (x, y), COLORS[0])
        across, down = 4.75 + 1.15 * i, 12.8 + 1.6 * i
        axes.plot([12.8, 17.6], [across, across], color=COLORS[0], lw=1.6, zorder=1)
        axes.plot([down, down], [4.75, 8.2], color=COLORS[0], lw=1.6, zorder=1)
        ends = {"arrowstyle": "-", "color": COLORS[0], "lw": 1.1, "ls": "--", "zorder": 1}
        arrow(axes, (12.8, across), (17.6, across), 0.09, **ends)
        arrow(axes, (down, 4.75), (down, 8.2), -0.12, **ends)
    say(axes, 15.2, 9.1, "4 links a chip; dashed: around the edge", 9)
    say(axes, 15.2, 9.75, "W counts both directions of each ring", 9)


@drawing
def partial_sums() -> Figure:
    """The contracted dim in four parts: four products of full shape, and their sum."""
    figure, axes = sheet(20, 9.1)
    bands(axes, 1.6, 1.5, 3.6, 2.2, down=False)
    say(axes, 3.4, 0.55, "x[B, D_fsdp]", 11, weight="bold")
    say(axes, 5.85, 2.6, "·", 20)
    bands(axes, 6.5, 0.95, 3.2, 3.3, down=True)
    say(axes, 8.1, 0.45, "w[D_fsdp, F]", 11, weight="bold")
    say(axes, 15.2, 1.55, "Device i has part i of the columns of x,", 10)
    say(axes, 15.2, 2.2, "and part i of the rows of w.", 10)
    say(axes, 15.2, 3.1, "Their product has the full shape [B, F],", 10)
    say(axes, 15.2, 3.75, "but it is one term of the sum over D.", 10)
    for i in range(4):
        x = 0.5 + i * 3.75
        part(axes, x, 5.2, 3.0, 1.6, i, f"device {i}")
        say(axes, x + 3.38, 6.0, "+" if i < 3 else "=", 15)
    say(axes, 7.4, 4.75, "four partial sums, none of them y", 10, style="italic")
    axes.add_patch(Rectangle((15.6, 5.2), 3.0, 1.6, fc=PALE, ec=INK, lw=1.4))
    say(axes, 17.1, 6.0, "y[B, F]", 11, weight="bold")
    say(axes, 0.5, 7.7, "all-reduce", 10.5, ha="left", weight="bold")
    say(axes, 3.6, 7.7, "adds the four, and each device gets all of y:  y[B, F]", ha="left")
    say(axes, 0.5, 8.55, "reduce-scatter", 10.5, ha="left", weight="bold")
    say(axes, 4.7, 8.55, "adds the four, and device i keeps part i of y:  y[B, F_fsdp]", ha="left")
    return figure


def bands(axes: Axes, x: float, y: float, w: float, h: float, *, down: bool) -> None:
    """An array cut in four, by rows (down) or by columns, each part with its device's number."""
    for i in range(4):
        if down:
            part(axes, x, y + i * h / 4, w, h / 4, i, str(i))
        else:
            part(axes, x + i * w / 4, y, w / 4, h, i, str(i))


# --- chapters 3, 4 and 5 ----------------------------------------------------------------------------------------


@drawing
def layer() -> Figure:
    """One layer of a decoder: what reads the residual stream and adds to it."""
    figure, axes = sheet(20, 8.5)
    stream, mid, tall = 1.35, 4.9, 1.25
    axes.plot([0.4, 19.3], [stream, stream], color=COLORS[0], lw=5, zorder=1, solid_capstyle="butt")
    arrow(axes, (19.0, stream), (19.75, stream), color=COLORS[0], lw=3, mutation_scale=20)
    say(axes, 0.35, 0.6, "residual stream  x[B, T, D]", 11, ha="left", weight="bold", color=COLORS[0])
    for name, left in (("attention", 0.6), ("mlp", 10.4)):
        matrix = COLORS[1] if name == "attention" else COLORS[2]
        say(axes, left + 4.3, 7.45, name, 11, weight="bold")
        arrow(axes, (left + 0.75, stream), (left + 0.75, mid - 0.5))
        box(axes, left, mid - 0.5, 1.5, 1, "norm")
        names = ("q", "k", "v") if name == "attention" else ("gate", "up")
        shapes = {"q": "[D, N·H]", "k": "[D, K·H]", "v": "[D, K·H]"}
        for i, weight in enumerate(names):
            y = mid + (i - (len(names) - 1) / 2) * 1.45 - tall / 2
            box(axes, left + 2.05, y, 1.8, tall, weight, shapes.get(weight, "[D, F]"), matrix)
            arrow(axes, (left + 1.5, mid), (left + 2.05, y + tall / 2))
            arrow(axes, (left + 3.85, y + tall / 2), (left + 4.3, mid))
        if name == "attention":
            box(axes, left + 4.3, mid - 0.85, 2.2, 1.7, "softmax", "q·k, then ·v")
        else:
            box(axes, left + 4.3, mid - 0.85, 2.2, 1.7, "silu(gate)", "times up")
        last, shape = ("out", "[N·H, D]") if name == "attention" else ("down", "[F, D]")
        arrow(axes, (left + 6.5, mid), (left + 6.9, mid))
        box(axes, left + 6.9, mid - tall / 2, 1.8, tall, last, shape, matrix)
        arrow(axes, (left + 7.8, mid - tall / 2), (left + 7.8, stream + 0.33))
        axes.add_patch(Circle((left + 7.8, stream), 0.33, fc=PALE, ec=INK, lw=1.3, zorder=5))
        say(axes, left + 7.8, stream, "+", 13, zorder=6)
    say(axes, 10, 8.1, "Solid boxes are matmuls with weights. Dashed boxes have none, or only a scale.")
    return figure


@drawing
def who_holds_what() -> Figure:
    """Four devices under data parallelism and under FSDP: which parts of four things each of them keeps."""
    figure, axes = sheet(20, 8.6)
    things = ("batch", "parameters", "gradients", "optimizer state")
    for column, (name, split) in enumerate((("data parallel", False), ("FSDP", True))):
        left = 4.3 + column * 8.1
        say(axes, left + 3.6, 0.55, name, 12, weight="bold")
        for device in range(4):
            x = left + device * 1.85
            say(axes, x + 0.8, 1.25, f"device {device}", 9)
            for row, thing in enumerate(things):
                y = 1.7 + row * 1.38
                for i in range(4):
                    held = i == device or not (split or thing == "batch")
                    part(axes, x + i * 0.4, y, 0.4, 0.95, i if held else None)
    for row, thing in enumerate(things):
        say(axes, 3.95, 2.17 + row * 1.38, thing, 10.5, ha="right")
    say(axes, 3.95, 7.65, "sent in a step", 10.5, ha="right", style="italic")
    say(axes, 7.9, 7.4, "all-reduce of the gradients", 9.5)
    say(axes, 16.0, 7.4, "all-gather of the parameters, twice", 9.5)
    say(axes, 16.0, 7.95, "reduce-scatter of the gradients", 9.5)
    return figure


@drawing
def columns_then_rows() -> Figure:
    """The two matmuls of an mlp over four devices: columns of the first, rows of the second, one sum."""
    figure, axes = sheet(20, 7.2)
    top = 1.5
    axes.add_patch(Rectangle((0.4, top + 0.65), 1.7, 1.7, fc=PALE, ec=INK, lw=1.2))
    say(axes, 1.25, top + 1.5, "whole", 9.5)
    say(axes, 1.25, 0.6, "x[T, D]", 10, weight="bold")
    say(axes, 2.5, top + 1.5, "·", 20)
    bands(axes, 2.9, top + 0.65, 3.6, 1.7, down=False)
    say(axes, 4.7, 0.6, "up[D, F_tensor]", 10, weight="bold")
    arrow(axes, (6.7, top + 1.5), (7.9, top + 1.5))
    say(axes, 7.25, top + 1.05, "gelu", 9.5)
    bands(axes, 8.1, top + 0.65, 3.6, 1.7, down=False)
    say(axes, 9.5, 0.6, "h[T, F_tensor]", 10, weight="bold")
    say(axes, 12.1, top + 1.5, "·", 20)
    bands(axes, 12.5, top - 0.3, 1.7, 3.6, down=True)
    say(axes, 13.3, 0.6, "down[F_tensor, D]", 10, weight="bold")
    arrow(axes, (14.4, top + 1.5), (15.3, top + 1.5))
    for i in reversed(range(4)):
        part(axes, 15.5 + 0.42 * i, top + 0.05 + 0.42 * i, 1.7, 1.7, i, layer=-0.2 * i)
    say(axes, 17.2, 0.6, "partial sums", 10, weight="bold")
    say(axes, 16.95, 4.95, "y[T, D] = their sum", 10.5, weight="bold")
    spans = ((0.4, 2.1, ""), (2.9, 14.2, "nothing is sent: device i uses its own part i"))
    for left, right, text in (*spans, (15.5, 18.5, "one all-reduce")):
        axes.plot([left, left, right, right], [5.55, 5.75, 5.75, 5.55], color=GRAY, lw=1.2)
        say(axes, (left + right) / 2, 6.2, text, 9.5)
    say(axes, 17.0, 6.75, "or a reduce-scatter", 9.5)
    say(axes, 0.4, 6.2, "each device", 9.5, ha="left")
    say(axes, 0.4, 6.75, "has all of x", 9.5, ha="left")
    return figure


# --- chapter 10 -------------------------------------------------------------------------------------------------


@drawing
def experts() -> Figure:
    """Four devices with one expert each: rows travel to their expert by an all-to-all, and back by another."""
    figure, axes = sheet(20, 9.6)
    chosen = ((0, 2, 1), (2, 1, 3), (0, 3, 2), (1, 2, 0))  # the expert of each row of each device
    say(axes, 2.9, 0.55, "each device's rows", 11, weight="bold")
    say(axes, 2.9, 1.1, "with the expert that each chose", 9)
    say(axes, 8.3, 0.55, "all-to-all", 11, weight="bold")
    say(axes, 12.6, 0.55, "rows by expert", 11, weight="bold")
    say(axes, 12.6, 1.1, "with the device that sent each", 9)
    say(axes, 18.1, 0.55, "experts", 11, weight="bold")
    say(axes, 18.1, 1.1, "one on each device", 9)
    filled = [0] * 4
    for device in range(4):
        y = 1.7 + device * 1.75
        say(axes, 0.95, y + 0.5, f"device {device}", 9.5)
        for slot in range(3):
            expert = chosen[device][slot]
            x = 1.9 + slot * 1.1
            part(axes, x, y, 1.0, 1.0, device, f"→{expert}")
            row = filled[expert]
            filled[expert] += 1
            end = (10.25, 1.7 + expert * 1.75 + 0.15 + 0.23 * row)
            arrow(axes, (5.35, y + 0.2 + 0.3 * slot), end, color=COLORS[device], lw=1.3, mutation_scale=8,
                  ls=("-", "--", "-.", ":")[device])  # fmt: skip
    for expert in range(4):
        y = 1.7 + expert * 1.75
        rows = [d for d in range(4) for e in chosen[d] if e == expert]
        for i, origin in enumerate(rows):
            part(axes, 10.4 + i * 1.1, y, 1.0, 1.0, origin, f"{origin}")
        arrow(axes, (15.15, y + 0.5), (16.5, y + 0.5))
        box(axes, 16.6, y - 0.05, 3.0, 1.1, f"expert {expert}", "up, gate, down", COLORS[2])
    say(axes, 10, 9.05, "The results go back by the same way. Weights stay where they are; their gradients too.")
    return figure


def draw(name: str, kind: str = "svg") -> bytes:
    """The file of one. An SVG has no date in it, but the version of matplotlib."""
    with matplotlib.rc_context(fname=DOCS / "course" / "matplotlibrc"):
        matplotlib.rcParams.update({"savefig.bbox": "standard", "hatch.linewidth": 0.8})
        figure, file = DRAWINGS[name](), io.BytesIO()
        for artist in figure.axes[0].get_children():
            artist.set_clip_on(False)  # a path of clipping for each would be half of the file
        figure.savefig(file, format=kind, dpi=144, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(DRAWINGS)}; default: all")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or DRAWINGS:
        (arguments.out / f"{name}.svg").write_bytes(draw(name))
        print(arguments.out / f"{name}.svg")


if __name__ == "__main__":
    main()
