"""What the compiled step sends: the expected collectives, no more. A needless all-gather turns these red."""

from collections import Counter

import pytest
from support import Setup, collectives, make_config

# One layer, so that a loop body stands once for the layers; counts are of arrays, combined or not. Per layer there are
# 7 matrices (q k v out gate up down) and 2 norms; outside, the embedding, the unembedding and the final norm.
LAYER_MATRICES, LAYER_NORMS = 7, 2
SEVEN, NINE = LAYER_MATRICES, LAYER_MATRICES + 2


def step_collectives(mesh: dict, **sections) -> Counter:
    config = make_config(mesh, model={"num_kv_heads": 8, "num_layers": 2}, optimizer={"clip_norm": None}, **sections)
    setup = Setup(config)
    return collectives(setup.hlo(), setup.mesh)


def test_data_parallel_reduces_each_gradient_once_and_sends_nothing_else():
    # 7 matrices, 2 norms a layer; embedding, unembedding, final norm
    assert step_collectives({"data": 8}) == {("all-reduce", ("data",)): SEVEN + LAYER_NORMS + 3}


def test_fsdp_gathers_each_matrix_forward_and_backward_and_scatters_its_gradient():
    found = step_collectives({"fsdp": 8})
    assert (
        found.pop(("all-gather", ("fsdp",))) == 2 * SEVEN + 1 + 1
    )  # layers twice, the unembedding once, token ids once
    assert found.pop(("all-reduce", ("fsdp",))) == SEVEN + LAYER_NORMS + 2  # and the unembedding, the final norm
    assert found.pop(("all-to-all", ("fsdp",))) == 2  # looked-up rows change columns for rows, forward and backward
    assert not found


def test_tensor_parallel_gathers_and_scatters_activations():
    found = step_collectives({"tensor": 8})
    # forward: before attention, before mlp, before the unembedding; backward (remat none keeps gathered inputs): the
    # gradients of the two outputs of a layer, and of the embedding
    assert found.pop(("all-gather", ("tensor",))) == 2 + 1 + 2 + 1
    gathered_back = 2 + 1  # gradients of the three gathered inputs
    reduced_forward = 2  # attention's and mlp's output
    loss = 2  # highest logit and sum of exponentials a token; the target's logit is reduced with the sum
    norms = LAYER_NORMS + 1  # their gradients are sums over the split sequence
    reduced = found.pop(("all-reduce", ("tensor",)))
    assert reduced - gathered_back - reduced_forward - norms in (loss, loss + 1, loss + 2)
    assert found.pop(("reduce-scatter", ("tensor",))) == 1  # the embedding's rows
    assert not found


@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_weight_gradient_crosses_data_only_as_its_shard(mesh):
    """Gradients are scattered over fsdp before they are reduced over data: never reduced whole over both."""
    found = step_collectives(mesh)
    assert found["all-gather", ("data",)] == 0
    assert found["all-reduce", ("data",)] >= SEVEN + 2
    assert sum(n for (kind, axes), n in found.items() if {"data", "fsdp"} <= set(axes)) <= LAYER_NORMS + 3 + 2


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
