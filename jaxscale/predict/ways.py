"""What a plan considers: meshes, microbatches, remats and chunks of the loss, around what the user holds. No jax."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

from jaxscale import config as cfg
from jaxscale.blueprint.cases import without
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.rules import DEFAULT_RULES, EXPERT_AXES, REPLICA_AXES, STAGE_AXES, count, present
from jaxscale.config.mesh_text import mesh_text
from jaxscale.hardware.topology import Topology
from jaxscale.predict.memory import MemoryForecast, memory

KEEP_QKV = {"q": "save", "k": "save", "v": "save", "attended": "save"}
OFFLOAD = dict.fromkeys(("layer_in", "q", "k", "v", "attention_out"), "offload")
OWN_REMAT = "the config's own"
BATCH = present(DEFAULT_RULES.activations["batch"], cfg.AXES)  # the axes that split it
# Those of them that may cross slices: how many replicas there are is given, and rows go to experts in every layer
CROSSING = without(BATCH, (*REPLICA_AXES, *EXPERT_AXES))[::-1]
HEADS = present(DEFAULT_RULES.activations["heads"], cfg.AXES)
SEQUENCE = present(DEFAULT_RULES.activations["sequence"], cfg.AXES)  # the axes that split it
STAGES_LAST = "others fit, and a pipeline gathers the weights about M/S times as often (M microbatches, S stages)"
LONG = 32768  # tokens of a row from which its split over the mesh is tried
FEWEST = 2048  # tokens of a row that a device keeps
CHUNK = 512  # loss.chunk where the config's own does not fit
HELD = ("mesh", "step.microbatches", "step.remat", "loss.chunk")  # what is varied, unless it is given


def held_keys(overrides: Iterable[str]) -> tuple[str, ...]:
    """Of `section.key=value` overrides, those keys that a plan would vary."""
    keys = [override.partition("=")[0] for override in overrides]
    return tuple(
        k for k in dict.fromkeys(keys) if any(f"{k}.".startswith(f"{h}.") or h.startswith(f"{k}.") for h in HELD)
    )


def holds(held: Iterable[str], key: str) -> bool:
    """Is a key given, by itself or with its whole section?"""
    return any(key == h or key.startswith(f"{h}.") for h in held)


def ways(
    config: cfg.Config, topology: Topology, held: tuple[str, ...] = (), *, in_stages: bool = False
) -> Iterator[tuple[cfg.Config, dict[str, int], str]]:
    """Every (config, mesh axis -> whole size, name of its remat) that is considered.

    Args:
        in_stages: those with a pipeline, which are not considered otherwise unless it is given.
    """
    for mesh in meshes(config, topology, held, in_stages=in_stages):
        sizes = mesh.sizes(topology.devices)
        for candidate, name in variants(config, mesh, sizes, held):
            yield candidate, sizes, name


def meshes(
    config: cfg.Config, topology: Topology, held: tuple[str, ...] = (), *, in_stages: bool = False
) -> Iterator[cfg.Mesh]:
    """Every split of the devices over the mesh axes, and of the slices over those of the batch, around what is held.

    With `in_stages` those with a pipeline, and of the slices over it too.

    Raises ValueError when the held sizes do not fit the number of devices or slices.
    """
    over, skipped = held_over(config, topology, held), not_tried(config, held)
    if in_stages and not skipped.keys() & set(STAGE_AXES):
        return
    axes = (*CROSSING, *STAGE_AXES) if in_stages else CROSSING
    skipped = {axis: why for axis, why in skipped.items() if not (in_stages and axis in STAGE_AXES)}
    groups = math.prod(over.values()) if over else topology.slices
    inside = topology.devices // groups
    replicas, crossing = placed_replicas(config, over, groups)
    fixed = held_sizes(config, topology, inside, held, skipped, replicas)
    free = tuple(axis for axis in HEADS if axis not in fixed)
    for sizes in splits(inside, cfg.AXES):
        if any(sizes[axis] != size for axis, size in fixed.items()) or config.model.num_heads % count(free, sizes):
            continue
        if config.data.seq_len // count(SEQUENCE, sizes) < (FEWEST if not fixed.keys() & set(SEQUENCE) else 1):
            continue
        for split in [over] if over else splits(groups // math.prod(crossing.values()), axes):
            mesh = cfg.Mesh(**sizes, dcn=cfg.Dcn(**crossing | split))
            if not in_stages or count(STAGE_AXES, mesh.sizes(topology.devices)) > 1:
                yield mesh


def placed_replicas(config: cfg.Config, over: Mapping[str, int], groups: int) -> tuple[dict[str, int], dict[str, int]]:
    """Axis -> size within a slice, and over slices: as many replicas as the config has, in slices of their own where
    nothing else is given, as they seldom talk.

    Args:
        over: what is given over slices; empty: nothing. `groups`: how many slices.
    """
    whole = {a: getattr(config.mesh, a) * getattr(config.mesh.dcn, a) for a in REPLICA_AXES}
    crossing = {a: over.get(a, 1) if over else math.gcd(n, groups) for a, n in whole.items()}
    return {a: n // crossing[a] for a, n in whole.items()}, crossing


def splits(devices: int, axes: tuple[str, ...]) -> Iterator[dict[str, int]]:
    """Every axis -> size whose product is `devices`; the last axis changes slowest, the first takes the rest."""
    if len(axes) == 1:
        yield {axes[0]: devices}
        return
    for size in cfg.divisors(devices):
        for sizes in splits(devices // size, axes[:-1]):
            yield {**sizes, axes[-1]: size}


def held_sizes(
    config: cfg.Config,
    topology: Topology,
    inside: int,
    held: tuple[str, ...],
    skipped: Iterable[str],
    replicas: Mapping[str, int],
) -> dict[str, int]:
    """Axis -> size within a slice that is given, or not varied. One that is given as -1 takes what the config's others
    leave.

    Args:
        skipped: axes that are not varied.
        replicas: sizes of the replicas' axes, which are always given.
    """
    given = [axis for axis in cfg.AXES if holds(held, f"mesh.{axis}")]
    sizes = {axis: getattr(config.mesh, axis) for axis in (*given, *skipped)} | dict(replicas)
    if -1 in sizes.values():
        sizes = {axis: getattr(config.mesh, axis) for axis in cfg.AXES} | dict(replicas)
    known = {axis: n for axis, n in sizes.items() if n != -1}
    product = math.prod(known.values())
    whole = len(known) == len(cfg.AXES)
    if inside % product or (whole and product != inside):
        text = mesh_text({f"mesh.{axis}": n for axis, n in known.items() if n > 1 or axis in given})
        where = f"{inside} devices{' of a slice' if topology.slices > 1 else ''} of {topology.name}"
        near = sorted(sorted(cfg.divisors(inside), key=lambda n: abs(math.log(n / product)))[:2])
        if whole:
            raise ValueError(f"{text} takes {product} devices, not the {where}; leave an axis out, or set it to -1")
        raise ValueError(
            f"{text} does not divide the {where}; make {'it' if len(given) == 1 else 'the product'} "
            f"{' or '.join(map(str, near))}"
        )
    return {axis: sizes[axis] if sizes[axis] != -1 else inside // product for axis in sizes}


def not_tried(config: cfg.Config, held: tuple[str, ...] = ()) -> dict[str, str]:
    """Axes that stay as the config has them though they are not given, and why."""
    reasons = dict.fromkeys(STAGE_AXES, STAGES_LAST)
    if config.data.seq_len < LONG:
        reasons |= dict.fromkeys(SEQUENCE, f"rows of {config.data.seq_len:,} tokens are short (it is from {LONG:,} on)")
    same = {axis: why for axis, why in reasons.items() if getattr(config.mesh, axis) == 1}
    reasons = {axis: f"{why}; mesh.{axis}=2 tries it" for axis, why in same.items() if not holds(held, f"mesh.{axis}")}
    if blueprint(config.model).routed is None:
        one = (axis for axis in EXPERT_AXES if getattr(config.mesh, axis) == 1)
        reasons |= dict.fromkeys(one, "the model has no experts, so it would be one more name for rows and weights")
    if config.mesh.replicas == 1:
        why = "replicas that seldom talk learn otherwise than one model does; mesh.{}=2 outer.every=100 tries it"
        reasons |= {axis: why.format(axis) for axis in REPLICA_AXES}
    return reasons


def held_over(config: cfg.Config, topology: Topology, held: tuple[str, ...]) -> dict[str, int]:
    """Axis -> size over slices (GPU: groups of nodes) that is given; {} where none is."""
    over = config.mesh.over_slices
    if not over or not (holds(held, "mesh.dcn") or any(h.startswith("mesh.dcn.") for h in held)):
        return {}
    parts, text = math.prod(over.values()), mesh_text({f"mesh.dcn.{axis}": n for axis, n in over.items()})
    if topology.chip.node and topology.shape[0] % parts:
        raise ValueError(f"{text} does not divide the {topology.shape[0]} nodes of {topology.name}")
    if not topology.chip.node and parts != topology.slices:
        raise ValueError(f"{text} is over {parts} slices, and there are {topology.slices}; give --slices {parts}")
    return over


def variants(
    config: cfg.Config, mesh: cfg.Mesh, sizes: dict[str, int], held: tuple[str, ...] = ()
) -> Iterator[tuple[cfg.Config, str]]:
    """`config` on a mesh with each number of microbatches and each remat, around what is held."""
    rows = config.data.batch_size
    shards, stages = count(BATCH, sizes), count(STAGE_AXES, sizes)
    numbers = {1, 2, 4, 8, 16, 32, config.step.microbatches} | ({64, 128, 256} if stages > 1 else set())
    parts = [n for n in sorted(numbers) if rows % n == 0 and rows // n >= shards] or [1]
    parts = [n for n in parts if n >= stages] or parts
    if config.loss.balance:  # see `Config`
        parts = [1]
    if holds(held, "step.microbatches"):
        parts = [config.step.microbatches]
    current: dict[str, str | Mapping[str, str]] = {remat_name(config): config.step.remat}
    if any(h == "step" or h.startswith("step.remat") for h in held):
        remats = current
    else:
        remats = {"full": "full"} if stages > 1 else remats_of(config) | current
    for number, (name, remat) in itertools.product(parts, remats.items()):
        step = config.step.model_copy(update={"microbatches": number, "remat": remat})
        yield config.model_copy(update={"mesh": mesh, "step": step}), name


def remats_of(config: cfg.Config) -> dict[str, str | Mapping[str, str]]:
    """What is tried, by name, with only the activations that the model has."""
    model = blueprint(config.model)
    there = {a.name for a in model.activations}
    # What the backward pass reads of the matmuls, and of attention so that it need not run again: no matmul runs twice
    matmuls = dict.fromkeys((op.saves for op in model.ops if op.stacked and op.needed), "save")
    attended = {model.attention.result: "save"} if model.attention else {}

    def of_model(remat: Mapping[str, str]) -> Mapping[str, str]:
        return {name: action for name, action in remat.items() if name in there}

    return {
        "none": "none",
        "dots": "dots",
        "matmuls, attended": matmuls | attended,
        "q, k, v, attended": of_model(KEEP_QKV),
        "full": "full",
        "to the host": of_model(OFFLOAD),
    }


def remat_name(config: cfg.Config) -> str:
    return next((name for name, remat in remats_of(config).items() if remat == config.step.remat), OWN_REMAT)


def with_chunk(
    config: cfg.Config, sizes: dict[str, int], topology: Topology, *, documents: bool, held: tuple[str, ...] = ()
) -> tuple[cfg.Config, MemoryForecast]:
    """`config`, or the same with a smaller chunk of the loss where its own is what does not fit."""
    chip, T = topology.chip, config.data.seq_len
    needed = memory(config, sizes, documents=documents, chip=chip)
    fits = needed.peak <= chip.usable_hbm_bytes
    if fits or (config.loss.chunk or T) <= CHUNK or T % CHUNK or holds(held, "loss.chunk"):
        return config, needed
    smaller = config.model_copy(update={"loss": config.loss.model_copy(update={"chunk": CHUNK})})
    return smaller, memory(smaller, sizes, documents=documents, chip=chip)
