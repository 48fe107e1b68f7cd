"""Training steps of a mixture of experts: every mesh and every way to compute one gives what one device gives."""

import functools
import shutil
from itertools import combinations

import jax
import numpy as np
import pytest
from dense_experts import CUBE, FOLDED, LOSS, blank_state, dense_step, first_step, moe_config, poisoned_matmul
from support import Setup, assert_gradients_equal, make_batch, random_params

from jaxscale.blueprint.sequence import order
from jaxscale.files.jsonl import read_records
from jaxscale.models import experts
from jaxscale.rollouts.choose import row_keys
from jaxscale.rollouts.sampler import Sampler
from jaxscale.serving import serve
from jaxscale.serving.serve import continue_texts
from jaxscale.training.step import all_parameters
from jaxscale.training.trainer import train

AXES = ("data", "fsdp", "expert", "context", "tensor")
EXCHANGES = ("all_to_all", "gather")
CLIP = 0.25
QUICK = [({"expert": 8}, "all_to_all"), (CUBE, "gather"), ({"data": 2, "expert": 2, "context": 2}, "all_to_all")]
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def grid():
    """Each axis alone and every three of them, with both exchanges where there is one; few of them are quick.

    Two axes are two of three: what they could get wrong shows there, and that 4 are not 2 in these three.
    """
    meshes = [{axis: 8} for axis in AXES] + [dict.fromkeys(three, 2) for three in combinations(AXES, 3)]
    for mesh in meshes:
        for exchange in EXCHANGES if "expert" in mesh else ("auto",):
            yield (pytest.param if (mesh, exchange) in QUICK else slow)(mesh, exchange)
    yield slow({"fsdp": 2, "expert": 4}, "all_to_all")
    yield slow({"expert": 2, "tensor": 4}, "gather")
    yield slow({"data": 2, "context": 4}, "auto")


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
def test_every_mesh_is_the_reference(mesh, exchange):
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
QUICK_WAYS = ("saved by name", "chunked loss")


@pytest.mark.parametrize(
    "sections", [(pytest.param if name in QUICK_WAYS else slow)(way, id=name) for name, way in WAYS.items()]
)
def test_each_way_to_compute_the_step_is_the_reference(sections):
    check(CUBE, **sections)


@pytest.mark.parametrize("remat", ["none", slow("full")])
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
    [({"fsdp": 2, "expert": 4}, "gather"), slow(CUBE, "all_to_all")],
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


# layers with an MLP and layers with experts in turns, with windows and a last layer after the whole periods
IN_TURNS = {
    "num_layers": 5, "sliding_window": None,
    "pattern": [{"experts": False, "sliding_window": 9}, {}, {"rope": False}],
}  # fmt: skip


def in_turns(mesh=None, moe=None, *, layers=5, **sections):
    model = IN_TURNS | {"num_layers": layers}
    return moe_config(mesh, {"shared_mlp_dim": 16, "bias": True} | (moe or {}), model=model, **sections)


@functools.cache
def in_turns_on_one_device(dense_layers, layers, balance=True):
    config = in_turns(moe={"dense_layers": dense_layers}, layers=layers, loss=LOSS if balance else {})
    params, bias = random_params(config, std=0.2), random_bias(config)
    return params, bias, first_step(config, params, bias=bias)


@pytest.mark.parametrize(
    ("mesh", "dense_layers", "step"),
    [
        ({"fsdp": 2, "expert": 2, "tensor": 2}, 0, {"remat": "full"}),
        ({"context": 2, "expert": 4}, 2, {"remat": "dots"}),
        slow({"fsdp": 8}, 0, {"unroll_layers": True}),
        slow(CUBE, 2, {"expert_exchange": "gather"}),
    ],
    ids=str,
)
def test_experts_in_some_layers_of_a_pattern(mesh, dense_layers, step):
    params, bias, (wanted_metrics, wanted, _) = in_turns_on_one_device(dense_layers, 5)
    config = in_turns(mesh, {"dense_layers": dense_layers}, loss=LOSS, step=step)
    metrics, grads, _ = first_step(config, params, bias=bias)
    for name, value in wanted_metrics.items():
        if name != "device_load":
            np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    assert_gradients_equal(grads, wanted)


@pytest.mark.parametrize(
    "mesh", [{"pipeline": 2, "fsdp": 2, "expert": 2}, slow({"pipeline": 2, "context": 2, "tensor": 2})], ids=str
)
def test_stages_of_a_pattern_with_experts_in_some_layers(mesh):
    params, bias, (wanted_metrics, wanted, _) = in_turns_on_one_device(0, 6, balance=False)
    config = in_turns(mesh, layers=6, step={"remat": "full", "microbatches": 4})
    metrics, grads, state = first_step(config, params, bias=bias)
    for name in ("loss", "router_entropy", "grad_norm"):
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=1e-5, err_msg=name)
    assert_gradients_equal(grads, wanted)
    assert jax.tree.leaves(state.router_bias)[0].shape == (4, 8)


@pytest.mark.parametrize("mesh", [{"expert": 8}, slow(CUBE)], ids=str)
@pytest.mark.parametrize("exchange", ["all_to_all", slow("gather")])
def test_what_lies_in_rows_that_no_expert_has_reaches_no_gradient(monkeypatch, mesh, exchange):
    """In a whole step, which computes the experts again in its backward pass."""
    monkeypatch.setattr(experts, "grouped_matmul", poisoned_matmul)
    check(mesh, step={"expert_exchange": exchange, "remat": "full"})


# --- the bias of the choice ---------------------------------------------------------------------------------------


def with_bias(params, bias):
    """All parameters, as the reference takes them."""
    return {**params, "layers": {**params["layers"], "mlp": params["layers"]["mlp"] | bias["layers"]["mlp"]}}


def moved_by(config, bias, **arguments):
    params = random_params(config, std=0.2)
    metrics, _, state = first_step(config, params, bias=bias, **arguments)
    before, after = (b["layers"]["mlp"]["balance_bias"] for b in (bias, state.router_bias))
    return after - before, metrics


def loads(config, bias):
    """How often a batch's real tokens choose each expert of each layer: [L, E], by the reference."""
    params = random_params(config, std=0.2)
    return dense_step(config, with_bias(params, bias), make_batch(config))[0]["router_counts"]


@pytest.mark.parametrize(
    ("mesh", "microbatches"), [slow({"data": 1}, 1), ({"fsdp": 2, "expert": 4}, 2), slow(CUBE, 1)], ids=str
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


@pytest.mark.parametrize("mesh", [{"expert": 4, "tensor": 2}, slow({"fsdp": 8})], ids=str)
def test_an_evaluation_uses_the_bias(mesh):
    config, bias = moe_config(mesh, {"bias": True}), random_bias(moe_config(moe={"bias": True}))
    params, setup = random_params(config, std=0.2), Setup(config)
    with setup.context():
        layout = jax.tree.map(lambda x: x.sharding, setup.program.abstract)
        state = blank_state(setup)._replace(
            params=jax.device_put(params, layout.params), router_bias=jax.device_put(bias, layout.router_bias)
        )
        found = setup.program.evaluate(state, setup.batch)
    assert set(found) == {"cross_entropy", "tokens"}
    weights = with_bias(params, bias)
    wanted = dense_step(moe_config(moe={"bias": True}), weights, make_batch(config))[0]
    np.testing.assert_allclose(found["cross_entropy"] / found["tokens"], wanted["loss"], rtol=1e-5)


# --- whole runs ---------------------------------------------------------------------------------------------------

SMALL = {"vocab_size": 257, "num_layers": 2, "embed_dim": 32, "num_heads": 8, "num_kv_heads": 8, "mlp_dim": 64}
MESH = {"fsdp": 2, "expert": 4}


def run_config(stdlib, out, mesh, *, steps, **sections):
    devices = int(np.prod(list(mesh.values())))
    return moe_config(
        mesh, {"bias": True, "mlp_dim": 16, "dense_layers": 1}, model=SMALL, steps=steps, out=str(out),
        data={"kind": "tokens", "path": str(stdlib), "batch_size": 8, "seq_len": 32}, step={"remat": "full"},
        runtime={"simulated_devices": devices}, checkpoint={"every": 2}, evaluation={"batches": 1},
        optimizer={"learning_rate": 5e-3, "schedule": "constant"}, loss={"router_z": 1e-3, "bias_rate": 0.05},
        **sections,
    )  # fmt: skip


@pytest.fixture(scope="module")
def straight(stdlib, tmp_path_factory):
    return train(run_config(stdlib, tmp_path_factory.mktemp("straight"), MESH, steps=4))


def leaves(state):
    return [np.asarray(x) for x in jax.tree.leaves(jax.device_get(state._replace(rng=jax.random.key_data(state.rng))))]


def test_a_run_resumes_bit_by_bit_with_its_biases(straight, stdlib, tmp_path):
    train(run_config(stdlib, tmp_path, MESH, steps=2))
    again = train(run_config(stdlib, tmp_path, MESH, steps=4))
    assert all(np.array_equal(a, b) for a, b in zip(leaves(again.state), leaves(straight.state), strict=True))
    (bias,) = jax.tree.leaves(jax.device_get(straight.state.router_bias))
    assert bias.shape == (1, 8)
    assert set(np.round(np.abs(bias) / 0.05, 3).ravel().tolist()) <= {0, 1, 2, 3, 4}
    assert bias.any()


@pytest.mark.parametrize("mesh", [{"expert": 4, "tensor": 2}, slow({"fsdp": 8})], ids=str)
def test_a_checkpoint_is_the_same_on_another_mesh(straight, stdlib, tmp_path, mesh):
    shutil.copytree(straight.out, tmp_path, dirs_exist_ok=True)
    moved = train(run_config(stdlib, tmp_path, mesh, steps=4))
    assert moved.step == 4
    assert not moved.losses
    assert all(np.array_equal(a, b) for a, b in zip(leaves(moved.state), leaves(straight.state), strict=True))
    assert moved.state.params["layers"]["mlp"]["expert_up"].sharding.mesh.shape == mesh


@pytest.mark.parametrize("overrides", [[], ["mesh={data: 1}", "runtime.simulated_devices=1"]], ids=["mesh", "one"])
def test_generation_uses_the_bias(straight, stdlib, overrides):
    """As it was saved, on the run's mesh and elsewhere."""
    texts = continue_texts(straight.out, ["def "], overrides, max_new_tokens=6, temperature=0.0)
    params = all_parameters(straight.state, straight.state.params)
    config = run_config(stdlib, straight.out, MESH, steps=4)
    sampler = Sampler(config, straight.mesh, straight.rules)
    keys = row_keys(0, [0])
    wanted = sampler(params, [[256, *b"def "]], keys=keys, max_new=6, temperature=0.0).rows(stop=False)
    assert texts == [bytes(wanted[0]).decode("utf-8", "replace")]


def test_generation_reads_the_saved_bias(straight, stdlib, monkeypatch):
    config, read = run_config(stdlib, straight.out, MESH, steps=4), []
    monkeypatch.setattr(serve, "complete", lambda sampler, params, *_, **__: read.append(params) or [""])
    continue_texts(straight.out, ["def "], [], max_new_tokens=1)
    (saved,) = jax.tree.leaves(straight.state.router_bias)
    np.testing.assert_array_equal(read[0]["layers"]["mlp"]["balance_bias"], saved)
    serve.sample_after(straight, config, "def ", max_new_tokens=1)
    np.testing.assert_array_equal(read[1]["layers"]["mlp"]["balance_bias"], saved)


# --- replicas -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("remat", ["none", slow("full")])
@pytest.mark.parametrize("mesh", [{"replica": 2, "fsdp": 2}, slow({"replica": 2, "expert": 2, "tensor": 2})], ids=str)
def test_replicas_lower_whatever_is_kept(mesh, remat):
    """What the experts keep for their backward pass differs between devices, the order of rows too."""
    setup = Setup(moe_config(mesh, {"bias": True}, outer={"every": 2}, step={"remat": remat}))
    with setup.context():
        setup.program.step.lower(setup.program.abstract, setup.batch)


@pytest.mark.slow
def test_a_run_of_replicas_generates_with_the_mean_of_their_biases(stdlib, tmp_path, monkeypatch):
    config = run_config(stdlib, tmp_path, {"replica": 2, "expert": 2}, steps=2, outer={"every": 2})
    result, read = train(config), []
    assert {"expert_load", "balance"} <= set(read_records(result.out / "metrics.jsonl")[0])
    monkeypatch.setattr(serve, "complete", lambda sampler, params, *_, **__: read.append(params) or [""])
    alone = ["mesh={data: 1}", "runtime.simulated_devices=1", "outer.every=null"]
    continue_texts(result.out, ["def "], alone, max_new_tokens=1)
    serve.sample_after(result, config, "def ", max_new_tokens=1)
    (biases,) = jax.tree.leaves(jax.device_get(result.state.router_bias))
    for params in read:
        np.testing.assert_allclose(params["layers"]["mlp"]["balance_bias"], biases.mean(0), rtol=1e-6)
