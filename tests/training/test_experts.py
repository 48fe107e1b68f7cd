"""Training steps of a mixture of experts: every mesh and every way to compute one gives what one device gives."""

import functools
from itertools import product

import numpy as np
import pytest
from dense_experts import CUBE, FOLDED, LOSS, dense_step, first_step, moe_config, poisoned
from support import assert_gradients_equal, make_batch, random_params

from jaxscale.blueprint.sequence import order
from jaxscale.models import experts

SIZES = (1, 2, 4, 8)
AXES = ("data", "fsdp", "expert", "context", "tensor")
EXCHANGES = ("all_to_all", "gather")
CLIP = 0.25
QUICK = [{"fsdp": 8}, {"expert": 8}, CUBE, {"data": 2, "expert": 2, "context": 2}]


def grid():
    """Every factorisation of 8 devices, with both exchanges where there is one; few of them are quick."""
    for sizes in product(SIZES, repeat=len(AXES)):
        if np.prod(sizes) == 8:
            mesh = {axis: n for axis, n in zip(AXES, sizes, strict=True) if n > 1}
            exchanges = EXCHANGES if "expert" in mesh else ("auto",)
            for exchange in exchanges:
                quick = mesh in QUICK and (exchange != "gather" or mesh == CUBE)
                yield pytest.param(mesh, exchange, marks=() if quick else pytest.mark.slow)


def padded_batch(config, context: int):
    """Random padding, and rows and tokens that are padding whole: all that the first device of any mesh has."""
    batch, T = make_batch(config), config.data.seq_len
    batch["weights"][: config.data.batch_size // 8] = 0
    batch["weights"][:, order(T, context)[: T // 8]] = 0
    return batch


@functools.cache
def reference(context: int = 1):
    config = moe_config(loss=LOSS, optimizer={"clip_norm": CLIP})
    params = random_params(config, std=0.2)
    return params, dense_step(config, params, padded_batch(config, context))


def assert_same(got, wanted):
    metrics, grads, _ = got
    wanted_metrics, wanted_grads = wanted
    for name in ("tokens", "loss", "balance", "router_z", "grad_norm"):
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=1e-5, err_msg=name)
    counts = wanted_metrics["router_counts"]
    np.testing.assert_allclose(metrics["expert_load"], (counts.max(-1) / counts.mean(-1)).max(), rtol=1e-6)
    assert metrics["empty_experts"] == (counts == 0).sum()
    assert_gradients_equal(grads, wanted_grads)


def check(mesh, **sections):
    context = mesh.get("context", 1)
    params, wanted = reference(context)
    assert wanted[0]["grad_norm"] > 2 * CLIP
    config = moe_config(mesh, loss=LOSS | sections.pop("loss", {}), optimizer={"clip_norm": CLIP}, **sections)
    assert_same(first_step(config, params, padded_batch(config, context)), wanted)


@pytest.mark.parametrize(("mesh", "exchange"), list(grid()), ids=str)
def test_every_factorisation_is_the_reference(mesh, exchange):
    """Loss, balance, z and all gradients, after clipping, where some devices have padding only."""
    check(mesh, step={"expert_exchange": exchange})


def test_one_device_is_the_reference():
    check({"data": 1})


# --- ways to compute a step ---------------------------------------------------------------------------------------

NAMES = ("router_logits", "expert_in", "expert_gate", "expert_up", "mlp_out")
WAYS = {
    "full": {"step": {"remat": "full"}},
    "dots": {"step": {"remat": "dots"}},
    "saved by name": {"step": {"remat": dict.fromkeys(NAMES, "save")}},
    "offloaded": {"step": {"remat": {"expert_in": "offload", "layer_in": "offload"}}},
    "chunked loss": {"loss": {"chunk": 8}, "step": {"remat": "full"}},
    "unrolled layers": {"step": {"unroll_layers": True, "remat": "full"}},
    "folded experts": {"sharding": FOLDED},
}
SLOW_WAYS = ("dots", "offloaded", "unrolled layers")


@pytest.mark.parametrize(
    "sections", [pytest.param(way, id=n, marks=pytest.mark.slow if n in SLOW_WAYS else ()) for n, way in WAYS.items()]
)
def test_each_way_to_compute_the_step_is_the_reference(sections):
    check(CUBE, **sections)


@pytest.mark.parametrize("remat", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_microbatches_are_one_batch(remat):
    """Of the router's z too; a balance over the batch is refused."""
    loss = LOSS | {"balance": 0.0}
    one = moe_config(loss=loss)
    params = random_params(one, std=0.2)
    wanted = first_step(one, params)
    got = first_step(moe_config(CUBE, loss=loss, step={"microbatches": 2, "remat": remat}), params)
    for name in ("loss", "router_z", "balance", "grad_norm", "expert_load", "router_entropy"):
        np.testing.assert_allclose(got[0][name], wanted[0][name], rtol=1e-5, err_msg=name)
    assert_gradients_equal(got[1], wanted[1])


# a layer of each kind, experts that all tokens go to, groups, and a bias in the choice
DEEPSEEK = {
    "shared_mlp_dim": 16, "dense_layers": 1, "score": "sigmoid", "groups": 4, "top_groups": 2, "bias": True,
    "scale": 2.5, "linear_bias": True,
}  # fmt: skip


def random_bias(config, *, seed: int = 1):
    shape = (config.model.expert_layers, config.model.moe.num_experts)
    bias = np.random.default_rng(seed).normal(scale=0.1, size=shape).astype(np.float32)
    return {"layers": {"mlp": {"balance_bias": bias}}}


@functools.cache
def deepseek_on_one_device():
    config = moe_config(moe=DEEPSEEK, model={"num_layers": 3}, loss=LOSS)
    params, bias = random_params(config, std=0.2), random_bias(config)
    return params, bias, first_step(config, params, bias=bias)


@pytest.mark.parametrize(
    ("mesh", "exchange"),
    [({"fsdp": 2, "expert": 4}, "gather"), pytest.param(CUBE, "all_to_all", marks=pytest.mark.slow)],
    ids=str,
)
def test_a_model_with_all_of_deepseek(mesh, exchange):
    params, bias, (wanted_metrics, wanted, _) = deepseek_on_one_device()
    step = {"expert_exchange": exchange, "remat": "full"}
    config = moe_config(mesh, DEEPSEEK, model={"num_layers": 3}, loss=LOSS, step=step)
    metrics, grads, _ = first_step(config, params, bias=bias)
    for name, value in wanted_metrics.items():
        if name != "device_load":
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert_gradients_equal(grads, wanted)


@pytest.mark.parametrize(
    "mesh", [{"expert": 8}, pytest.param(CUBE, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_what_lies_in_rows_that_no_expert_has_reaches_no_gradient(monkeypatch, mesh, exchange):
    """In a whole step, which computes the experts again in its backward pass."""
    monkeypatch.setattr(experts, "grouped_matmul", lambda x, w, *, sizes_E, platform: poisoned(x, w, sizes_E))
    check(mesh, step={"expert_exchange": exchange, "remat": "full"})


# --- the bias of the choice ---------------------------------------------------------------------------------------


def moved_by(config, bias, **arguments):
    params = random_params(config, std=0.2)
    metrics, _, state = first_step(config, params, bias=bias, **arguments)
    before, after = (b["layers"]["mlp"]["balance_bias"] for b in (bias, state.router_bias))
    return after - before, metrics


def loads(config, bias):
    """How often a batch's real tokens choose each expert of each layer: [L, E], by the reference."""
    params = random_params(config, std=0.2) 
    weights = {**params, "layers": {**params["layers"], "mlp": params["layers"]["mlp"] | bias["layers"]["mlp"]}}
    return dense_step(config, weights, make_batch(config))[0]["router_counts"]


@pytest.mark.parametrize(
    ("mesh", "microbatches"), [({"data": 1}, 1), ({"fsdp": 2, "expert": 4}, 2), (CUBE, 1)], ids=str
)
def test_a_bias_moves_once_a_step_towards_even_loads(mesh, microbatches):
    config = moe_config(mesh, {"bias": True}, loss={"bias_rate": 0.03}, step={"microbatches": microbatches})
    bias = random_bias(config)
    counts = loads(moe_config(moe={"bias": True}), bias)
    moved, _ = moved_by(config, bias)
    np.testing.assert_allclose(moved, 0.03 * np.sign(counts.mean(-1, keepdims=True) - counts), atol=1e-7)


def test_a_bias_does_not_move_at_a_step_that_is_skipped():
    config = moe_config(CUBE, {"bias": True}, on_nonfinite="skip")
    batch = make_batch(config)
    good, _ = moved_by(config, random_bias(config), batch=batch)
    batch["weights"][3] = np.nan
    bad, metrics = moved_by(config, random_bias(config), batch=batch)
    assert good.any()
    assert not bad.any()
    assert np.isnan(metrics["loss"])
