"""What the compiled step sends: the expected collectives, no more. A needless all-gather turns these red."""

import math
import re
from collections import Counter

from dense_experts import LOSS, moe_config
from support import Setup, collectives, make_config

# Layers are scanned, so a loop's body stands once for all of them; counts are of arrays, combined or not. A layer has
# 7 matrices (q k v out gate up down) and 2 norms; outside are the embedding, the unembedding and the final norm.
SEVEN, LAYER_NORMS = 7, 2


def step_collectives(mesh: dict, **sections) -> Counter:
    config = make_config(mesh, model={"num_kv_heads": 8, "num_layers": 2}, optimizer={"clip_norm": None}, **sections)
    setup = Setup(config)
    return collectives(setup.hlo(), setup.mesh)


def test_data_parallel_reduces_each_gradient_once_and_sends_nothing_else():
    # 7 matrices, 2 norms a layer; embedding, unembedding, final norm
    assert step_collectives({"data": 8}) == {("all-reduce", ("data",)): SEVEN + LAYER_NORMS + 3}


def test_fsdp_gathers_each_matrix_forward_and_backward_and_scatters_its_gradient():
    assert step_collectives({"fsdp": 8}) == {
        ("all-gather", ("fsdp",)): 2 * SEVEN + 1 + 1,  # layers twice, the unembedding once, token ids once
        ("all-reduce", ("fsdp",)): SEVEN + 1 + LAYER_NORMS + 1,  # the unembedding; the norms
        ("all-to-all", ("fsdp",)): 2,  # looked-up rows change columns for rows, forward and backward
    }


# forward: before attention, mlp and unembedding; backward (remat none keeps gathered activations): the gradients of a
# layer's two outputs, and of the embedding
TENSOR_GATHERS = 3 + 3
# forward: attention's and mlp's output; the highest logit, the sum of exponentials and the target's logit of a token;
# backward: the gradients of the three gathered inputs
TENSOR_REDUCES = 2 + 3 + 3


def test_tensor_parallel_gathers_and_scatters_activations():
    assert step_collectives({"tensor": 8}) == {
        ("all-gather", ("tensor",)): TENSOR_GATHERS,
        ("all-reduce", ("tensor",)): TENSOR_REDUCES + LAYER_NORMS + 1,  # norms: sums over the split sequence
        ("reduce-scatter", ("tensor",)): 1,  # the embedding's rows
    }


MATRICES_OVER_DATA_AND_FSDP = {
    ("all-gather", ("fsdp",)): 2 * SEVEN + 1 + 1,
    ("all-reduce", ("fsdp",)): SEVEN + 1,  # matrices and the unembedding, whole: scattered
    ("all-reduce", ("data",)): SEVEN + 2,  # the same and the embedding, as shards
    ("all-to-all", ("fsdp",)): 2,
}


def test_a_weight_gradient_crosses_data_only_as_its_shard():
    """Gradients are scattered over fsdp before they are reduced over data: never reduced whole over both."""
    assert step_collectives({"data": 2, "fsdp": 4}) == MATRICES_OVER_DATA_AND_FSDP | {
        ("all-reduce", ("data", "fsdp")): LAYER_NORMS + 1,  # norms are split over neither
    }


def test_all_three_axes_send_what_each_sends_alone():
    assert step_collectives({"data": 2, "fsdp": 2, "tensor": 2}) == MATRICES_OVER_DATA_AND_FSDP | {
        ("all-reduce", ("data", "fsdp", "tensor")): LAYER_NORMS + 1,
        ("all-gather", ("tensor",)): TENSOR_GATHERS,
        ("all-reduce", ("tensor",)): TENSOR_REDUCES,
        ("reduce-scatter", ("tensor",)): 1,
    }


def test_full_recompute_gathers_the_layer_again_and_nothing_more():
    plain, full = step_collectives({"fsdp": 8}), step_collectives({"fsdp": 8}, step={"remat": "full"})
    assert full == plain


def test_the_unembedding_is_gathered_once_for_all_chunks():
    plain, chunked = step_collectives({"fsdp": 8}), step_collectives({"fsdp": 8}, loss={"chunk": 8})
    assert chunked == plain


def test_logits_are_never_whole_on_a_device():
    setup = Setup(make_config({"tensor": 8}, model={"num_kv_heads": 8, "vocab_size": 1000}))
    B, T, V = 8, 32, setup.config.model.padded_vocab_size
    hlo = setup.hlo()
    assert f"f32[{B},{T},{V // 8}]" in hlo
    for whole in (f"[{B},{T},{V}]", f"[{B * T},{V}]", f"[{V},{B},{T}]"):
        assert whole not in hlo


def test_chunks_bound_the_logits_where_vocab_is_not_split():
    setup = Setup(make_config({"data": 1}, model={"vocab_size": 1000}, loss={"chunk": 4}))
    hlo, V = setup.hlo(), setup.config.model.padded_vocab_size
    assert f"[8,4,{V}]" in hlo or f"[32,{V}]" in hlo
    assert f"[8,32,{V}]" not in hlo
    assert f"[256,{V}]" not in hlo


def test_gradients_cross_the_mesh_in_the_compute_dtype():
    """Norms too, which compute in float32; only the lookup's does not, whose rows are added up where the table is.

    Read before XLA's CPU compiler widens what it cannot add in bfloat16.
    """
    mesh, model = {"data": 8}, {"norm": "layernorm", "qk_norm": True, "num_layers": 2}
    setup = Setup(make_config(mesh, model=model, step={"compute_dtype": "bfloat16"}))
    with setup.context():
        text = setup.program.step.lower(setup.program.abstract, setup.batch).as_text()
    reduced = re.findall(r'"?stablehlo\.all_reduce"?.*?\}\) : \(tensor<([^>]*)>\)', text, flags=re.DOTALL)
    assert len(reduced) >= 2 * 3 + 2  # scale and bias of three norms, scale of q's and k's
    table = f"{setup.config.model.padded_vocab_size}x{setup.config.model.embed_dim}xf32"
    assert [kind for kind in reduced if not kind.endswith("bf16")] == [table]


# --- experts: beside q k v out and the router a layer has three matrices of each expert ---------------------------

FIVE, OF_EXPERTS, LOADS = 5, 3, 2  # loads: how often each expert is chosen, and its probability


def expert_collectives(mesh: dict, **step) -> Counter:
    setup = Setup(moe_config(mesh, loss=LOSS, optimizer={"clip_norm": None}, step=step))
    hlo = setup.hlo()
    require_no_scores(hlo, setup.config)
    return collectives(hlo, setup.mesh)


def require_no_scores(hlo: str, config) -> None:
    """No device sees the scores of another one's tokens."""
    tokens = config.data.batch_size * config.data.seq_len // 8
    for line in hlo.splitlines():
        if m := re.search(r"= (.+?) all-gather(?:-start)?\(", line):
            for dims in re.findall(r"f32\[([\d,]+)\]", m[1]):
                *rows, last = map(int, dims.split(","))
                assert last != config.model.moe.num_experts or math.prod(rows) % tokens, line


def test_fsdp_alone_gathers_all_experts_forward_and_backward_and_exchanges_no_token():
    assert expert_collectives({"fsdp": 8}) == {
        ("all-gather", ("fsdp",)): 2 * (FIVE + OF_EXPERTS) + 1 + 1,  # the unembedding, token ids
        ("all-reduce", ("fsdp",)): FIVE + OF_EXPERTS + 1 + LAYER_NORMS + 1 + LOADS,
        ("all-to-all", ("fsdp",)): 2,
    }


EXCHANGED = {
    ("all-gather", ("expert",)): 1,  # how many rows each device sends to each
    ("all-gather", ("fsdp",)): 2 * OF_EXPERTS,
    ("all-gather", ("fsdp", "expert")): 2 * FIVE + 1 + 1,
    ("all-reduce", ("fsdp",)): OF_EXPERTS,  # each expert's gradient stays on its device
    ("all-reduce", ("fsdp", "expert")): FIVE + 1 + LAYER_NORMS + 1 + LOADS,
    ("all-to-all", ("expert",)): 3 + 3,  # forward: rows, their weights, outputs; backward: the gradients of these
    ("all-to-all", ("fsdp", "expert")): 2,
}


def test_experts_over_devices_exchange_rows():
    assert expert_collectives({"fsdp": 2, "expert": 4}) == EXCHANGED


def test_full_recompute_sends_rows_again_but_no_output():
    assert expert_collectives({"fsdp": 2, "expert": 4}, remat="full") == EXCHANGED | {
        ("all-gather", ("expert",)): 2,
        ("all-to-all", ("expert",)): 3 + 2 + 3,
    }


def test_rows_that_are_kept_are_not_sent_again():
    found = expert_collectives({"fsdp": 2, "expert": 4}, remat={"expert_in": "save"})
    assert found["all-to-all", ("expert",)] == 3 + 1 + 3


def test_few_devices_gather_tokens_and_tensor_splits_each_expert():
    assert expert_collectives({"data": 2, "expert": 2, "tensor": 2}) == {
        # tokens, their experts and weights, and back the outputs' gradient; the rest as over fsdp
        ("all-gather", ("expert",)): 2 * FIVE + 1 + 1 + 3 + 1,
        ("all-gather", ("tensor",)): TENSOR_GATHERS + 2,  # experts and weights of a token too
        ("all-reduce", ("data",)): FIVE - 1 + OF_EXPERTS + 2,
        ("all-reduce", ("data", "tensor")): 1,  # the router: tensor splits its tokens
        ("all-reduce", ("data", "expert", "tensor")): LAYER_NORMS + 1 + LOADS,
        ("all-reduce", ("expert",)): FIVE + 1,
        ("all-reduce", ("tensor",)): TENSOR_REDUCES + 1,  # the weights' gradient
        ("all-to-all", ("expert",)): 2,  # looked-up rows
        ("reduce-scatter", ("expert",)): 1 + 2,  # outputs; back, tokens and weights
        ("reduce-scatter", ("tensor",)): 1,
    }
