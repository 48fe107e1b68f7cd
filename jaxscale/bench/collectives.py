"""Collectives over each mesh axis: seconds, algbw and busbw by nccl-tests' definitions, and a line through them.

S, the bytes that a figure is about, is nccl-tests' (doc/PERFORMANCE.md): of all-reduce, all-to-all and ppermute what
each device holds; of all-gather the gathered whole, of reduce-scatter the whole that is scattered. algbw = S / t; busbw
is algbw times what a ring sends of S: 2(n-1)/n for all-reduce, (n-1)/n for all-gather, reduce-scatter and all-to-all, 1
for ppermute.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxscale.bench.clock import Effort, attempt, time_calls
from jaxscale.bench.record import Figure, Label, Row, measured
from jaxscale.compiled.collectives import wire_share
from jaxscale.parallel.local import on_each_device

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ppermute")
PHASES = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1}  # of a ring: what a fit is made of


def operation(kind: str, axis: str, n: int) -> Callable[[jax.Array], jax.Array]:
    ring = [(i, (i + 1) % n) for i in range(n)]
    return {
        "all-reduce": lambda x: lax.psum(x, axis),
        "all-gather": lambda x: lax.all_gather(x, axis, tiled=True),
        "reduce-scatter": lambda x: lax.psum_scatter(x, axis, tiled=True),
        "all-to-all": lambda x: lax.all_to_all(x, axis, 0, 0, tiled=True),
        "ppermute": lambda x: lax.ppermute(x, axis, ring),
    }[kind]


def time_collective(kind: str, axis: str, mesh: Mesh, size: int, dtype: str, effort: Effort) -> list[float]:
    """Seconds of one collective of S = `size` bytes over `axis`; the other axes' groups run it at the same time."""
    n = mesh.shape[axis]
    local = size // jnp.dtype(dtype).itemsize // (n if kind == "all-gather" else 1)
    where, everywhere = NamedSharding(mesh, PartitionSpec(axis)), PartitionSpec(axis)
    run = jax.jit(on_each_device(operation(kind, axis, n), (everywhere,), everywhere, check_vma=False))
    values = [np.random.default_rng(i).standard_normal(n * local).astype(np.float32) for i in range(2)]
    arrays = [jax.device_put(v.astype(jnp.dtype(dtype)), where) for v in values]
    with jax.set_mesh(mesh):
        return time_calls(lambda i: run(arrays[i % 2]), effort)


def measure(mesh: Mesh, sizes: list[int], dtype: str, effort: Effort, kinds: tuple[str, ...] = KINDS) -> Iterator[Row]:
    """A row for every axis, collective and size; then the fits."""
    if mesh.devices.flat[0].platform == "cpu":  # collectives of several calls at one time would wait for each other
        effort = Effort(effort.repeats, effort.seconds, effort.burn_in, 0)
    rows = []
    for axis, n in mesh.shape.items():
        if n == 1:
            continue
        unit = n * n * jnp.dtype(dtype).itemsize
        for kind in kinds:
            for size in dict.fromkeys(max(unit, s // unit * unit) for s in sizes):
                labels: dict[str, Label] = {"collective": kind, "axis": axis, "size": n, "bytes": size, "dtype": dtype}
                case = functools.partial(collective_row, kind, axis, mesh, size, dtype, effort, labels)
                rows.append(attempt(labels, case))
                yield rows[-1]
    yield from fits([r for r in rows if not r.error])


def collective_row(
    kind: str, axis: str, mesh: Mesh, size: int, dtype: str, effort: Effort, labels: dict[str, Label]
) -> Row:
    seconds, share = time_collective(kind, axis, mesh, size, dtype, effort), wire_share(kind, mesh.shape[axis])
    figures = {
        "seconds": measured(seconds, "s"),
        "algbw": measured([size / s for s in seconds], "bytes/s"),
        "busbw": measured([size / s * share for s in seconds], "bytes/s"),
    }
    return Row(labels=labels, figures=figures)


def fits(rows: list[Row]) -> Iterator[Row]:
    """(latency, bandwidth) of each axis: t = phases * latency + wire bytes / bandwidth, over its ring collectives.

    All-reduce is two phases of a ring, all-gather and reduce-scatter one. And a pair for each collective by itself.
    """
    for axis in dict.fromkeys(str(r.labels["axis"]) for r in rows):
        of_axis = [r for r in rows if r.labels["axis"] == axis]
        ring = [r for r in of_axis if r.labels["collective"] in PHASES]
        groups = {"ring": ring} | {k: [r for r in of_axis if r.labels["collective"] == k] for k in KINDS}
        for name, members in groups.items():
            if len({r.labels["bytes"] for r in members}) < 2:
                continue
            points: list[tuple[float, float, float]] = []
            for r in members:
                kind, n = str(r.labels["collective"]), int(r.labels["size"] or 1)
                phases = PHASES.get(kind, 1) if name == "ring" else 1
                moved = float(r.labels["bytes"] or 0) * wire_share(kind, n)
                points.append((phases, moved, r.figures["seconds"].value))
            labels: dict[str, Label] = {
                "fit": True,
                "collective": name,
                "axis": axis,
                "size": members[0].labels["size"],
            }
            yield Row(labels=labels, figures=fit_figures(points))


def fit_figures(points: list[tuple[float, float, float]]) -> dict[str, Figure]:
    """The fitted pair; no bandwidth where times do not grow with the bytes, no error of a line through two points."""
    latency, bandwidth = fit_line(points)
    figures = {"latency_seconds": Figure(value=latency, unit="s"), "points": Figure(value=len(points), unit="count")}
    if bandwidth is not None:
        figures["bandwidth"] = Figure(value=bandwidth, unit="bytes/s")
        if len(points) > 2:
            figures["fit_error"] = Figure(value=fit_error(points, latency, bandwidth), unit="share")
    return figures


def fit_line(points: list[tuple[float, float, float]]) -> tuple[float, float | None]:
    """(latency, bandwidth) of t = phases * latency + bytes / bandwidth with the least squared relative errors.

    Neither may be negative: where the best line has a negative latency it is the best one through 0; where time does
    not grow with the bytes there is a latency alone, and None.

    Args:
        points: (phases, bytes, seconds).
    """
    phases, moved, seconds = np.array(points, float).T
    a, b = phases / seconds, moved / seconds
    matrix = np.stack([a, b], axis=1)
    scale = np.linalg.norm(matrix, axis=0)
    solution, *_ = np.linalg.lstsq(matrix / scale, np.ones(len(a)), rcond=None)
    latency, per_byte = solution / scale
    if latency < 0:
        latency, per_byte = 0.0, b.sum() / (b * b).sum()
    if per_byte <= 0:
        return float(a.sum() / (a * a).sum()), None
    return float(latency), float(1 / per_byte)


def fit_error(points: list[tuple[float, float, float]], latency: float, bandwidth: float) -> float:
    """Median relative error of the line."""
    return float(np.median([abs(p * latency + b / bandwidth - t) / t for p, b, t in points]))
