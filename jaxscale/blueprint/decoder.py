"""The decoder of `models/transformer.py` as rows of a table. No jax.

Letters: B batch, T sequence, D embed, N query heads, K kv heads, H head dim, F mlp, V vocab (padded), P positions, 1 a
vector of D that no mesh axis splits. Of experts: E experts, C rows of one of them, G embed, M mlp of one, R experts as
a router scores them, U mlp of the shared ones. Of latents: see `blueprint.latent`.
"""

import functools
from functools import partial
from typing import TypeVar

from jaxscale import config as cfg
from jaxscale.blueprint import latent
from jaxscale.blueprint.lora import adapted
from jaxscale.blueprint.table import (
    RESIDUAL,
    SEQUENCE,
    Activation,
    Attention,
    Blueprint,
    Dim,
    Kept,
    Op,
    Routed,
    Weight,
)

DENSE, EXPERTS = "dense", "experts"  # kinds of layers, in a model where some have experts
LAYERS, DENSE_LAYERS = "layers", "dense_layers"  # the model's stacks of layers; dense ones beside those with experts


@functools.cache
def decoder(model: cfg.Model) -> Blueprint:
    """Llama, Qwen, Gemma, GPT-2 and the like, by config."""
    base = Blueprint(
        dims=dims(model),
        weights=tuple(weights(model)),
        ops=tuple(ops(model)),
        activations=activations(model),
        lookups=("embedding", "position") if model.position == "learned" else ("embedding",),
        attention=attention(model),
        num_layers=model.num_layers,
        stream="layer_in",
        widest="expert_up" if model.moe else "mlp_up",
        kept=kept(model),
        elementwise=elementwise(model),
        padding={"V": model.padded_vocab_size - model.vocab_size},
        longest=model.max_seq_len if model.position == "learned" else None,
        parts=parts(model),
        kinds=kinds_of(model),
        routed=Routed(EXPERTS, "E", "C", "M", "BTD", "expert_in", model.moe.top_k) if model.moe else None,
    )
    return adapted(base, model.lora) if model.lora else base


def kinds_of(model: cfg.Model) -> dict[str, tuple[int, ...]]:
    """Layers with an MLP and layers with experts; nothing for a model whose layers are alike."""
    if not model.moe:
        return {}
    each = list(enumerate(model.layer_kinds))
    return {DENSE: tuple(i for i, k in each if not k.experts), EXPERTS: tuple(i for i, k in each if k.experts)}


def attention(model: cfg.Model) -> Attention:
    windows = tuple(model.windows.items())
    return latent.attention(windows) if model.latent else Attention("BTNH", "BTKH", "attended", windows)


def parts(model: cfg.Model) -> tuple[str, ...]:
    """Lines of a table of parameters."""
    feed_forward = when(has_mlp(model), "mlp"), when(model.moe is not None, "router", "experts", "shared_experts")
    return ("embedding", "position_embedding", "attention", *feed_forward[0], *feed_forward[1], "norms", *last(model))


def last(model: cfg.Model) -> tuple[str, ...]:
    """What follows the layers."""
    return ("unembedding",) if has_logits(model) else ("score",)


def has_logits(model: cfg.Model) -> bool:
    """Does it predict tokens? A reward model gives each of them a score instead."""
    return not model.score


def has_mlp(model: cfg.Model) -> bool:
    """Has any layer an MLP that all tokens go to?"""
    return model.moe is None or model.dense_layers > 0


def elementwise(model: cfg.Model) -> dict[str, float]:
    """Norms and two residual sums; rotary positions of q and k; the activation: counted on Llama-3.1-8B's programs.

    A row of an expert is multiplied by its weight too; what sorts rows is counted by `predict.experts`.
    """
    heads = latent.elementwise(model.latent) if model.latent else {"q": 2, "k": 2}
    counts: dict[str, float] = {"layer_in": 4 + 2 * norms(model), **heads}
    if has_mlp(model):
        counts["mlp_up"] = 2
    return counts | ({"expert_up": 3} if model.moe else {})


def dims(model: cfg.Model) -> dict[str, Dim]:
    vocab = f"padded vocab_size (vocab_multiple {model.vocab_multiple})"
    by_letter = {
        "D": Dim("embed", model.embed_dim, "embed_dim", wide=True),
        "N": Dim("heads", model.num_heads, "num_heads", wide=True),
        "K": Dim("kv_heads", model.kv_heads, "num_kv_heads", repeats=True, wide=True),
        "F": Dim("mlp", model.mlp_dim, "mlp_dim", wide=True),
        "V": Dim("vocab", model.padded_vocab_size, vocab),
        "P": Dim("positions", model.max_seq_len, "max_seq_len"),
        "H": Dim("head_dim", model.head_size, "head_dim"),
        "1": Dim("norm", model.embed_dim, wide=True),
    }
    if not has_mlp(model):
        del by_letter["F"]
    if model.latent:
        del by_letter["K"]
        by_letter |= latent.dims(model.latent)
    return by_letter | (expert_dims(model, model.moe) if model.moe else {})


def expert_dims(model: cfg.Model, moe: cfg.Moe) -> dict[str, Dim]:
    return {
        "E": Dim("experts", moe.num_experts, "moe.num_experts"),
        "G": Dim("expert_embed", model.embed_dim, "embed_dim", wide=True),
        "M": Dim("expert_mlp", moe.mlp_dim, "moe.mlp_dim", wide=True),
        "R": Dim("router", moe.num_experts),
    } | ({"U": Dim("mlp", moe.shared_mlp_dim, "moe.shared_mlp_dim", wide=True)} if moe.shared_mlp_dim else {})


# --- weights --------------------------------------------------------------------------------------------------


def weights(model: cfg.Model) -> list[Weight]:
    """Every parameter, in the order in which it is used."""
    small = (2 * model.num_layers) ** -0.5  # GPT-2's: what is added to the stream, by how often that is done
    return [
        Weight("embedding", "embedding", "VD", stacked=False),
        *when(model.position == "learned", Weight("position", "position_embedding", "PD", stacked=False)),
        *norms_of(model, "attention"),
        *(latent.weights(model.latent, small) if model.latent else attention_weights(model, small)),
        *norms_of(model, "mlp"),
        *when(has_mlp(model), *mlp_weights(model, small)),
        *(expert_weights(model.moe, small) if model.moe else ()),
        *norm("final_norm", "1", model, stacked=False),
        *when(
            has_logits(model) and not model.tie_embeddings, Weight("unembedding", "unembedding", "DV", stacked=False)
        ),
        *when(model.score, Weight("score", "score", "1", stacked=False)),
    ]


def attention_weights(model: cfg.Model, small: float) -> list[Weight]:
    biased = bool(model.attention_bias)
    return [
        *(
            row
            for name, heads in (("q", "NH"), ("k", "KH"), ("v", "KH"))
            for row in (
                Weight(name, "attention", f"D{heads}"),
                *bias(biased, name, "attention", heads),
            )
        ),
        Weight("out", "attention", "NHD", scale=small),
        *bias(model.attention_bias is True, "out", "attention", "1"),
        *when(model.attention_sinks, Weight("sinks", "attention", "N")),
        *qk_norms(model),
    ]


def mlp_weights(model: cfg.Model, small: float) -> list[Weight]:
    only = DENSE if model.moe else ""
    return [
        *(
            row
            for name in wide(model)
            for row in (Weight(name, "mlp", "DF", only=only), *bias(model.mlp_bias, name, "mlp", "F"))
        ),
        Weight("down", "mlp", "FD", scale=small, only=only),
        *bias(model.mlp_bias, "down", "mlp", "1"),
    ]


def expert_weights(moe: cfg.Moe, small: float) -> list[Weight]:
    of = partial(Weight, only=EXPERTS)
    return [
        of("router", "router", "DR"),
        *when(moe.linear_bias, of("router_bias", "router", "R", scale=0)),
        *when(moe.bias, of("balance_bias", "router", "R", scale=0, trained=False, ruled=True, float32=True)),
        *(of(f"expert_{name}", "experts", "EGM") for name in ("gate", "up")),
        of("expert_down", "experts", "EMG", scale=small),
        *when(
            moe.mlp_bias,
            *(of(f"expert_{name}_bias", "experts", "EM", scale=0) for name in ("gate", "up")),
            of("expert_down_bias", "experts", "EG", scale=0),
        ),
        *when(
            moe.shared_mlp_dim > 0,
            *(of(f"shared_{name}", "shared_experts", "DU") for name in ("gate", "up")),
            of("shared_down", "shared_experts", "UD", scale=small),
        ),
    ]


def wide(model: cfg.Model) -> tuple[str, ...]:
    return ("up",) if model.mlp == "gelu" else ("gate", "up")


Row = TypeVar("Row")


def when(there: bool, *rows: Row) -> tuple[Row, ...]:
    return rows if there else ()


def bias(there: bool, of: str, part: str, letters: str) -> tuple[Weight, ...]:
    return when(there, Weight(f"{of}_bias", part, letters, scale=0))


def norm(name: str, letters: str, model: cfg.Model, *, stacked: bool = True) -> tuple[Weight, ...]:
    scale = Weight(f"{name}_scale", "norms", letters, stacked, scale=0 if model.norm_plus_one else None)
    return (scale, *when(model.norm == "layernorm", Weight(f"{name}_bias", "norms", letters, stacked, scale=0)))


def norms(model: cfg.Model) -> int:
    """Norms of a layer's stream."""
    return 4 if model.norm_at == "both" else 2


def norms_of(model: cfg.Model, part: str) -> tuple[Weight, ...]:
    """On what attention or MLP reads, and on what it adds to the stream."""
    return (
        *when(model.norm_at != "after", *norm(f"{part}_norm", "1", model)),
        *when(model.norm_at != "before", *norm(f"{part}_out_norm", "1", model)),
    )


def qk_norms(model: cfg.Model) -> tuple[Weight, ...]:
    if not model.qk_norm:
        return ()
    heads = {"q": "NH", "k": "KH"} if model.qk_norm == "all_heads" else {"q": "H", "k": "H"}
    scale = 0 if model.norm_plus_one else None
    return tuple(Weight(f"{name}_norm_scale", "norms", letters, scale=scale) for name, letters in heads.items())


# --- matmuls and activations ----------------------------------------------------------------------------------


def ops(model: cfg.Model) -> list[Op]:
    """Every matmul with a weight, in the order of the forward pass."""
    first = partial(Op, group="qkv", x_at=RESIDUAL, exposed=("forward", "recomputed"))
    heads = first("q", "BTD", "BTNH", "q"), first("k", "BTD", "BTKH", "k"), first("v", "BTD", "BTKH", "v")
    return [
        *(latent.ops(model.latent) if model.latent else heads),
        Op("out", attention(model).gathered, "BTD", "attention_out", "out", y_at=RESIDUAL, whole=True),
        *when(has_mlp(model), *mlp_ops(wide(model), "", "F", DENSE if model.moe else "")),
        *(expert_ops(model.moe) if model.moe else ()),
        *when(has_logits(model), head(model)),
    ]


def head(model: cfg.Model) -> Op:
    """The matmul that makes the logits."""
    weight = "embedding" if model.tie_embeddings else ""
    of = partial(Op, stacked=False, once=True, exposed=("forward",))
    return of("unembedding", "BTD", "BTV", "logits", "head", weight, x_at=RESIDUAL)


def mlp_ops(names: tuple[str, ...], prefix: str, width: str, only: str) -> list[Op]:
    """An MLP that all tokens go to."""
    into = partial(Op, group=f"{prefix}mlp", x_at=RESIDUAL, exposed=("forward",), whole=True, only=only)
    out = partial(Op, y_at=RESIDUAL, needed=False, exposed=("backward",), only=only)
    return [
        *(into(f"{prefix}{name}", "BTD", f"BT{width}", f"{prefix or 'mlp_'}{name}") for name in reversed(names)),
        out(f"{prefix}down", f"BT{width}", "BTD", f"{prefix or 'mlp_'}out", f"{prefix}down"),
    ]


def expert_ops(moe: cfg.Moe) -> list[Op]:
    """The router scores tokens where they lie; the experts multiply their rows."""
    of = partial(Op, only=EXPERTS)
    expert = partial(of, rows_move=True, whole=True)
    return [
        of(
            "router", "BTD", "BTR", "router_logits", "router", x_at=RESIDUAL, x_in=RESIDUAL, y_at=RESIDUAL, float32=True
        ),
        *(expert(f"expert_{name}", "ECG", "ECM", f"expert_{name}", "expert_mlp") for name in ("up", "gate")),
        expert("expert_down", "ECM", "ECG", "expert_out", "expert_down", needed=False),
        *when(moe.shared_mlp_dim > 0, *mlp_ops(("gate", "up"), "shared_", "U", EXPERTS)),
    ]


ACTIVATIONS = (
    Activation("layer_in", "BTD", RESIDUAL),
    Activation("q", "BTNH", padded=True),
    Activation("k", "BTKH", padded=True),
    Activation("v", "BTKH", padded=True),
    Activation("attended", "BTNH", padded=True),
    Activation("attention_out", "BTD", RESIDUAL),
)


def activations(model: cfg.Model) -> tuple[Activation, ...]:
    dense = partial(Activation, only=DENSE if model.moe else "")
    return (
        *(latent.activations(model.latent) if model.latent else ACTIVATIONS),
        *when(has_mlp(model), *(dense(f"mlp_{name}", "BTF") for name in wide(model))),
        *(expert_activations(model.moe) if model.moe else ()),
        Activation("mlp_out", "BTD", RESIDUAL, read=False),
    )


def expert_activations(moe: cfg.Moe) -> list[Activation]:
    of = partial(Activation, only=EXPERTS)
    return [
        of("router_logits", "BTR", RESIDUAL),
        of("expert_in", "ECG"),
        of("expert_gate", "ECM"),
        of("expert_up", "ECM"),
        of("expert_out", "ECG", read=False),
        *when(
            moe.shared_mlp_dim > 0,
            of("shared_gate", "BTU"),
            of("shared_up", "BTU"),
            of("shared_out", "BTD", RESIDUAL, read=False),
        ),
    ]


HEADS_KEPT = tuple(Kept(name, 1) for name in ("q", "k", "v"))  # turned to their positions


def kept(model: cfg.Model) -> tuple[Kept, ...]:
    """What JAX's rules of differentiation ask for, float32 inside norms."""
    in_norms = (Kept("q", 2, float32=True), Kept("k", 2, float32=True)) if model.qk_norm else ()
    return (
        Kept("layer_in", 2 * norms(model), float32=True),  # of a norm: its input (or that centred), and the normalised
        Kept("layer_in", 2, at=SEQUENCE),  # what the matmuls read, gathered
        *(latent.kept(model.latent) if model.latent else HEADS_KEPT),
        Kept("attended", 1),
        *in_norms,
        *when(has_mlp(model), Kept("mlp_up", 6)),
        *when(model.moe is not None, Kept("expert_in", 2), Kept("expert_up", 6)),
    )
