"""The page of `explain`: every matmul of a step drawn, its collectives step by step, and sliders. One file. No jax.

The page's arithmetic (`costs.js`, `forecast.js`) is that of `analysis`, which a test holds on hundreds of configs; how
fast a mesh axis is, it looks up in what `machines` has asked `topology.links`.
"""

import math
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxscale import config as cfg
from jaxscale.analysis import costs, forecast, timing
from jaxscale.explain.layouts import layouts
from jaxscale.explain.machines import Explained, machines, read_topology
from jaxscale.explain.rows import CASES
from jaxscale.parallel.rules import ACTIVATIONS, PARAMETERS
from jaxscale.report.page import assembled, package_texts, write_whole

SCRIPTS = (
    "costs.js", "forecast.js", "matmuls.js", "names.js", "devices.js", "blocks.js", "collectives.js", "animation.js",
    "roofline.js", "list.js", "controls.js", "page.js",
)  # fmt: skip


def write_page(explanation: dict[str, Any], out: Path) -> Path:
    """Write the page of one explained step. Raises ValueError for a topology that does not exist."""
    return write_whole(page_text(explanation), out)


def page_text(explanation: dict[str, Any]) -> str:
    config = cfg.validate(explanation["config"], source="explanation")
    topology, mesh = read_topology(explanation["topology"]), dict(explanation["mesh"])
    topology = replace(topology, network=explanation.get("network"))  # as stated, or None
    explained = Explained(topology, mesh, config.mesh.over_slices)
    values = {
        "explained": {k: v for k, v in explanation.items() if k != "config"}
        | {"rows": [row | {"out": turned(row["out"])} for row in explanation["rows"]]},
        "config": needed(config),
        "fixed": why_fixed(config),
        "machines": machines(explained),
        "layouts": layouts(config),
        "constants": constants(),
        "version": metadata.version("jaxscale"),
    }
    title = f"{config.name} on {topology.name}"
    scripts = package_texts("jaxscale.report", ("numbers.js",)) + package_texts("jaxscale.explain", SCRIPTS)
    return assembled("jaxscale.explain", title, finite(values), scripts)


def needed(config: cfg.Config) -> dict[str, Any]:
    """What the arithmetic reads of a config, with nothing of paths or places."""
    values = config.model_dump(mode="json")
    model = values["model"] | {"padded_vocab_size": config.model.padded_vocab_size}
    return {
        "name": config.name, "model": model, "step": values["step"], "optimizer": {"name": config.optimizer.name},
        "data": {k: values["data"][k] for k in ("batch_size", "seq_len")}, "loss": {"chunk": config.loss.chunk},
        "metrics": {"mfu": config.metrics.mfu},
    }  # fmt: skip


def why_fixed(config: cfg.Config) -> str | None:
    """Why the sliders cannot be moved, where they cannot."""
    if config.sharding.parameters or config.sharding.activations:
        return "This config has rules of its own (sharding.*). The cost model knows the default rules only, so the "\
               "page shows the traced mesh and no other."  # fmt: skip
    return None


def constants() -> dict[str, Any]:
    """What the arithmetic of `analysis` is made with, so that no number stands twice."""
    return {
        "parameters": PARAMETERS, "activations": ACTIVATIONS, "kept_by_dots": costs.KEPT_BY_DOTS,
        "output_of": costs.OUTPUT_OF, "matrices": costs.MATRICES, "bytes": costs.BYTES,
        "conventions": costs.CONVENTIONS, "wide": forecast.WIDE_READS_AND_WRITES, "mlp": forecast.MLP_READS_AND_WRITES,
        "heads": forecast.HEADS_READS_AND_WRITES, "host": forecast.HOST, "weight_passes": timing.WEIGHT_PASSES,
        "slice_wait": timing.SLICE_WAIT, "lanes": timing.LANES,
        "kernels": {"layer": forecast.LAYER_KERNELS, "others": forecast.OTHER_KERNELS, "chunk": forecast.CHUNK_KERNELS},
        "ready": cfg.READY_AXES, "cases": CASES,
    }  # fmt: skip


def turned(out: dict[str, Any]) -> dict[str, Any]:
    """A result as the scripts have it, in the order of events: `stored` as the matmul leaves it, `used` after that."""
    return out | {"stored": out["used"], "used": out["stored"]}


def finite(values: Any) -> Any:
    """The same with infinities and NaN left out, as JSON has no such numbers."""
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, dict):
        return {k: finite(v) for k, v in values.items()}
    return [finite(v) for v in values] if isinstance(values, list | tuple) else values
