"""How tokens reach experts that lie on other devices. No jax: predictions ask it too."""

from collections.abc import Mapping

from jaxscale.blueprint.cases import Axes, without
from jaxscale.blueprint.rules import Rules, split_by


def way(asked: str, shards: int, top_k: int) -> str:
    """How tokens go over the axes that split the experts: `all_to_all` or `gather`; `none` where nothing splits them.

    Each row is sent for each of its k experts, or each token once to all devices: k (X-1)/X or X-1 of a device's tokens
    over X shards. Fewer bytes win.

    Args:
        asked: `step.expert_exchange`.
    """
    if shards == 1:
        return "none"
    if asked == "auto":
        return "gather" if shards <= top_k else "all_to_all"
    return asked


def most_rows(tokens: int, shards: int, top_k: int, local_experts: int) -> int:
    """Rows that a device must have place for, as no token is dropped: all tokens of all shards choose its experts.

    Args:
        tokens: of one shard.
    """
    return tokens * shards * min(top_k, local_experts)


def token_axes(rules: Rules, sizes: Mapping[str, int]) -> tuple[Axes, Axes]:
    """The axes that split rows and tokens while experts see them: those between matmuls, less those of `expert_mlp`."""
    tokens = without(rules.activations["residual_sequence"], rules.activations["expert_mlp"])
    return split_by(rules.activations["batch"], sizes), split_by(tokens, sizes)
