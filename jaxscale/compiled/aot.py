"""Compile the trainer's own step for machines that are not here, with the TPU's or NVIDIA's own compiler.

As a program it is the child of `compiled.child`: one compile, whatever happens to it.

What comes out (HLO text, memory, versions) is kept on disk under a key of everything that it depends on; reading it is
the work of `compiled.examine`, which knows no jax.
"""

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import jax
from jax.experimental import topologies

from jaxscale import config as cfg
from jaxscale import private
from jaxscale.compiled.memory_error import too_large_for_vmem
from jaxscale.compiled.store import Compiled, Memory
from jaxscale.hardware.gpu_targets import CUDNN, target_config
from jaxscale.hardware.topology import Topology, find_topology
from jaxscale.parallel.mesh import first_line
from jaxscale.predict.costs import packs_documents
from jaxscale.training.build import build
from jaxscale.training.executable import save_executable


@dataclass(frozen=True)
class Built:
    """A compiled step: what was kept of it, and the executable itself (None when it ran out of memory)."""

    kept: Compiled
    executable: Any


def compile_step(config: cfg.Config, topology: Topology, *, save: Path | None = None) -> Built:
    """Lower and compile `config`'s training step for `topology`.

    Args:
        save: write the executable here, for `train --executable`.

    Returns the compiled text and memory; a program that does not fit the device's memory is an answer too
    (`kept.memory_error`). Raises ValueError for a config that does not fit the topology or a missing compiler.
    """
    jax.config.update("jax_platforms", "cpu")
    devices = find_devices(topology)
    built = compile_on(config, devices, documents=packs_documents(config))
    memory = built.kept.memory
    if save and memory is not None and memory.peak <= topology.chip.usable_hbm_bytes:  # else there is nothing to start
        save_executable(save, built.executable, config, devices)
    return built


def compile_on(config: cfg.Config, devices: list[jax.Device], *, documents: bool) -> Built:
    """Compile the step for these devices, compile-only or real."""
    setup = build(config, devices)
    with setup.context():
        program, batch = setup.program, setup.abstract_batch(documents=documents)
        parts = {
            "parameters": device_bytes((program.abstract.params, program.abstract.frozen)),
            "optimizer state": device_bytes(program.abstract.opt_state),
            "averaged parameters": device_bytes(program.abstract.ema),
            "losses' statistics": device_bytes(program.abstract.losses),
            "batch": device_bytes(batch),
        }
        if program.outer is not None:
            parts["outer parameters and momentum"] = device_bytes(program.abstract.outer)
        sizes, jitted = dict(setup.mesh.shape), cast(Any, program.step)
        start = time.perf_counter()
        try:
            lowered = jitted.lower(program.abstract, batch)
        except (NotImplementedError, RuntimeError) as error:
            raise ValueError(
                f"this config cannot be compiled for {devices[0].device_kind}: {first_line(error)}"
            ) from error
        lower_seconds = time.perf_counter() - start
        start = time.perf_counter()
        try:
            executable = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "compile option" in str(error) or "Failed to parse" in str(error) or "not a valid" in str(error):
                raise ValueError(f"runtime.compiler_options: {first_line(error)}") from error
            if kernel := too_large_for_vmem(str(error)):
                raise ValueError(f"the compiler refuses the program: {kernel}") from error
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise ValueError(f"the compiler refuses the program: {first_line(error)}") from error
            seconds = time.perf_counter() - start
            return Built(Compiled("", None, parts, sizes, lower_seconds, seconds, str(error)), None)
        seconds = time.perf_counter() - start
        return Built(
            Compiled(executable.as_text(), read_memory(executable), parts, sizes, lower_seconds, seconds), executable
        )


def device_bytes(tree: Any) -> int:
    """Bytes of one device's shards of a tree of shapes."""
    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))


def read_memory(executable: Any) -> Memory:
    stats = executable.memory_analysis()
    return Memory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
        stats.host_temp_size_in_bytes,
    )


# --- compilers ------------------------------------------------------------------------------------------------


def find_devices(topology: Topology) -> list[jax.Device]:
    """Compile-only devices of a topology. Raises ValueError, with what to install, where its compiler is missing."""
    return list((gpu_topology if topology.chip.node else tpu_topology)(topology).devices)


def tpu_topology(topology: Topology) -> Any:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # two compiles at the same time
    more: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    # Unless it is told, libtpu takes no dim for a ring, and writes all-gathers over three dims as all-reduces of padded
    # arrays: twice the bytes
    more["wrap"] = (*topology.wraps, False)[:3]
    if topology.chip.compiler_config:
        more["chip_config_name"] = topology.chip.compiler_config
    if topology.chips == topology.slices:
        more["chips_per_host_bounds"] = (1, 1, 1)
    name = f"{topology.chip.name}:{'x'.join(map(str, topology.shape))}"
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ValueError(f"compiling for {name} needs libtpu: pip install 'jaxscale[aot-tpu]'") from error
    except Exception as error:  # a file of it that is missing or damaged
        raise ValueError(
            f"libtpu cannot be imported ({first_line(error)}); pip install --force-reinstall 'jaxscale[aot-tpu]'"
        ) from error
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
    except (RuntimeError, ValueError, NotImplementedError, AttributeError, OSError) as error:
        raise ValueError(f"libtpu does not take the topology {topology.name}: {first_line(error)}") from error


def gpu_topology(topology: Topology) -> Any:
    """Compile-only GPUs. cuDNN's attention compiles without cuDNN: only JAX's check of its version wants it."""
    target = target_config(topology.chip)
    if not (find_spec("jax_cuda13_plugin") and find_spec("jax_plugins")):
        raise ValueError(
            f"compiling for {topology.name} needs NVIDIA's compiler (about 1 GB): pip install 'jaxscale[aot-gpu]'"
        )
    shape = "1x" + "x".join(map(str, topology.shape))
    try:
        description = topologies.get_topology_desc(topology.chip.name, "cuda", target_config=target, topology=shape)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"XLA does not take the topology {topology.name}: {first_line(error)}") from error
    if find_spec("nvidia") is None or find_spec("nvidia.cudnn") is None:
        version = CUDNN[0] * 10_000 + CUDNN[1] * 100 + CUDNN[2]
        with contextlib.suppress(ValueError):  # where the name is gone, attention says that it needs cuDNN
            private.replace("cudnn_version", lambda: version)
    return description


# --- as a process of its own ----------------------------------------------------------------------------------


def main() -> None:
    """Answer the one request on stdin, into its file: what was compiled, or why it is refused."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # compilers do not listen
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        config = cfg.validate(request["config"], source="config")
        topology = find_topology(request["topology"], request["slices"])
        save = Path(request["save"]) if request["save"] else None
        answer = asdict(compile_step(config, topology, save=save).kept)
    except ValueError as error:
        answer = {"refused": str(error)}
    Path(request["out"]).write_text(json.dumps(answer))


def end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
