"""The two tables of logical axes, and what they ask of a config on a mesh. No jax: predictions read them too."""

from collections.abc import Mapping

from jaxscale import config as cfg
from jaxscale.mesh_text import mesh_text

Axes = tuple[str, ...]

# The whole of FSDP is "embed -> fsdp" here and "batch -> fsdp" below; the whole of tensor parallelism, the rest.
PARAMETERS: dict[str, Axes] = {
    "layers": (),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "positions": (),
    "norm": (),
}
ACTIVATIONS: dict[str, Axes] = {
    "batch": ("data", "fsdp", "expert"),
    "sequence": ("context",),
    "residual_sequence": ("context", "tensor"),  # between the matmuls: sequence parallelism
    "embed": (),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}


def count(axes: Axes, sizes: Mapping[str, int]) -> int:
    """Into how many parts these mesh axes cut a dim; absent axes do not split."""
    shards = 1
    for axis in axes:
        shards *= sizes.get(axis, 1)
    return shards


def check_divides(
    parameters: Mapping[str, Axes], activations: Mapping[str, Axes], sizes: Mapping[str, int], config: cfg.Config
) -> None:
    """Check every split dim of a decoder against the mesh; raises ValueError with the numbers that don't fit.

    Fewer kv heads than shards are repeated when they divide the shards (the parameter is then kept whole over that
    axis); the vocabulary is padded already (`Model.padded_vocab_size`).
    """
    model = config.model
    kv_shards = count(activations["kv_heads"], sizes)
    if model.kv_heads < kv_shards and kv_shards % model.kv_heads == 0:
        parameters = {**parameters, "kv_heads": ()}
    elif model.kv_heads % kv_shards:
        raise ValueError(
            f"num_kv_heads {model.kv_heads} neither divides nor is divided by the {kv_shards} shards of kv_heads "
            f"({axes_text(activations['kv_heads'], sizes)}); make tensor one of "
            f"{cfg.divisors(model.kv_heads)} or a multiple of {model.kv_heads} that divides {model.num_heads}"
        )
    rows = config.data.batch_size // config.step.microbatches
    sizes_of = {
        "embed": ("embed_dim", model.embed_dim),
        "heads": ("num_heads", model.num_heads),
        "kv_heads": ("num_kv_heads", max(model.kv_heads, kv_shards)),
        "mlp": ("mlp_dim", model.mlp_dim),
        "vocab": (f"padded vocab_size (vocab_multiple {model.vocab_multiple})", model.padded_vocab_size),
        "batch": ("rows of a microbatch (data.batch_size / step.microbatches)", rows),
        "sequence": ("data.seq_len", config.data.seq_len),
        "residual_sequence": ("data.seq_len", config.data.seq_len),
        "positions": ("max_seq_len", model.max_seq_len),
        "head_dim": ("head_dim", model.head_size),
    }
    for kind, table in (("parameters", parameters), ("activations", activations)):
        for name, axes in table.items():
            if name in sizes_of:
                where = f"{axes_text(axes, sizes)}, sharding.{kind}.{name}"
                require_divides(*sizes_of[name], count(axes, sizes), where)
    check_attention(activations, sizes)


def check_attention(activations: Mapping[str, Axes], sizes: Mapping[str, int]) -> None:
    """Attention runs on each device by itself: whole sequences, and each query head beside its own kv head."""
    if count(activations["sequence"], sizes) > 1:
        raise ValueError(
            f"sharding.activations.sequence: {axes_text(activations['sequence'], sizes)} splits the sequences, and "
            "attention needs them whole; remove it (residual_sequence is split between the matmuls)"
        )
    heads, kv_heads = (tuple(a for a in activations[name] if sizes.get(a, 1) > 1) for name in ("heads", "kv_heads"))
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
