"""The benchmarks as the command line asks for them: from words to devices, rows and one record."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from pydantic import ValidationError

from jaxscale import config as cfg
from jaxscale.bench import attention as attentions
from jaxscale.bench import checkpoint as checkpoints
from jaxscale.bench import collectives as sends
from jaxscale.bench import loader as loaders
from jaxscale.bench import matmul as products
from jaxscale.bench import memory as copies
from jaxscale.bench import split_attention
from jaxscale.bench import startup as starts
from jaxscale.bench.clock import Effort
from jaxscale.bench.header import Header
from jaxscale.bench.record import FAILED, INTERRUPTED, BenchRecord, Row
from jaxscale.blueprint.rules import check_divides
from jaxscale.blueprint.sequence import require_chunks
from jaxscale.config.mesh_text import read_mesh
from jaxscale.parallel.mesh import make_mesh, start_devices
from jaxscale.parallel.sharding import make_rules
from jaxscale.training.peak import Peak, find_peak

KIB, MIB = 2**10, 2**20
DTYPES = ("bfloat16", "float32")


def find_devices(platform: str, simulated: int | None = None) -> list[jax.Device]:
    """Raises ValueError where there is none of the platform asked for."""
    return start_devices(section(cfg.Runtime, {"platform": platform, "simulated_devices": simulated}))


def peak_of(device: jax.Device, dtype: str) -> Peak | None:
    return find_peak([device], dtype)


def matmul(shapes: list[str], dtypes: list[str], platform: str, effort: Effort, *, budget: float | None) -> BenchRecord:
    """Over shapes (`MxKxN`); with a `budget` in seconds: the best shape that can be found, for each dtype."""
    device = find_devices(platform)[0]
    dtypes = [known_dtype(d) for d in dtypes] or (["float32"] if device.platform == "cpu" else ["bfloat16"])
    peak = peak_of(device, dtypes[0])
    header = Header("matmul", "search" if budget else "shapes", [device], peak=peak)
    peaks = {dtype: peak_of(device, dtype) for dtype in dtypes}

    def rows() -> Iterator[Row]:
        for dtype, dtype_peak in peaks.items():
            rate = dtype_peak.flops_per_second if dtype_peak else None
            if budget:
                yield from products.search(device, dtype, rate, seconds=budget, effort=effort)
            else:
                squares = (256, 512, 1024, 2048) if device.platform == "cpu" else (1024, 2048, 4096, 8192, 16384)
                wanted = [read_shape(s, dtype) for s in shapes] or [products.Shape(n, n, n, dtype) for n in squares]
                yield from products.sweep_shapes(wanted, device, rate, effort)

    notes = [f"peak of {d}: {p.flops_per_second / 1e12:,.4g} TFLOP/s, {p.source}" for d, p in peaks.items() if p]
    return finished(header, rows(), burn_in=effort.burn_in, notes=notes if len(notes) > 1 else [])


def known_dtype(name: str) -> str:
    if name not in DTYPES:
        raise ValueError(f"--dtype {name}{cfg.nearest(name, DTYPES)}; there are {' and '.join(DTYPES)}")
    return name


def read_shape(text: str, dtype: str) -> products.Shape:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(p.isdigit() and int(p) for p in parts):
        raise ValueError(f"--shape {text} is not MxKxN; give e.g. 4096x4096x14336")
    m, k, n = map(int, parts)
    return products.Shape(m, k, n, dtype)


def model_matmul(name: str, overrides: list[str], mesh: str | None, platform: str, effort: Effort) -> BenchRecord:
    """The matmuls of a run file's model as one device of a mesh does them; the mesh need not be here."""
    config = cfg.load_config(name, [*overrides, *mesh_overrides(mesh)])
    device = find_devices(platform)[0]
    sizes = config.mesh.sizes(None)
    rules = make_rules(config.sharding)
    check_divides(rules, sizes, config)
    header = Header("matmul", config.name, [device], config, sizes, peak_of(device, config.step.compute_dtype))
    rate = header.peak.flops_per_second if header.peak else None
    return finished(header, products.model_matmuls(config, sizes, device, rate, effort), burn_in=effort.burn_in)


def memory(sizes: list[int], platform: str, effort: Effort) -> BenchRecord:
    device = find_devices(platform)[0]
    header = Header("memory", device.platform, [device])
    default = (MIB, 16 * MIB, 256 * MIB) if device.platform == "cpu" else (MIB, 16 * MIB, 256 * MIB, 1024 * MIB)
    rows = copies.copies([s // 4 * 4 for s in sizes] or list(default), device, effort)
    return finished(header, rows, burn_in=effort.burn_in)


def collectives(
    mesh: str, sizes: list[int], dtype: str, simulated: int | None, platform: str, effort: Effort
) -> BenchRecord:
    wanted = section(cfg.Mesh, given_mesh(mesh))
    devices = find_devices(platform, simulated)
    built = make_mesh(wanted, devices)
    if len(devices) == 1:
        raise ValueError("one device has nobody to send to; on a CPU give --devices 8")
    header = Header("collectives", mesh.replace("=", "").replace(",", "-"), devices, mesh=dict(built.shape))
    default = (
        (4 * KIB, 64 * KIB, MIB, 4 * MIB) if devices[0].platform == "cpu" else tuple(KIB * 4**i for i in range(2, 11))
    )
    rows = sends.measure(built, sizes or list(default), known_dtype(dtype), effort)
    return finished(header, rows, burn_in=effort.burn_in)


def attention(
    seq_lens: list[int],
    sizes: tuple[int | None, int, int, int],
    dtype: str,
    platform: str,
    effort: Effort,
    *,
    context: int = 1,
) -> BenchRecord:
    """Measure attention kernels on one device, or on `context` devices that share each row.

    Args:
        sizes: tokens of a call (None: as the platform can bear), query heads, kv heads, head dim.
    """
    devices = find_devices(platform, context)[:context]
    if len(devices) < context:
        raise ValueError(f"--context {context}: there are {len(devices)} devices")
    device = devices[0]
    small = device.platform == "cpu"
    tokens, heads, kv_heads, head_dim = sizes
    if heads % kv_heads:
        raise ValueError(f"--heads {heads} is not a multiple of --kv-heads {kv_heads}")
    lengths = seq_lens or ([256, 512, 1024] if small else [1024, 2048, 4096, 8192, 16384])
    tokens = tokens or (2048 if small else 32768)
    cases = [attentions.Case(max(1, tokens // T), T, heads, kv_heads, head_dim, known_dtype(dtype)) for T in lengths]
    for case in cases:
        require_chunks(case.seq_len, context)
    peak = peak_of(device, dtype)
    name = f"{heads}x{head_dim}" + (f"-context-{context}" if context > 1 else "")
    header = Header("attention", name, devices, peak=peak)
    rate = peak.flops_per_second if peak else None
    split = split_attention.measure(cases, devices, rate, effort)
    return finished(
        header,
        split if context > 1 else attentions.measure(cases, device, rate, effort),
        burn_in=effort.burn_in,
        convention=attentions.CONVENTION,
    )


def loader(name: str, overrides: list[str], *, batches: int, texts: list[str], tokenizer: str) -> BenchRecord:
    config = cfg.load_config(name, overrides)
    devices = start_devices(config.runtime)
    header = Header("loader", config.name, devices, config, config.mesh.sizes(len(devices)))

    def rows() -> Iterator[Row]:
        yield from loaders.load_rows(config, devices, batches=batches)
        if texts:
            yield loaders.prepare_row(texts, tokenizer, repeats=3)

    return finished(header, rows(), burn_in=4)


def checkpoint(name: str, overrides: list[str], folder: Path, *, repeats: int) -> BenchRecord:
    config = cfg.load_config(name, overrides)
    if not folder.is_dir():
        raise ValueError(f"--folder {folder} is no directory; give one on the disk to measure")
    devices = start_devices(config.runtime)
    header = Header("checkpoint", config.name, devices, config, config.mesh.sizes(len(devices)))
    rows = checkpoints.measure(config, devices, folder, repeats=repeats)
    return finished(header, rows, burn_in=1, notes=["the first save and restore stand apart, as first_seconds"])


def startup(name: str, overrides: list[str], *, repeats: int, say: Callable[[str], None]) -> BenchRecord:
    config = cfg.load_config(name, overrides)
    rows = list(starts.measure(name, overrides, repeats=repeats, say=say))  # before this process takes the devices
    devices = start_devices(config.runtime)
    header = Header("startup", config.name, devices, config, config.mesh.sizes(len(devices)))
    return header.record(rows, clock="wall clock of the events that train writes")


def finished(
    header: Header, rows: Iterable[Row], *, burn_in: int = 0, notes: list[str] | None = None, **more: str
) -> BenchRecord:
    """The record of all rows. After Ctrl-C or an error it holds the rows so far, and says so."""
    done, notes = [], list(notes or [])
    try:
        for row in rows:
            done.append(row)
    except KeyboardInterrupt:
        notes.append(f"{INTERRUPTED} after {len(done)} rows")
    except Exception as error:
        if not done or isinstance(error, ValueError):
            raise
        notes.append(f"{FAILED} after {len(done)} rows: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    if not done:
        raise KeyboardInterrupt
    return header.record(done, burn_in=burn_in, notes=notes, **more)


# --- words ----------------------------------------------------------------------------------------------------


def section(kind: Any, values: dict) -> Any:
    """A part of a config by itself; ValueError in one line for what it refuses."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ValueError(cfg.describe(error.errors()[0], cfg.Config)) from error


def given_mesh(text: str) -> dict[str, int]:
    """`--mesh` as sizes; data is 1 where it is not named, and not all that is left."""
    return {"data": 1} | read_mesh(text, cfg.AXES, rest=True)


def mesh_overrides(text: str | None) -> list[str]:
    return [f"mesh.{axis}={size}" for axis, size in given_mesh(text).items()] if text else []
