"""One tensor's way through the step: where it lies, what is sent of it, which matmuls read it. No jax."""

from dataclasses import dataclass, replace

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.rules import make_rules, split_by
from jaxscale.explain.rows import Row, Tensor, notation
from jaxscale.explain.story import Explanation
from jaxscale.optimizers import OPTIMIZERS
from jaxscale.predict import costs


@dataclass(frozen=True)
class Stop:
    """A moment in a tensor's life: how it lies, bytes of one device, and what happens."""

    when: str
    layout: str
    bytes: int
    words: str


def names(explanation: Explanation) -> tuple[list[str], list[str]]:
    """What can be followed: parameters of matmuls (`w_up`), and activations (results, and `config.ACTIVATIONS`)."""
    forward = explanation.phase("forward")
    parameters = [r.w.name for r in forward if r.w.name.startswith("w_")]
    tags = [t for t in cfg.ACTIVATIONS if any(t in r.tags for r in forward)]
    results = [r.out.name for r in forward if r.name != "scores"]  # which a kernel keeps on the chip
    return parameters, list(dict.fromkeys([n for n in results if results.count(n) == 1] + tags))


def follow(explanation: Explanation, name: str) -> list[Stop]:
    """The way of a parameter or an activation. Raises ValueError with the names there are for any other."""
    parameters, activations = names(explanation)
    if name in parameters:
        return parameter(explanation, name)
    if f"w_{name}" in parameters and name not in activations:
        return parameter(explanation, f"w_{name}")
    if name not in activations:
        raise ValueError(
            f"--tensor {name}{cfg.nearest(name, [*parameters, *activations])}; there are the parameters "
            f"{', '.join(parameters)}, and the activations {', '.join(activations)}"
        )
    return activation(explanation, name)


def parameter(explanation: Explanation, name: str) -> list[Stop]:
    mesh, uses = explanation.mesh, [r for r in explanation.rows if r.w.name == name]
    config, first = explanation.config, uses[0].w
    model = blueprint(config.model)
    op = model.op(name.removeprefix("w_"))
    weight = model.weight(op.weight_name)
    layers = model.num_layers if weight.stacked else 1
    shard = costs.shard(weight, config, mesh) // layers
    at_rest = shard * costs.BYTES[config.step.param_dtype]
    kept = OPTIMIZERS[config.optimizer.name].kept(model.shape(weight), model.axes(weight))
    notes = [f"in {config.step.param_dtype}", kept.words]
    notes += [f"one of {layers} layers"] if layers > 1 else []
    notes += [f"the {op.weight}'s table"] if op.weight else []
    few = {c for c in weight.letters if model.dims[c].axis in costs.few_dims(config, mesh)}
    if few:
        at_rest_layout = {c: () if c in few else axes for c, axes in zip(first.letters, first.stored, strict=True)}
        first = replace(first, stored=tuple(at_rest_layout[c] for c in first.letters))
        rules = make_rules(config.sharding).activations
        for c in few:
            axes = "+".join(split_by(rules[model.dims[c].axis], mesh))
            heads = f"{model.dims[c].size} heads, whole over {axes}"
            notes.append(f"{heads}: each device uses the one that its queries read")
    stops = [Stop("between steps", str(first), at_rest, "; ".join(notes))]
    for row in uses:
        stops += read(row, "w", f"read by {row.title}", explanation)
    for row in (r for r in explanation.rows if r.what == "gradient of w" and r.out.name == f"d_{name}"):
        parts = f": on each device a partial sum over {' and '.join(row.out.unreduced)}" if row.out.unreduced else ""
        stops += made(row, f"made by {row.title}{parts}", explanation)
    return [*stops, Stop("update", str(first), at_rest, kept.update)]


def activation(explanation: Explanation, name: str) -> list[Stop]:
    model = blueprint(explanation.config.model)
    makers = {op.saves: op.name for op in model.ops if op.stacked}
    makers |= {model.attention.result: "context"} if model.attention else {}
    makes = [r for r in explanation.rows if not r.what and (r.out.name == name or r.name == makers.get(name))]
    tag = next((t for t, r in makers.items() if makes and r == makes[0].name), name)
    stops: list[Stop] = []
    for row in (r for r in makes if r.phase == "forward"):
        stops += made(row, f"made by {row.title}", explanation)
    for row in explanation.phase("forward"):
        for side in ("x", "w"):
            tensor_name = getattr(row, side).name
            if tensor_name in (name, tag) or (side == "x" and tag in row.tags):
                part = f" as a part of {tensor_name}" if tensor_name != name else ""
                stops += read(row, side, f"read by {row.title}{part}", explanation)
    stops.append(Stop("kept?", "", 0, keeping(explanation.config, tag)))
    for row in (r for r in makes if r.phase == "recomputed"):
        stops += made(row, f"made by {row.title}", explanation)
    cotangent = f"d_{makes[0].out.name if makes else name}"
    for row in explanation.phase("backward"):
        for side in ("x", "w"):
            if getattr(row, side).name == cotangent and (not makes or row.name == makes[0].name):
                stops += read(row, side, f"its gradient, read by {row.title}", explanation)
    return stops


def made(row: Row, event: str, explanation: Explanation) -> list[Stop]:
    """A result as the matmul leaves it, and what is sent of it then."""
    stop = Stop(row.phase, whole(row.out), row.out.local_bytes(explanation.mesh), event)
    return [stop, sent(row, "out", explanation)] if any(s.operand == "out" for s in row.sends) else [stop]


def read(row: Row, side: str, event: str, explanation: Explanation) -> list[Stop]:
    """What is sent of an operand before its matmul, and the operand as that takes it."""
    tensor = getattr(row, side)
    stop = Stop(row.phase, whole(tensor), tensor.local_bytes(explanation.mesh), event)
    return [sent(row, side, explanation), stop] if any(s.operand == side for s in row.sends) else [stop]


def keeping(config: cfg.Config, name: str) -> str:
    """What becomes of it between the forward and the backward pass, by `step.remat`."""
    kept, model, step = costs.kept(config), blueprint(config.model), config.step
    unread = [a.name for a in model.activations if not a.read]
    outside = {title for op in model.ops if not op.stacked for title in (op.saves, op.name)}  # of the layers
    if kept is None or name in outside:
        return "kept for the backward pass" + (f" (step.remat={step.remat})" if kept is None else "")
    if name == model.stream and kept.get(name, "save") == "save":
        return "kept for the backward pass: what a layer is made again from"
    if name in unread and name not in kept:
        return "not kept: nothing of the backward pass reads it"
    action = {"save": "kept for the backward pass", "offload": "kept in the host's memory"}.get(kept.get(name, ""))
    return action or "not kept: made again in the backward pass, from what was kept"


def sent(row: Row, side: str, explanation: Explanation) -> Stop:
    """What is sent of a tensor for a matmul, and how it lies then."""
    tensor: Tensor = getattr(row, side)
    sends = [s for s in row.sends if s.operand == side]
    text = ", then ".join(f"{s.kind} over {'+'.join(s.axes)} ({s.bytes:,} bytes{also(s.shared)})" for s in sends)
    after = notation(tensor.name, tensor.letters, tensor.stored if side == "out" else tensor.used)
    return Stop(row.phase, after, tensor.local_bytes(explanation.mesh, used=side != "out"), text)


def also(shared: tuple[str, ...]) -> str:
    return f", also for {'; '.join(shared)}" if shared else ""


def whole(tensor: Tensor) -> str:
    """As a matmul takes or leaves it."""
    return notation(tensor.name, tensor.letters, tensor.used)
