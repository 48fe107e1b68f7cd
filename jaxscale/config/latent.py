"""The section `model.latent`: multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, 2.1)."""

from typing import Any

from jaxscale.config.values import Positive, Section


class Latent(Section):
    """Keys and values of all heads are made of one small vector a token, its latent, which decoding keeps.

    A head's queries and keys have a part without positions and a rotary part; all heads share the rotary part of keys.
    """

    kv_rank: Positive
    """Numbers in a token's latent of keys and values."""
    q_rank: Positive | None = None
    """Numbers in a token's latent of queries; null: queries come from the stream directly."""
    nope_head_dim: Positive
    """Numbers of a head's queries and keys that have no positions."""
    rope_head_dim: Positive
    """Numbers of a head's queries and keys with rotary positions; even."""
    value_head_dim: Positive
    """Numbers of a head's values."""
    interleaved: bool = True
    """Rotary pairs are neighbours, as in the published weights; false: the two halves."""

    @property
    def head_dim(self) -> int:
        """Of a head's queries and keys."""
        return self.nope_head_dim + self.rope_head_dim


def require_latent(latent: Latent, *, heads: tuple[int, int, int], rotary: bool, others: dict[str, Any]) -> None:
    """ValueError for what a model with latents does not have.

    Args:
        heads: the model's num_heads, num_kv_heads and head_dim. `rotary`: all its layers have rotary positions.
        others: keys of the model that must have no value, and their values.
    """
    num_heads, num_kv_heads, head_dim = heads
    if head_dim != latent.head_dim:
        raise ValueError(
            f"head_dim {head_dim} is not latent.nope_head_dim + latent.rope_head_dim ({latent.head_dim}); "
            "leave head_dim out"
        )
    if num_kv_heads != num_heads:
        raise ValueError(
            f"num_kv_heads {num_kv_heads}: with latent every query head has its own keys; leave num_kv_heads out"
        )
    if latent.rope_head_dim % 2:
        raise ValueError(f"latent.rope_head_dim {latent.rope_head_dim} is odd; rotary positions turn pairs")
    if not rotary:
        raise ValueError("latent: the keys of every layer have rotary positions; set position=rope, and no rope: false")
    if wrong := [key for key, value in others.items() if value]:
        raise ValueError(f"latent: it has no {wrong[0]} yet; remove one of the two")


def require_activations(latent: Latent | None, remat: str | dict[str, Any]) -> None:
    """ValueError for an activation in `step.remat` that the model does not have."""
    theirs = {"kv_latent", "kv"} | ({"q_latent"} if latent and latent.q_rank else set())
    wrong = ({"k", "v", "q_latent"} if latent else {"kv_latent", "kv", "q_latent"}) - (theirs if latent else set())
    if absent := [key for key in remat if key in wrong] if isinstance(remat, dict) else []:
        there = sorted(theirs) if latent else ["q", "k", "v"]
        raise ValueError(f"step.remat.{absent[0]}: the model does not have it, but {', '.join(there)}; remove it")
