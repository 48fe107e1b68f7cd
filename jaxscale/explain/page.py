"""The page of `explain`: every matmul of a step drawn, its collectives step by step, and sliders. One file. No jax.

The page's arithmetic (`costs.js`, `forecast.js`) is that of `predict`, which a test holds on hundreds of configs; how
fast a mesh axis is, it looks up in what `machines` has asked `hardware.topology`.
"""

import math
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.experts import token_axes
from jaxscale.blueprint.rules import make_rules
from jaxscale.blueprint.sequence import MULTIPLE, in_zigzag
from jaxscale.blueprint.table import Blueprint, Weight
from jaxscale.explain.layouts import axes_of, layouts, variants
from jaxscale.explain.machines import Explained, machines, read_topology
from jaxscale.explain.rows import CASES
from jaxscale.files.whole import write_whole
from jaxscale.optimizers import OPTIMIZERS
from jaxscale.predict import costs, experts, forecast, timing
from jaxscale.predict.attention import kernel_of, split_ways
from jaxscale.report.page import assembled, package_texts

SCRIPTS = (
    "costs.js", "experts.js", "forecast.js", "matmuls.js", "names.js", "devices.js", "blocks.js", "collectives.js",
    "animation.js", "roofline.js", "model.js", "list.js", "controls.js", "stages.js", "advice.js", "page.js",
)  # fmt: skip


def write_page(explanation: dict[str, Any], out: Path) -> Path:
    """Write the page of one explained step. Raises ValueError for a topology that does not exist."""
    return write_whole(out, page_text(explanation))


def page_text(explanation: dict[str, Any]) -> str:
    config = cfg.validate(explanation["config"], source="explanation")
    topology, mesh = read_topology(explanation["topology"]), dict(explanation["mesh"])
    topology = replace(topology, network=explanation.get("network"))  # as stated, or None
    number = config.model.moe.num_experts if config.model.moe else 0
    staged = explanation.get("stages")
    over = staged["over"] if staged else config.mesh.over_slices
    whole = staged["mesh"] if staged else None
    explained = Explained(topology, mesh, over, config.data.seq_len, number, axes_of(config), whole)
    values = {
        "explained": {k: v for k, v in explanation.items() if k != "config"}
        | {"rows": [row | {"out": turned(row["out"])} for row in explanation["rows"]]},
        "config": needed(config),
        "machines": machines(explained),
        "constants": constants(config),
        "version": metadata.version("jaxscale"),
    }
    title = f"{config.name} on {topology.name}"
    scripts = package_texts("jaxscale.report", ("numbers.js",)) + package_texts("jaxscale.explain", SCRIPTS)
    return assembled("jaxscale.explain", title, finite(values), scripts)


def needed(config: cfg.Config) -> dict[str, Any]:
    """What the arithmetic reads of a config, with nothing of paths or places."""
    values = config.model_dump(mode="json")
    model, optimizer = blueprint(config.model), OPTIMIZERS[config.optimizer.name]
    return {
        "name": config.name,
        "step": values["step"],
        "optimizer": {
            "rules": {w.name: optimizer.rule(model.axes(w))._asdict() for w in model.weights},
            "left_out": optimizer.left_out,
        },
        "data": {k: values["data"][k] for k in ("batch_size", "seq_len")},
        "loss": {"chunk": config.loss.chunk},
        "metrics": {"mfu": config.metrics.mfu},
        "rules": {name: getattr(make_rules(config.sharding), name) for name in ("parameters", "activations")},
        "reading_order": not in_zigzag(config),
        "table": table(config),
    }


def table(config: cfg.Config) -> dict[str, Any]:
    """The model's rows, and what follows from them and the config without any mesh."""
    model = blueprint(config.model)
    return {
        "dims": {letter: vars(dim) for letter, dim in model.dims.items()},
        "layers": model.num_layers,
        "kinds": {kind: len(layers) for kind, layers in model.kinds.items()},
        "weights": [weight_values(w, model) for w in model.weights],
        "padding": model.padding,
        "multiplied": [op.weight_name for op in model.ops],
        "lookups": model.lookups,
        "attention": attention(config),
        "kept": costs.kept(config),
        "activations": {a.name: [a.letters, a.at, a.only] for a in model.activations},
        "float32": [op.name for op in model.ops if op.float32],
        "routed": routed(config),
        "elementwise": model.elementwise,
        "logits": model.head.y if model.head else None,
        "longest": model.longest,
        "layouts": layouts(config),
        "variants": variants(config),
    }


def weight_values(weight: Weight, model: Blueprint) -> dict[str, Any]:
    """`only` where not every layer has it, `active` where a token meets a share of it, `trained` where it is not."""
    values: dict[str, Any] = {"name": weight.name, "letters": model.letters(weight), "axes": model.axes(weight)}
    values |= {"only": weight.only} if weight.only else {}
    values |= {"active": share} if (share := model.active(weight)) != 1 else {}
    return values if weight.trained else values | {"trained": False}


def routed(config: cfg.Config) -> dict[str, Any] | None:
    """The model's experts; `tokens`: axes that split rows and tokens there; `ops`: their matmuls."""
    model = blueprint(config.model)
    if model.routed is None:
        return None
    tokens = token_axes(make_rules(config.sharding), dict.fromkeys(cfg.AXES, 2))
    return vars(model.routed) | {"tokens": tokens, "ops": [op.name for op in model.ops if op.rows_move]}


def attention(config: cfg.Config) -> dict[str, Any] | None:
    """The model's attention; by platform how a split sequence attends, and of how many keys a halo is a multiple."""
    if (row := blueprint(config.model).attention) is None:
        return None
    platforms = ("tpu", "gpu")
    ways = {platform: split_ways(config, platform) for platform in platforms}
    return {
        **vars(row),
        "windows": [
            {"window": window, "share": share, "ways": {platform: ways[platform][window] for platform in platforms}}
            for window, share in row.shares
        ],
        "multiples": {platform: MULTIPLE[kernel_of(config, platform)] for platform in platforms},
    }


def constants(config: cfg.Config) -> dict[str, Any]:
    """What the arithmetic of `predict` is made with, so that no number stands twice."""
    return {
        "bytes": costs.BYTES,
        "conventions": costs.CONVENTIONS,
        "host": forecast.HOST,
        "weight_passes": timing.WEIGHT_PASSES,
        "slice_wait": timing.SLICE_WAIT,
        "lanes": timing.LANES,
        "kernels": {"layer": forecast.LAYER_KERNELS, "others": forecast.OTHER_KERNELS, "chunk": forecast.CHUNK_KERNELS},
        "tiles": {"rows": experts.TILE, "large": experts.LARGE},
        "ready": axes_of(config),
        "cases": CASES,
    }


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
