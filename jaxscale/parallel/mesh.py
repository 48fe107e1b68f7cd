"""The mesh: devices arranged along named axes. Nothing here knows of models."""

import contextlib
import math
import os

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from jaxscale import config as cfg
from jaxscale.config.mesh_text import mesh_text
from jaxscale.hardware.chips import GPU_MEMORY_FRACTION
from jaxscale.process.quiet import quiet_plugins

CACHED_FROM = 0.2  # seconds of compiling from which a program is kept; by JAX's 1.0 evaluation would not be


def start_devices(runtime: cfg.Runtime, processes: int = 1) -> list[jax.Device]:
    """Choose the platform and simulate devices, before JAX first looks for any; returns those of all processes.

    Raises ValueError when JAX already runs with another platform or fewer simulated devices.
    """
    simulated = runtime.simulated_devices
    if simulated and simulated % processes:
        raise ValueError(
            f"runtime.simulated_devices={simulated} are not the same number on each of {processes} processes; "
            f"try {processes * math.ceil(simulated / processes)}"
        )
    per_process = simulated // processes if simulated else None
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_FRACTION))  # read where there is a GPU
    platform = "cuda" if runtime.platform == "gpu" else runtime.platform
    if platform != "auto":
        jax.config.update("jax_platforms", platform)
    if platform == "cpu" and (simulated or processes) == 1:  # a step's memory is given back before the next one
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if per_process:
        give_threads(per_process)
        with contextlib.suppress(RuntimeError):  # devices exist already (a notebook, a test): do they suffice?
            jax.config.update("jax_num_cpu_devices", per_process)
    if runtime.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(runtime.compilation_cache))
        jax.config.update("jax_compilation_cache_max_size", 4 * 2**30)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", CACHED_FROM)
    try:
        with quiet_plugins():
            devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # of a plugin that is not here JAX asserts that it is
        raise ValueError(
            f"runtime.platform={runtime.platform}: JAX finds no such device ({first_line(error)}); install the "
            "matching extra (cuda12, cuda13, tpu) or set runtime.platform=cpu"
        ) from error
    if simulated and devices[0].platform == "cpu":
        if len(devices) < simulated:
            raise ValueError(
                f"runtime.simulated_devices={simulated}, but JAX already started with {len(devices)}; "
                "restart the process, or make the config's mesh fit"
            )
        devices = devices[:simulated]
    return devices


def give_threads(simulated_devices: int) -> None:
    """Room for the simulated devices' collectives, to be called before JAX first looks for devices.

    On XLA's CPU backend a collective holds a thread of one shared pool until every device has joined it. Its pool has
    as many threads as devices: two collectives that are ready at one time take them all, each missing somebody, and
    after 40 s XLA aborts ("Termination timeout ... rendezvous"). Seen with 8 devices on 2 cores; four threads a device
    ended it, and cost nothing that could be measured (32 of them; 256 made steps half as fast).
    """
    os.environ.setdefault("PJRT_NPROC", str(max(os.cpu_count() or 1, 4 * simulated_devices)))


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def make_mesh(
    mesh: cfg.Mesh | dict[str, int] | None = None, devices: list[jax.Device] | None = None, **axes: int
) -> Mesh:
    """A mesh with explicit axes, e.g. `make_mesh(data=2, fsdp=2, tensor=2)`; axes of size 1 are left out.

    Every axis is `AxisType.Explicit`: shardings are part of array types, and a wrong layout is an error
    while tracing. Raises ValueError when the sizes do not fit the devices, or `mesh.dcn` not their slices.
    """
    wanted = mesh if isinstance(mesh, cfg.Mesh) else cfg.Mesh.model_validate({"data": 1} | (mesh or {}) | axes)
    devices = jax.devices() if devices is None else devices
    sizes = wanted.sizes(len(devices))
    over = tuple(wanted.over_slices.get(name, 1) for name in sizes)
    inside = tuple(size // n for size, n in zip(sizes.values(), over, strict=True))
    return Mesh(arrange(devices, inside, over), tuple(sizes), axis_types=(AxisType.Explicit,) * len(sizes))


def arrange(devices: list[jax.Device], inside: tuple[int, ...], over: tuple[int, ...]) -> np.ndarray:
    """Devices as an array of the mesh's shape, `inside * over`: slices along `over`, a slice's devices along
    `inside`.

    Within a TPU slice jax lays axes along the torus, the last one on the fastest links; a torus dim is split between
    two axes where whole dims don't fit. Elsewhere devices stay in their order, which keeps the last axes within a node.
    """
    torus = devices[0].platform == "tpu"
    slices = sorted({getattr(d, "slice_index", 0) for d in devices}) if torus else list(range(math.prod(over)))
    if len(slices) != math.prod(over):
        raise ValueError(
            f"the devices are in {len(slices)} slices and mesh.dcn spans {math.prod(over)}; "
            f"set e.g. mesh.dcn.data={len(slices)}, and the axes of mesh for one slice"
        )
    blocks = np.empty(len(slices), dtype=object)
    for i, number in enumerate(slices):
        if torus:
            in_slice = [d for d in devices if getattr(d, "slice_index", 0) == number]
            blocks[i] = mesh_utils.create_device_mesh(inside, in_slice, allow_split_physical_axes=True)
        else:
            size = math.prod(inside)
            blocks[i] = np.array(sorted(devices, key=lambda d: d.id)[i * size : (i + 1) * size]).reshape(inside)
    return np.block(blocks.reshape(over).tolist())


def make_abstract_mesh(mesh: cfg.Mesh, num_devices: int | None = None) -> AbstractMesh:
    """The mesh's shape without devices: enough to trace, and to show how a model would be split."""
    sizes = mesh.sizes(num_devices)
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Explicit,) * len(sizes))


def describe_mesh(mesh: Mesh | AbstractMesh) -> str:
    """`data=2, fsdp=2, tensor=2 (8 devices)`."""
    count = math.prod(mesh.shape.values())
    return f"{mesh_text(mesh.shape)} ({count} device{'s' if count > 1 else ''})"
