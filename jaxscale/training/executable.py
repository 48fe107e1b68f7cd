"""A compiled step in a file: written where it was compiled, ahead of time or not, and loaded where it trains.

The file says what it was compiled from and for; it is loaded only where all of that is the same. It holds a program for
the machine's own runtime (a pickle inside, as jax writes it): load only files that you made.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from jaxscale import config as cfg
from jaxscale.compiled.store import what_it_depends_on
from jaxscale.files.reading import parse_json
from jaxscale.training.build import Setup
from jaxscale.training.step import Program

MAGIC = b"jaxscale executable 1\n"


def about(config: cfg.Config, devices: list[jax.Device]) -> dict[str, Any]:
    """What must be the same where the executable is made and where it is loaded."""
    dependencies = what_it_depends_on(config)
    sizes = config.mesh.sizes(len(devices))  # without -1
    dependencies["config"]["mesh"] = sizes | {"over slices": config.mesh.over_slices}
    return dependencies | {"devices": {"kind": devices[0].device_kind, "count": len(devices)}}


def save_executable(path: Path, executable: Any, config: cfg.Config, devices: list[jax.Device]) -> None:
    """Write a compiled step. Raises ValueError where this compiler's programs cannot be written."""
    try:
        payload, _, _ = serialize_executable.serialize(executable)
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(f"--save {path}: this compiler's executables cannot be written ({error})") from error
    header = json.dumps(about(config, devices)).encode()
    path.write_bytes(MAGIC + len(header).to_bytes(8, "big") + header + payload)


def load_executable(
    path: Path, config: cfg.Config, devices: list[jax.Device], program: Program, batch: Any
) -> Callable[[Any, Any], Any]:
    """The step of an executable that was made from this config, for these devices, with these versions.

    Args:
        batch: of shapes, as the step takes it.

    Raises:
        ValueError: the differences, or that the file is no executable.
    """
    if config.guard.recompute_every:
        raise ValueError("guard.recompute_every needs a step that is compiled here; leave out --executable")
    header, payload = read(path)
    differences = compare(header, about(config, devices))
    if differences:
        raise ValueError(
            f"--executable {path} is of another run: {'; '.join(differences)}; compile it again with `jaxscale compile "
            "--save`, or leave --executable out"
        )
    trees = (
        jax.tree.structure(((program.abstract, batch), {})),
        jax.tree.structure(jax.eval_shape(program.step, program.abstract, batch)),
    )
    try:
        step: Callable[[Any, Any], Any]
        step = serialize_executable.deserialize_and_load(payload, *trees, execution_devices=devices)
        return step
    except Exception as error:  # the runtime's own errors come in many types
        raise ValueError(f"--executable {path} cannot be loaded here: {' '.join(str(error).split())[:300]}") from error


def with_loaded_step(setup: Setup, path: Path, devices: list[jax.Device], *, documents: bool) -> Setup:
    """The same setup, with the step of an executable: nothing is compiled. Raises as `load_executable` does.

    Args:
        documents: as for `Setup.abstract_batch`.
    """
    batch = setup.abstract_batch(documents=documents)
    step = load_executable(path, setup.config, devices, setup.program, batch)
    return replace(setup, program=replace(setup.program, step=step))


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"--executable {path}: {error.strerror}; `jaxscale compile --save` writes one") from error
    start = len(MAGIC) + 8
    if not data.startswith(MAGIC):
        raise ValueError(f"--executable {path} is no executable of jaxscale; `jaxscale compile --save` writes one")
    length = int.from_bytes(data[len(MAGIC) : start], "big")
    try:
        return parse_json(data[start : start + length]), data[start + length :]
    except ValueError as error:
        raise ValueError(f"--executable {path} is damaged; compile it again") from error


def compare(made: Any, here: Any, where: str = "") -> list[str]:
    """`data.batch_size 8 there, 16 here` for every leaf that differs."""
    if isinstance(made, dict) and isinstance(here, dict):
        differences = []
        for key in sorted({*made, *here}):
            differences += compare(made.get(key), here.get(key), f"{where}.{key}" if where else key)
        return differences
    return [] if made == here else [f"{where.removeprefix('config.')} {made!r} there, {here!r} here"]
