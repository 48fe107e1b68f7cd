"""An explanation as `jaxscale explain` makes it, here from the rules and the cost model, with no tracing."""

import math

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.explain.layouts import layouts
from jaxscale.explain.machines import read_topology
from jaxscale.explain.page import turned
from jaxscale.predict import costs
from jaxscale.predict.forecast import axis_links
from jaxscale.predict.timing import collective_seconds, rates
from jaxscale.predict.traffic import traffic

OTHERS = ("token ids", "looked-up rows", "rows' gradients", "losses", "embedding gradient")
NAMES = {"BTD": "x", "BTNH": "context", "BTF": "h", "ECG": "x", "ECM": "h"}


def make_explanation(config: cfg.Config, topology: str = "v5p:2x2x2") -> dict:
    """Of `config` on its own mesh; one collective is said to have been compiled otherwise."""
    mesh = config.mesh.sizes(None)
    where = read_topology(topology)
    rows = [make_row(i, layout, config, mesh, where) for i, layout in enumerate(layouts(config))]
    rows = [row for phase in ("forward", "recomputed", "backward") for row in rows if row["phase"] == phase]
    for i, row in enumerate(rows):
        row["id"] = i
    gathers = [s for row in rows for s in row["sends"] if s["operand"] == "w" and s["kind"] == "all-gather"]
    if gathers:
        gathers[0] |= {"compiled": "different", "note": "The compiler gathers all of them in one."}
    others = [
        {"what": t.what, "kind": t.kind, "axes": list(t.axes), "bytes": t.bytes, "times": t.times}
        for t in traffic(config, mesh) if t.what in OTHERS
    ]  # fmt: skip
    return {
        "name": config.name, "config": config.model_dump(mode="json"), "mesh": mesh, "topology": where.name,
        "chip": where.chip.name, "compiled_by": f"XLA's CPU compiler, {math.prod(mesh.values())} simulated devices",
        "jax": "0.10.2", "sizes": dict(costs.letter_sizes(config, mesh)) | {"L": config.model.num_layers},
        "rows": rows, "others": others,
    }  # fmt: skip


def make_row(i: int, layout: dict, config: cfg.Config, mesh: dict[str, int], where) -> dict:
    speed, width = rates(where.chip, config.step.compute_dtype), costs.BYTES[config.step.compute_dtype]
    own = axis_links(where, mesh, config.mesh.over_slices)
    sizes = costs.letter_sizes(config, mesh)
    tensors = {}
    for key in ("x", "w", "out"):
        t = layout[key]
        spec = {k: [[a for a in axes if a in mesh] for axes in t[k]] for k in ("stored", "used")}
        name = NAMES.get(t["letters"], layout["name"])
        tensors[key] = {
            "name": f"w_{name}" if name == layout["name"] and not set("BC") & set(t["letters"]) else name,
            "letters": list(t["letters"]), "sizes": [sizes[c] for c in t["letters"]], **spec,
            "unreduced": [a for a in t["unreduced"] if a in mesh], "dtype": config.step.compute_dtype,
        }  # fmt: skip
    local = {
        c: n // math.prod(mesh[a] for a in axes)
        for t in (tensors["x"], tensors["w"])
        for c, n, axes in zip(t["letters"], t["sizes"], t["used"], strict=True)
    }
    x, w, out = (set(tensors[k]["letters"]) for k in ("x", "w", "out"))
    m, k, n = (math.prod(local[c] for c in group) for group in (x - ((x & w) - out), (x & w) - out, w - x))
    sends = []
    for send in layout["sends"]:
        axes = [a for a in send["axes"] if a in mesh]
        if axes:
            V = sent_bytes(tensors[send["operand"]], send, mesh) * width
            seconds, _ = collective_seconds(send["kind"], tuple(axes), V, own, speed.network)
            sends.append(send | {"axes": axes, "bytes": V, "seconds": seconds, "compiled": "same", "note": ""})
    seconds = {"compute": 2.0 * m * k * n / speed.matmul_flops, "HBM": (m * k + k * n + m * n) * width / speed.memory}
    for send in sends:
        key = f"ICI ({'+'.join(send['axes'])})"
        seconds[key] = seconds.get(key, 0.0) + send["seconds"]
    moved = (m * k + k * n + m * n) * width
    tensors = {k: tensors[k] for k in ("x", "w")} | {"out": turned(tensors["out"])}  # as an explanation has it
    return {
        "id": i, "name": layout["name"], "phase": layout["phase"], "what": layout["what"],
        "times": times_of(layout, config), "formula": layout["formula"],
        **tensors, "cases": cases(tensors), "per_device": {"m": m, "k": k, "n": n}, "flops": 2.0 * m * k * n,
        "intensity": 2.0 * m * k * n / moved, "hbm_bytes": moved, "seconds": seconds,
        "bound": max(seconds, key=seconds.__getitem__), "sends": sends,
    }  # fmt: skip


def times_of(layout: dict, config: cfg.Config) -> int:
    model = blueprint(config.model)
    layers = len(model.kinds[layout["only"]]) if layout.get("only") else model.num_layers
    return config.step.microbatches * (layers if layout["stacked"] else 1)


def sent_bytes(tensor: dict, send: dict, mesh: dict[str, int]) -> int:
    layout = tensor["stored"] if send["kind"] == "reduce-scatter" else tensor["used"]
    return math.prod(n // math.prod(mesh[a] for a in axes) for n, axes in zip(tensor["sizes"], layout, strict=True))


def cases(tensors: dict) -> dict[str, int]:
    x, w = ({a: c for c, axes in zip(t["letters"], t["stored"], strict=True) for a in axes}
            for t in (tensors["x"], tensors["w"]))  # fmt: skip
    inner = set(tensors["x"]["letters"]) & set(tensors["w"]["letters"]) - set(tensors["out"]["letters"])
    found = {}
    for axis in {**x, **w}:
        if {x.get(axis), w.get(axis)} & inner:
            found[axis] = 3 if x.get(axis) == w.get(axis) else 2
        else:
            found[axis] = 4 if axis in x and axis in w and x[axis] != w[axis] else 1
    return found
