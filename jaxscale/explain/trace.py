"""The trainer's step, traced for a topology or for simulated devices, and its matmuls read from it by `explain.walk`.

As a program it is a child of `explain.story`: it traces, and with simulated devices compiles, one step.
"""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax

from jaxscale import config as cfg
from jaxscale.compiled import aot
from jaxscale.explain.jaxpr import NOTHING
from jaxscale.explain.rows import Other, Row, as_values
from jaxscale.explain.walk import Walk
from jaxscale.hardware.topology import find_topology
from jaxscale.parallel.mesh import first_line, give_threads
from jaxscale.predict import costs
from jaxscale.training.build import build


def trace(config: cfg.Config, program: Any, batch: Any, mesh: dict[str, int]) -> tuple[list[Row], list[Other], Any]:
    """Trace the trainer's step inside `on_mesh`. Returns rows, other collectives, and the traced step to lower."""
    traced = cast(Any, program.step).trace(program.abstract, batch)
    walk, jaxpr = Walk(config, mesh), traced.jaxpr.jaxpr
    walk.run(jaxpr, [NOTHING] * len(jaxpr.invars), "", 1)
    return *walk.finish(), traced


def main() -> None:
    """Answer the one request on stdin, into its file: rows, other collectives, and with `cpu` the compiled text."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=aot.end_with_parent, daemon=True).start()
    try:
        answer = explain(cfg.validate(request["config"], source="config"), request)
    except ValueError as error:
        answer = {"refused": str(error)}
    Path(request["out"]).write_text(json.dumps(answer))


def explain(config: cfg.Config, request: dict[str, Any], model: Any = None) -> dict[str, Any]:
    """Trace for the devices of a topology, or for simulated ones, which can be compiled for everywhere.

    Args:
        model: a model of your own, as `train` takes it, traced for the devices of this process; None: the decoder.
    """
    if model is not None:
        devices = here(request["devices"])
    elif request["cpu"]:
        devices = simulated(request["all_devices"])
    else:
        jax.config.update("jax_platforms", "cpu")
        devices = aot.find_devices(find_topology(request["topology"], request["slices"]))
    setup = build(config, devices[: request["devices"]], model=model)
    with setup.context():
        batch, mesh = setup.abstract_batch(documents=costs.packs_documents(config)), dict(setup.mesh.shape)
        rows, others, traced = trace(config, setup.program, batch, mesh)
        answer = as_values(rows, others) | {"mesh": mesh, "jax": jax.__version__, "hlo": ""}
        if request["cpu"] and request["compile"] and not request["all_stages"]:
            answer["hlo"] = compiled(traced.lower)
    if request["all_stages"] and request["compile"]:
        whole = cfg.validate(request["all_stages"], source="config")
        setup = build(whole, devices)
        with setup.context():
            batch = setup.abstract_batch(documents=costs.packs_documents(whole))
            answer["hlo"] = compiled(lambda: cast(Any, setup.program.step).lower(setup.program.abstract, batch))
    return answer


def compiled(lower: Callable[[], Any]) -> str:
    """The text of a program that XLA compiled for simulated devices."""
    try:
        text: str = lower().compile().as_text()
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"XLA's CPU compiler refuses the program: {first_line(error)}") from error
    return text


def here(count: int) -> list[jax.Device]:
    """Devices of this process."""
    if len(jax.devices()) < count:
        raise ValueError(
            f"the mesh needs {count} devices and this process has {len(jax.devices())}; on CPU start it with "
            f"JAX_NUM_CPU_DEVICES={count}"
        )
    return jax.devices()[:count]


def simulated(count: int) -> list[jax.Device]:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    give_threads(count)
    return jax.devices()


if __name__ == "__main__":
    main()
