"""One layer of experts on any mesh is every expert on every token: outputs, sums and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_experts import CUBE, FOLDED, layer_dense, layer_inputs, layer_on_mesh, moe_config, poisoned_matmul
from support import assert_gradients_equal

from jaxscale.models import experts as layer

EXCHANGES = ("all_to_all", "gather")
slow = partial(pytest.param, marks=pytest.mark.slow)
ONE = {"data": 1}


def assert_same(got, wanted):
    (y, sums, grads), (wanted_y, wanted_sums, wanted_grads) = got, wanted
    np.testing.assert_allclose(y, wanted_y, rtol=1e-5, atol=1e-5 * np.abs(wanted_y).max())
    np.testing.assert_array_equal(sums["router_counts"], wanted_sums["router_counts"])
    tokens = wanted_sums["router_counts"].sum()
    for name, wanted_sum in wanted_sums.items():
        np.testing.assert_allclose(sums[name], wanted_sum, rtol=1e-5, atol=1e-7 * tokens, err_msg=name)
    assert_gradients_equal(grads, wanted_grads)


def check(mesh, moe=None, exchange="auto", *, change=None, **sections):
    """The layer on a mesh against the reference, with random inputs that `change` may change."""
    config = moe_config(mesh, moe, step={"expert_exchange": exchange}, **sections)
    inputs = layer_inputs(config)
    if change:
        change(inputs)
    wanted = layer_dense(config, inputs)
    assert_same(layer_on_mesh(config, inputs), wanted)
    return wanted


# --- loads ------------------------------------------------------------------------------------------------------


def to_one_expert(inputs):
    """All tokens prefer expert 5, and then expert 2."""
    inputs["params"]["router_bias"] += np.array([0, 0, 15, 0, 0, 30, 0, 0], np.float32)


def to_three_experts(inputs):
    inputs["params"]["router_bias"] += np.array([-30, 0, -30, -30, 0, -30, 0, -30], np.float32)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("mesh", [slow({"expert": 8}), CUBE], ids=str)
def test_all_tokens_to_one_expert(mesh, exchange):
    """The device of that expert has every row of the batch, and others have none."""
    _, sums, _ = check(mesh, {"top_k": 1, "linear_bias": True, "normalize": False}, exchange, change=to_one_expert)
    assert (sums["router_counts"] > 0).sum() == 1


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("mesh", [{"fsdp": 2, "expert": 4}, slow({"expert": 2, "tensor": 2, "data": 2})], ids=str)
def test_experts_that_no_token_chose(mesh, exchange):
    """Their gradients are zero: not rounded, and no NaN."""
    _, sums, grads = check(mesh, {"linear_bias": True}, exchange, change=to_three_experts)
    empty = sums["router_counts"] == 0
    assert empty.sum() == 5
    assert not grads["expert_down"][empty].any()


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_each_token_to_every_expert(exchange):
    check(CUBE, {"top_k": 8}, exchange)


@pytest.mark.parametrize("mesh", [slow(ONE), {"fsdp": 4, "tensor": 2}], ids=str)
def test_one_expert_is_an_mlp(mesh):
    check(mesh, {"num_experts": 1, "top_k": 1})


def test_two_tokens_of_equal_scores_go_to_the_first_expert():
    logits = jnp.zeros((1, 1, 8)).at[0, 0, 6].set(1.0)
    _, _, index = layer.choose(logits, moe_config(moe={"top_k": 3}).model.moe, jnp.zeros(8))
    assert index.tolist() == [[[6, 0, 1]]]


# --- where experts are ------------------------------------------------------------------------------------------

FSDP_OVER_EXPERTS = {"parameters": {"experts": "fsdp", "expert_embed": None}, "activations": {"experts": "fsdp"}}
OVER_CONTEXT_TOO = {
    "parameters": {"experts": ["expert", "context"], "expert_embed": "fsdp"},
    "activations": {"experts": ["expert", "context"]},
}
PLACES = [
    ({"fsdp": 8}, {}, "auto"),
    slow({"data": 8}, {}, "auto"),
    slow({"tensor": 8}, {}, "auto"),
    (CUBE, FOLDED, "all_to_all"),
    slow(CUBE, FOLDED, "gather"),
    slow({"data": 4, "tensor": 2}, FOLDED, "all_to_all"),
    ({"data": 4, "tensor": 2}, FOLDED, "gather"),
    ({"data": 2, "fsdp": 4}, FSDP_OVER_EXPERTS, "all_to_all"),
    slow({"data": 2, "fsdp": 4}, FSDP_OVER_EXPERTS, "gather"),
    slow({"data": 2, "expert": 2, "context": 2}, OVER_CONTEXT_TOO, "all_to_all"),
    ({"data": 2, "expert": 2, "context": 2}, OVER_CONTEXT_TOO, "gather"),
]


@pytest.mark.parametrize(("mesh", "sharding", "exchange"), PLACES)
def test_experts_over_any_axes_that_split_tokens(mesh, sharding, exchange):
    check(mesh, {"linear_bias": True}, exchange, sharding=sharding)


# --- routers ----------------------------------------------------------------------------------------------------

ROUTERS = {
    "softmax, not normalized, scaled": {"normalize": False, "scale": 1.7},
    "linear bias": {"linear_bias": True},
    "sigmoid": {"score": "sigmoid"},
    "sigmoid, groups, bias": {"score": "sigmoid", "groups": 4, "top_groups": 2, "bias": True, "scale": 2.5, "top_k": 3},
    "softmax, bias, not normalized": {"bias": True, "normalize": False},
    "groups of one": {"groups": 8, "top_groups": 3, "top_k": 3},
}


@pytest.mark.parametrize("mesh", [slow(ONE), CUBE], ids=str)
@pytest.mark.parametrize("moe", ROUTERS.values(), ids=ROUTERS)
def test_every_kind_of_router(moe, mesh):
    _, _, grads = check(mesh, moe)
    if "bias" in moe:
        assert not grads["balance_bias"].any()


def test_the_bias_changes_the_choice_and_no_weight():
    """Tokens whose choice is the same with and without it have the same output."""
    config = moe_config(moe={"bias": True})
    inputs = layer_inputs(config)
    small = inputs["params"]["balance_bias"] * 0.1
    inputs["params"] = inputs["params"] | {"balance_bias": small}
    biased = layer_on_mesh(config, inputs)
    inputs["params"] = inputs["params"] | {"balance_bias": np.zeros(8, np.float32)}
    plain = layer_on_mesh(config, inputs)
    same = (biased[0] == plain[0]).all(-1)
    assert 0.05 < same.mean() < 0.95
    assert not np.array_equal(biased[1]["router_counts"], plain[1]["router_counts"])
    np.testing.assert_array_equal(biased[1]["router_probabilities"], plain[1]["router_probabilities"])


@pytest.mark.parametrize("sharding", [{}, FOLDED], ids=["split", "folded"])
def test_the_routers_own_gradient_where_tensor_splits_the_experts(sharding):
    """Of the output alone: a weight that lacks its mark has a gradient of 1/tensor, and an exact output."""
    config = moe_config({"tensor": 2}, sharding=sharding)
    inputs = layer_inputs(config)
    inputs["counted"] = np.zeros_like(inputs["counted"])
    got, wanted = (run(config, inputs)[2]["router"] for run in (layer_on_mesh, layer_dense))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("mesh", [slow(ONE), {"expert": 4, "tensor": 2}], ids=str)
def test_the_order_of_experts_means_nothing(mesh):
    order = np.random.default_rng(1).permutation(8)
    config = moe_config(mesh, {"bias": True, "linear_bias": True})
    inputs = layer_inputs(config)
    y, sums, grads = layer_on_mesh(config, inputs)

    def permuted(arrays):
        return {n: a if n == "x" else a[:, order] if n == "router" else a[order] for n, a in arrays.items()}

    other_y, other_sums, other_grads = layer_on_mesh(config, inputs | {"params": permuted(inputs["params"])})
    np.testing.assert_allclose(other_y, y, rtol=1e-5, atol=1e-5 * np.abs(y).max())
    np.testing.assert_array_equal(other_sums["router_counts"], sums["router_counts"][order])
    assert_gradients_equal(other_grads, permuted(grads))


# --- rows that no expert has --------------------------------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch):
    monkeypatch.setattr(layer, "grouped_matmul", poisoned_matmul)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("moe", [{"linear_bias": True}, slow({"top_k": 5, "linear_bias": True})], ids=str)
@pytest.mark.parametrize("mesh", [slow({"expert": 8}), slow({"fsdp": 2, "expert": 4}), CUBE], ids=str)
def test_what_lies_in_rows_that_no_expert_has_reaches_nothing(poison, mesh, moe, exchange):
    check(mesh, moe, exchange, change=to_one_expert)


def test_the_poison_is_seen(poison):
    """Rows that nobody has are there, and are NaN."""
    x, w, sizes = jnp.ones((6, 4)), jnp.ones((2, 4, 3)), jnp.array([1, 2])
    y, back = jax.vjp(lambda x, w: layer.grouped_matmul(x, w, sizes_E=sizes, platform="cpu"), x, w)
    of_x, of_w = back(jnp.full_like(y, 2.0))
    assert np.isnan(y).all(-1).tolist() == np.isnan(of_x).all(-1).tolist() == [False] * 3 + [True] * 3
    assert np.isfinite(of_w).all()
