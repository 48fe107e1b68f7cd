"""Multi-head latent attention (arXiv:2405.04434, 2.1) as rows of the decoder's table. No jax.

The stream is multiplied down to latents where it lies between matmuls. So tensor parallelism gathers the latents, which
are smaller. Letters: Q the queries' latent and A that of keys and values with their rotary part, as they are made;
X and J both latents as they are read; W a head's keys without positions and its values; O values; Y the rotary part.
"""

from jaxscale import config as cfg
from jaxscale.blueprint.table import RESIDUAL, Activation, Attention, Dim, Kept, Op, Weight

PART = "attention"


def dims(latent: cfg.Latent) -> dict[str, Dim]:
    q = {
        "Q": Dim("latent_out", latent.q_rank, wide=True),
        "X": Dim("latent", latent.q_rank, "latent.q_rank", wide=True),
    } if latent.q_rank else {}  # fmt: skip
    return q | {
        "A": Dim("latent_out", latent.kv_rank + latent.rope_head_dim, wide=True),
        "J": Dim("latent", latent.kv_rank, "latent.kv_rank", wide=True),
        "W": Dim("head_dim", latent.nope_head_dim + latent.value_head_dim),
        "O": Dim("head_dim", latent.value_head_dim),
        "Y": Dim("head_dim", latent.rope_head_dim),
    }


def weights(latent: cfg.Latent, small: float) -> list[Weight]:
    """In the order in which they are used; `small`: spread of what is added to the stream."""
    q = [Weight("q_down", PART, "DQ"), Weight("q_latent_norm_scale", "norms", "Q", scale=None),
         Weight("q_up", PART, "XNH")] if latent.q_rank else [Weight("q", PART, "DNH")]  # fmt: skip
    return [
        *q,
        Weight("kv_down", PART, "DA"),
        Weight("kv_latent_norm_scale", "norms", "J", scale=None),
        Weight("kv_up", PART, "JNW"),
        Weight("out", PART, "NOD", scale=small),
    ]


def ops(latent: cfg.Latent) -> list[Op]:
    """All but the last matmul of attention."""
    first = ("forward", "recomputed")

    def down(name: str, y: str, saves: str) -> Op:
        return Op(name, "BTD", y, saves, name, x_at=RESIDUAL, x_in=RESIDUAL, y_at=RESIDUAL)

    q = [down("q_down", "BTQ", "q_latent"), Op("q_up", "BTX", "BTNH", "q", "q_up", x_at=RESIDUAL, exposed=first)]
    return [
        *(q if latent.q_rank else [Op("q", "BTD", "BTNH", "q", "q", x_at=RESIDUAL, exposed=first)]),
        down("kv_down", "BTA", "kv_latent"),
        Op("kv_up", "BTJ", "BTNW", "kv", "kv_up", x_at=RESIDUAL, exposed=first),
    ]


def activations(latent: cfg.Latent) -> tuple[Activation, ...]:
    """Of attention, in place of q, k and v."""
    return (
        Activation("layer_in", "BTD", RESIDUAL),
        *((Activation("q_latent", "BTQ", RESIDUAL),) if latent.q_rank else ()),
        Activation("q", "BTNH", padded=True),
        Activation("kv_latent", "BTA", RESIDUAL),
        Activation("kv", "BTNW", padded=True),
        Activation("attended", "BTNO", padded=True),
        Activation("attention_out", "BTD", RESIDUAL),
    )


def attention(windows: tuple[tuple[int | None, int], ...]) -> Attention:
    return Attention("BTNH", "BTNH", "attended", windows, v="BTNO", shared="BTY", cache=("BTJ", "BTY"))


def kept(latent: cfg.Latent) -> tuple[Kept, ...]:
    """Beside what every layer keeps: a norm's input and result, queries turned, keys put together, values."""
    names = ("q_latent", "kv_latent") if latent.q_rank else ("kv_latent",)
    return (
        *(Kept(name, 2, float32=True) for name in names),
        *(Kept(name, 1) for name in names),  # what the matmul reads
        Kept("q", 2),  # keys are as large
        Kept("attended", 2),  # values are
    )


def elementwise(latent: cfg.Latent) -> dict[str, float]:
    q = {"q_latent": 2.0} if latent.q_rank else {}
    return {"q": 2, **q, "kv_latent": 2, "kv": 2}
