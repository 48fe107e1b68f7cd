"""The two tables of logical axes, and what they ask of a config on a mesh. No jax: predictions read them too."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from jaxscale import config as cfg
from jaxscale.blueprint.cases import Axes, without
from jaxscale.blueprint.described import blueprint
from jaxscale.blueprint.sequence import in_zigzag, require_chunks, way
from jaxscale.blueprint.stages import Schedule, check_schedule
from jaxscale.blueprint.table import Blueprint
from jaxscale.config.mesh_text import mesh_text

# The whole of FSDP is "embed -> fsdp" here and "batch -> fsdp" below; the whole of tensor parallelism, the rest.
PARAMETERS: dict[str, Axes] = {
    "layers": ("pipeline",),
    "vocab": ("tensor", "pipeline"),
    "embed": ("fsdp", "expert", "context"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "positions": (),
    "norm": (),
    "experts": ("expert",),
    "expert_embed": ("fsdp", "context"),
    "expert_mlp": ("tensor",),
    "router": (),
    "rank": (),
    "latent": ("fsdp", "expert", "context"),  # as a matmul reads it
    "latent_out": (),
}
ACTIVATIONS: dict[str, Axes] = {
    "batch": ("replica", "data", "fsdp", "expert"),
    "sequence": ("context",),
    "residual_sequence": ("context", "tensor"),  # between the matmuls: sequence parallelism
    "embed": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor", "pipeline"),  # each stage of a pipeline computes its share of the logits
    "experts": ("expert",),
    "expert_embed": (),
    "expert_mlp": ("tensor",),
    "router": (),
    "rank": (),
    "latent": (),
    "latent_out": (),
}
EXPERT_ROWS = "expert_rows"  # logical axis of the rows of an expert: what splits its tokens, but not the experts


# Along these axes devices have states of their own. The rows are split over them, and a step sends nothing over them.
REPLICA_AXES: Axes = ("replica",)
STEP_AXES: Axes = tuple(a for a in cfg.AXES if a not in REPLICA_AXES)  # those that a step may send over


@dataclass(frozen=True)
class Rules:
    """Logical axis -> mesh axes, for parameters and for activations. An absent mesh axis means "not split".

    Attributes:
        zigzag: how tokens of a split sequence lie (`blueprint.sequence`); False: in reading order.
    """

    parameters: Mapping[str, Axes]
    activations: Mapping[str, Axes]
    zigzag: bool = True

    def with_activations(self, **changes: Axes) -> "Rules":
        return replace(self, activations={**self.activations, **changes})

    def with_parameters(self, **changes: Axes) -> "Rules":
        return replace(self, parameters={**self.parameters, **changes})


SEQUENCE_AXES = ACTIVATIONS["sequence"]
STAGE_AXES = PARAMETERS["layers"]
EXPERT_AXES = PARAMETERS["experts"]


def merged(table: Mapping[str, Axes], changes: Mapping[str, Axes]) -> dict[str, Axes]:
    """A default table with a config's overrides; an unknown logical or mesh axis is a ValueError."""
    updated = dict(table)
    for name, axes in changes.items():
        if name not in table:
            raise ValueError(
                f"sharding: no logical axis {name}{cfg.nearest(name, table)}; there are {', '.join(table)}"
            )
        updated[name] = axes
        for axis in axes:
            if axis not in cfg.AXES:
                raise ValueError(f"sharding.{name}: no mesh axis {axis}; there are {', '.join(cfg.AXES)}")
        if len(set(axes)) < len(axes):
            raise ValueError(f"sharding.{name}: {', '.join(axes)} names an axis twice; give each once")
    return updated


Overrides = tuple[tuple[tuple[str, Axes], ...], ...]  # a config's, as a key: of parameters, of activations


NO_OVERRIDES: Overrides = ((), ())
Sizes = tuple[tuple[str, int], ...]  # of a mesh, as a key


def overrides_of(sharding: cfg.Sharding) -> Overrides:
    if not sharding.parameters and not sharding.activations:
        return NO_OVERRIDES
    return tuple(
        tuple((name, (axes,) if isinstance(axes, str) else tuple(axes or ())) for name, axes in table.items())
        for table in (sharding.parameters, sharding.activations)
    )


@functools.lru_cache(maxsize=256)
def rules_with(overrides: Overrides) -> Rules:
    parameters, activations = (dict(table) for table in overrides)
    split = merged(ACTIVATIONS, activations)
    tokens = (*split["batch"], *without(split["residual_sequence"], split["expert_mlp"]))
    split[EXPERT_ROWS] = without(tokens, split["experts"])
    return Rules(merged(PARAMETERS, parameters), split)


DEFAULT_RULES = rules_with(NO_OVERRIDES)


def make_rules(overrides: cfg.Sharding) -> Rules:
    """The default tables with a config's overrides; an unknown logical or mesh axis is a ValueError."""
    return rules_with(overrides_of(overrides))


def rules_of(config: cfg.Config, sizes: Mapping[str, int]) -> Rules:
    """The rules of a config on a mesh: its overrides, and few kv heads kept whole as parameters.

    Args:
        sizes: mesh axis -> size.
    """
    return rules_by_key(*key_of(config, sizes))


def key_of(config: cfg.Config, sizes: Mapping[str, int]) -> tuple[Blueprint, Overrides, Sizes]:
    """What layouts depend on, to keep what follows from it: a plan asks thousands of times."""
    return blueprint(config.model), overrides_of(config.sharding), tuple(sizes.items())


@functools.lru_cache(maxsize=4096)
def rules_by_key(model: Blueprint, overrides: Overrides, sizes: Sizes) -> Rules:
    return few_kept_whole(rules_with(overrides), dict(sizes), model)


def few_kept_whole(rules: Rules, sizes: Mapping[str, int], model: Blueprint) -> Rules:
    """A dim of which there are fewer than shards is not split as a parameter: its heads are repeated where used."""
    few = few_axes(rules, sizes, model)
    return rules.with_parameters(**dict.fromkeys(few, ())) if few else rules


def few_axes(rules: Rules, sizes: Mapping[str, int], model: Blueprint) -> frozenset[str]:
    """Logical axes of which there are fewer than shards, and which may be repeated."""
    dims = (d for d in model.dims.values() if d.repeats)
    return frozenset(d.axis for d in dims if d.size < count(rules.activations[d.axis], sizes))


def present(axes: Axes, names: Iterable[str]) -> Axes:
    """Those of the axes that the mesh has."""
    return tuple(a for a in axes if a in names)


def split_by(axes: Iterable[str], sizes: Mapping[str, int]) -> Axes:
    """Those of the axes that split something."""
    return tuple(a for a in axes if sizes.get(a, 1) > 1)


def count(axes: Axes, sizes: Mapping[str, int]) -> int:
    """Into how many parts these mesh axes cut a dim; absent axes do not split."""
    shards = 1
    for axis in axes:
        shards *= sizes.get(axis, 1)
    return shards


def check_divides(rules: Rules, sizes: Mapping[str, int], config: cfg.Config) -> None:
    """Check every split dim of the model against the mesh; raises ValueError with the numbers that don't fit.

    Fewer kv heads than shards are repeated when they divide the shards; the vocabulary is padded already
    (`Model.padded_vocab_size`).
    """
    model = blueprint(config.model)
    check_sequence(rules.activations["sequence"], sizes, config)
    rows = config.data.batch_size // config.step.microbatches
    sizes_of = {
        "batch": [("rows of a microbatch (data.batch_size / step.microbatches)", rows)],
        "sequence": [("data.seq_len", config.data.seq_len)],
        "residual_sequence": [("data.seq_len", config.data.seq_len)],
        "layers": [("num_layers", model.num_layers)],
    }
    for dim in (d for d in model.dims.values() if d.label):
        axes = rules.activations[dim.axis] if dim.repeats else ()
        if dim.repeats:
            check_repeats(dim.size, axes, sizes, config)
        sizes_of.setdefault(dim.axis, []).append((dim.label, max(dim.size, count(axes, sizes))))
    rules = few_kept_whole(rules, sizes, model)
    for kind, table in (("parameters", rules.parameters), ("activations", rules.activations)):
        for name, axes in table.items():
            for label, size in sizes_of.get(name, []):
                where = f"{axes_text(axes, sizes)}, sharding.{kind}.{name}"
                require_divides(label, size, count(axes, sizes), where)
    check_stages(rules, sizes, config)
    if model.routed:
        check_experts(rules, sizes)
    if model.attention:
        check_attention(rules.activations, sizes)


def check_replicas(rules: Rules, sizes: Mapping[str, int]) -> None:
    """Replicas split the rows first, and nothing else."""
    for kind, table in (("parameters", rules.parameters), ("activations", rules.activations)):
        for name, axes in table.items():
            of_rows = kind == "activations" and name in ("batch", EXPERT_ROWS)
            wanted = REPLICA_AXES if of_rows else ()
            split = split_by(axes, sizes)
            replica_axes = tuple(a for a in split if a in REPLICA_AXES)
            if split_by(wanted, sizes) != replica_axes or split[: len(replica_axes)] != replica_axes:
                rule = f"begin with {' and '.join(wanted)}" if wanted else f"not have {' and '.join(REPLICA_AXES)}"
                raise ValueError(
                    f"sharding.{kind}.{name} ({axes_text(axes, sizes)}) must {rule}: replicas have rows of their own, "
                    "and nothing else is split between them; remove it"
                )


def check_sequence(axes: Axes, sizes: Mapping[str, int], config: cfg.Config) -> None:
    """A row's tokens, and a chunk's of the loss, over the devices that share a row; and how these attend."""
    parts = count(axes, sizes)
    if parts == 1:
        return
    require_chunks(config.data.seq_len, parts, zigzag=in_zigzag(config))
    if config.loss.chunk:
        where = f"{axes_text(axes, sizes)}, sharding.activations.sequence"
        require_divides("loss.chunk", config.loss.chunk, parts, where)
    asked, zigzag = config.step.context_attention, in_zigzag(config)
    for window in config.model.windows:
        way(asked, window, config.data.seq_len, zigzag=zigzag, kernel=config.step.attention)


def check_repeats(kv_heads: int, axes: Axes, sizes: Mapping[str, int], config: cfg.Config) -> None:
    shards, where, names = count(axes, sizes), axes_text(axes, sizes), "*".join(axes)
    if kv_heads % shards and (kv_heads > shards or shards % kv_heads):
        raise ValueError(
            f"num_kv_heads {kv_heads} neither divides nor is divided by the {shards} shards of kv_heads ({where}); "
            f"make {names} one of {cfg.divisors(kv_heads)} or a multiple of {kv_heads} that divides "
            f"{config.model.num_heads}"
        )


def check_stages(rules: Rules, sizes: Mapping[str, int], config: cfg.Config) -> None:
    """Layers are whole or split over pipeline, which then splits nothing but them and the vocabulary."""
    axes = split_by(rules.parameters["layers"], sizes)
    if axes not in ((), STAGE_AXES):
        raise ValueError(
            f"sharding.parameters.layers: {axes_text(axes, sizes)} splits the layers, and they are whole or split "
            f"over {' and '.join(STAGE_AXES)}; remove it"
        )
    if not axes:
        return
    for kind, table in (("parameters", rules.parameters), ("activations", rules.activations)):
        for name, mesh_axes in table.items():
            if name not in ("layers", "vocab") and set(mesh_axes) & set(axes):
                raise ValueError(
                    f"sharding.{kind}.{name}: {' and '.join(axes)} splits the layers into stages, and only the "
                    "vocabulary beside them; remove it"
                )
    if config.model.lora:
        raise ValueError(
            f"{axes_text(axes, sizes)}: a pipeline trains all parameters, and model.lora few; set mesh.{axes[0]}=1"
        )
    if first := config.model.first_dense_layers:
        raise ValueError(
            f"{axes_text(axes, sizes)}: stages are alike, and model.moe.dense_layers makes the first {first} layers "
            f"of the model different; set mesh.{axes[0]}=1"
        )
    period, layers = len(config.model.kinds), config.model.num_layers // count(axes, sizes)
    if layers % period:
        raise ValueError(
            f"{axes_text(axes, sizes)}: each stage has {layers} layers, and model.pattern repeats after {period}; "
            f"stages begin with its first kind, so make mesh.{axes[0]} a divisor of {config.model.num_layers // period}"
        )
    check_schedule(config, axes_text(axes, sizes))


def check_experts(rules: Rules, sizes: Mapping[str, int]) -> None:
    """Experts are multiplied where they are kept, by tokens that these axes split."""
    for name in ("experts", "expert_mlp"):
        kept, used = (split_by(table[name], sizes) for table in (rules.parameters, rules.activations))
        if kept != used:
            raise ValueError(
                f"sharding.parameters.{name} ({axes_text(kept, sizes)}) and sharding.activations.{name} "
                f"({axes_text(used, sizes)}) must be the same: experts stay where they are kept"
            )
    experts = split_by(rules.activations["experts"], sizes)
    tokens = (*rules.activations["batch"], *rules.activations["residual_sequence"])
    if outside := without(experts, without(tokens, REPLICA_AXES)):
        raise ValueError(
            f"sharding.activations.experts: {' and '.join(outside)} splits no tokens, and tokens are exchanged "
            "over the axes that split the experts; remove it"
        )


def schedule(config: cfg.Config, sizes: Mapping[str, int]) -> Schedule:
    """How a step's microbatches pass the stages of a mesh of these sizes."""
    return Schedule(count(rules_of(config, sizes).parameters["layers"], sizes), config.step.microbatches)


def check_attention(activations: Mapping[str, Axes], sizes: Mapping[str, int]) -> None:
    """Attention splits sequences over context alone, and each query head is computed beside its own kv head."""
    sequence = split_by(activations["sequence"], sizes)
    if sequence not in ((), SEQUENCE_AXES):
        raise ValueError(
            f"sharding.activations.sequence: {axes_text(sequence, sizes)} splits the sequences, and attention takes "
            f"them whole or split over {' and '.join(SEQUENCE_AXES)}; remove it"
        )
    if sequence and not split_by(activations["residual_sequence"], sizes)[: len(sequence)] == sequence:
        raise ValueError(
            f"sharding.activations.residual_sequence: it must begin with {' and '.join(sequence)}, which "
            "split the sequences in attention; remove it"
        )
    heads, kv_heads = (split_by(activations[name], sizes) for name in ("heads", "kv_heads"))
    if heads != kv_heads:
        raise ValueError(
            f"sharding.activations.heads ({axes_text(heads, sizes)}) and kv_heads ({axes_text(kv_heads, sizes)}) must "
            "be split by the same axes: a query head is computed beside its kv head"
        )


def require_divides(label: str, size: int, shards: int, where: str) -> None:
    if size % shards:
        lower = size - size % shards
        tries = f"{lower} or {lower + shards}" if lower else f"{shards}"
        raise ValueError(f"{label} {size} is not divisible by {shards} ({where}); try {tries}, or another mesh")


def axes_text(axes: Axes, sizes: Mapping[str, int]) -> str:
    return mesh_text({a: sizes[a] for a in axes if a in sizes}, join="*") or "not split"
