"""The two tables of logical axes: what splits parameters, what splits activations. No jax: predictions read them too."""

from collections.abc import Mapping

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
