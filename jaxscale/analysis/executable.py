"""A compiled step in a file: written where it was compiled ahead of time, loaded where it trains."""

import json
import pickle
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from jaxscale import config as cfg
from jaxscale.analysis.aot import Built
from jaxscale.analysis.store import what_it_depends_on
from jaxscale.hardware import Topology

MAGIC = b"jaxscale executable 1\n"


def save_executable(path: Path, built: Built, config: cfg.Config, topology: Topology) -> None:
    """Write the executable with all that it depends on. Raises ValueError where there is none, or it cannot be kept."""
    if built.executable is None:
        raise ValueError(f"--save {path}: the program does not fit, so there is no executable")
    try:
        payload, _, _ = serialize_executable.serialize(built.executable)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(f"--save {path}: this compiler cannot write executables ({error})") from error
    header = json.dumps(what_it_depends_on(config, topology)).encode()
    path.write_bytes(MAGIC + len(header).to_bytes(8, "big") + header + payload)
