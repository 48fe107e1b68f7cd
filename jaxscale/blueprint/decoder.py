"""The decoder of `models/transformer.py` as rows of a table. No jax.

Letters: B batch, T sequence, D embed, N query heads, K kv heads, H head dim, F mlp, V vocab (padded), P positions, 1 a
vector of D that no mesh axis splits.
"""

import functools
from functools import partial

from jaxscale import config as cfg
from jaxscale.blueprint.table import RESIDUAL, SEQUENCE, Activation, Attention, Blueprint, Dim, Kept, Op, Weight


@functools.cache
def decoder(model: cfg.Model) -> Blueprint:
    """Llama, Mistral, Qwen3, GPT-2 and the like, by config."""
    return Blueprint(
        dims=dims(model),
        weights=tuple(weights(model)),
        ops=tuple(ops(model)),
        activations=ACTIVATIONS if model.mlp == "swiglu" else without_gate(ACTIVATIONS),
        lookups=("embedding", "position") if model.position == "learned" else ("embedding",),
        attention=Attention("BTNH", "BTKH", "attended", model.sliding_window),
        num_layers=model.num_layers,
        stream="layer_in",
        widest="mlp_up",
        kept=kept(model),
        # two norms, two residual sums; rotary positions of q and k; the activation: counted on Llama-3.1-8B's programs
        elementwise={"layer_in": 8, "q": 2, "k": 2, "mlp_up": 2},
        padding={"V": model.padded_vocab_size - model.vocab_size},
        longest=model.max_seq_len if model.position == "learned" else None,
        parts=("embedding", "position_embedding", "attention", "mlp", "norms", "unembedding"),
    )


def dims(model: cfg.Model) -> dict[str, Dim]:
    vocab = f"padded vocab_size (vocab_multiple {model.vocab_multiple})"
    return {
        "D": Dim("embed", model.embed_dim, "embed_dim", wide=True),
        "N": Dim("heads", model.num_heads, "num_heads", wide=True),
        "K": Dim("kv_heads", model.kv_heads, "num_kv_heads", repeats=True, wide=True),
        "F": Dim("mlp", model.mlp_dim, "mlp_dim", wide=True),
        "V": Dim("vocab", model.padded_vocab_size, vocab),
        "P": Dim("positions", model.max_seq_len, "max_seq_len"),
        "H": Dim("head_dim", model.head_size, "head_dim"),
        "1": Dim("norm", model.embed_dim, wide=True),
    }


# --- weights --------------------------------------------------------------------------------------------------


def weights(model: cfg.Model) -> list[Weight]:
    """Every parameter, in the order in which it is used."""
    small = (2 * model.num_layers) ** -0.5  # GPT-2's: what is added to the stream, by how often that is done
    return [
        Weight("embedding", "embedding", "VD", stacked=False),
        *when(model.position == "learned", Weight("position", "position_embedding", "PD", stacked=False)),
        *norm("attention_norm", "1", model.norm),
        *(
            row
            for name, heads in (("q", "NH"), ("k", "KH"), ("v", "KH"))
            for row in (Weight(name, "attention", f"D{heads}"), *bias(model.attention_bias, name, "attention", heads))
        ),
        Weight("out", "attention", "NHD", scale=small),
        *bias(model.attention_bias, "out", "attention", "1"),
        *when(model.qk_norm, *norm("q_norm", "H", "rmsnorm"), *norm("k_norm", "H", "rmsnorm")),
        *norm("mlp_norm", "1", model.norm),
        *(row for name in wide(model) for row in (Weight(name, "mlp", "DF"), *bias(model.mlp_bias, name, "mlp", "F"))),
        Weight("down", "mlp", "FD", scale=small),
        *bias(model.mlp_bias, "down", "mlp", "1"),
        *norm("final_norm", "1", model.norm, stacked=False),
        *when(not model.tie_embeddings, Weight("unembedding", "unembedding", "DV", stacked=False)),
    ]


def wide(model: cfg.Model) -> tuple[str, ...]:
    return ("gate", "up") if model.mlp == "swiglu" else ("up",)


def when(there: bool, *rows: Weight) -> tuple[Weight, ...]:
    return rows if there else ()


def bias(there: bool, of: str, part: str, letters: str) -> tuple[Weight, ...]:
    return when(there, Weight(f"{of}_bias", part, letters, scale=0))


def norm(name: str, letters: str, kind: str, *, stacked: bool = True) -> tuple[Weight, ...]:
    scale = Weight(f"{name}_scale", "norms", letters, stacked, scale=None)
    return (scale, *when(kind == "layernorm", Weight(f"{name}_bias", "norms", letters, stacked, scale=0)))


# --- matmuls and activations ----------------------------------------------------------------------------------


def ops(model: cfg.Model) -> list[Op]:
    """Every matmul with a weight, in the order of the forward pass."""
    first = partial(Op, group="qkv", x_at=RESIDUAL, exposed=("forward", "recomputed"))
    into_mlp = partial(Op, group="mlp", x_at=RESIDUAL, exposed=("forward",), whole=True)
    return [
        first("q", "BTD", "BTNH", "q"),
        first("k", "BTD", "BTKH", "k"),
        first("v", "BTD", "BTKH", "v"),
        Op("out", "BTNH", "BTD", "attention_out", "out", y_at=RESIDUAL, whole=True),
        *(into_mlp(name, "BTD", "BTF", f"mlp_{name}") for name in reversed(wide(model))),
        Op("down", "BTF", "BTD", "mlp_out", "down", y_at=RESIDUAL, needed=False, exposed=("backward",)),
        Op("unembedding", "BTD", "BTV", "logits", "head", "embedding" if model.tie_embeddings else "", x_at=RESIDUAL,
           stacked=False, once=True, exposed=("forward",)),
    ]  # fmt: skip


ACTIVATIONS = (
    Activation("layer_in", "BTD", RESIDUAL),
    Activation("q", "BTNH", padded=True),
    Activation("k", "BTKH", padded=True),
    Activation("v", "BTKH", padded=True),
    Activation("attended", "BTNH", padded=True),
    Activation("attention_out", "BTD", RESIDUAL),
    Activation("mlp_gate", "BTF"),
    Activation("mlp_up", "BTF"),
    Activation("mlp_out", "BTD", RESIDUAL, read=False),
)


def without_gate(activations: tuple[Activation, ...]) -> tuple[Activation, ...]:
    return tuple(a for a in activations if a.name != "mlp_gate")


def kept(model: cfg.Model) -> tuple[Kept, ...]:
    """What JAX's rules of differentiation ask for, float32 inside norms."""
    in_norms = (Kept("q", 2, float32=True), Kept("k", 2, float32=True)) if model.qk_norm else ()
    return (
        Kept("layer_in", 4, float32=True),  # in each of two norms: its input (or that centred), and the same normalised
        Kept("layer_in", 2, at=SEQUENCE),  # what the matmuls read, gathered
        *(Kept(name, 1) for name in ("q", "k", "v")),  # turned to their positions
        Kept("attended", 1),
        *in_norms,
        Kept("mlp_up", 6),
    )
