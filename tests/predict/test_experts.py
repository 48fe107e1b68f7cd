"""Experts by arithmetic: what goes to them beside XLA's programs, FLOPs, room for rows, published sizes."""

import pytest
from support import Setup, bytes_by_axes, make_config

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.compiled.aot import device_bytes
from jaxscale.compiled.collectives import collectives
from jaxscale.compiled.hlo import parse
from jaxscale.compiled.work import matmuls
from jaxscale.hardware.topology import find_topology
from jaxscale.predict import costs
from jaxscale.predict.experts import exchange, tiled
from jaxscale.predict.forecast import forecast
from jaxscale.predict.memory import memory
from jaxscale.predict.plan import plan
from jaxscale.predict.traffic import traffic

MOE = {"num_experts": 8, "top_k": 2, "mlp_dim": 32}
DEEPSEEK = MOE | {
    "shared_mlp_dim": 32,
    "dense_layers": 1,
    "score": "sigmoid",
    "groups": 4,
    "top_groups": 2,
    "bias": True,
}
IN_TURNS = MOE | {"num_layers": 8, "pattern": [{"experts": False, "sliding_window": 8}, {}]}
SAVED = dict.fromkeys(("expert_in", "expert_gate", "expert_up"), "save")
CASES = [
    ({"fsdp": 8}, MOE, {"remat": "full"}),
    ({"expert": 4, "fsdp": 2}, MOE, {"remat": "full"}),
    ({"expert": 2, "fsdp": 2, "tensor": 2}, MOE, {"remat": "full"}),
    ({"expert": 2, "fsdp": 2, "tensor": 2}, MOE, {"remat": "none"}),
    ({"expert": 4, "tensor": 2}, MOE, {"remat": SAVED}),
    ({"expert": 2, "context": 2, "fsdp": 2}, MOE, {"remat": "dots"}),
    ({"data": 2, "expert": 4}, DEEPSEEK, {"remat": "full"}),
    ({"expert": 2, "fsdp": 4}, MOE, {"remat": "full", "expert_exchange": "all_to_all"}),
    ({"expert": 2, "fsdp": 2, "tensor": 2}, IN_TURNS, {"remat": "full"}),
    ({"pipeline": 4, "expert": 2}, IN_TURNS | {"num_layers": 16}, {"remat": "full", "microbatches": 4}),
]


def model_of(moe: dict) -> dict:
    of_model = {key: moe[key] for key in ("pattern", "num_layers") if key in moe}
    moe = {key: value for key, value in moe.items() if key not in of_model}
    return {"num_kv_heads": 8, "moe": moe, "num_layers": 3 if "dense_layers" in moe else 2} | of_model


@pytest.mark.parametrize(("mesh", "moe", "step"), CASES, ids=str)
def test_what_is_sent_is_what_the_compiled_program_sends(mesh, moe, step):
    """Bytes by axis within 1 %; scalars and vectors (norms, counts) are left out."""
    config = make_config(mesh, model=model_of(moe), step=step)
    setup = Setup(config)
    sizes, program = dict(setup.mesh.shape), parse(setup.hlo())
    sent = bytes_by_axes(collectives(program, sizes))
    predicted = bytes_by_axes(traffic(config, sizes, platform="cpu"))
    assert predicted == {axes: pytest.approx(n, rel=0.01) for axes, n in sent.items()}


@pytest.mark.parametrize("mesh", [{"fsdp": 8}, {"expert": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_state_and_other_matmuls_are_the_program_s(mesh):
    """The experts' own FLOPs depend on the platform's kernel: `compile` compares them, and `tests/models`."""
    config = make_config(mesh, model=model_of(DEEPSEEK), step={"remat": "full"})
    setup = Setup(config)
    sizes, state, model = dict(setup.mesh.shape), setup.program.abstract, blueprint(config.model)
    found = costs.state_bytes(config, sizes)
    assert found["parameters"] == device_bytes(state.params)
    assert found["optimizer state"] == device_bytes(state.opt_state)
    program = parse(setup.hlo())
    attention = ("gth,gsh", "gts,gsh", "gts,gth")
    compiled = sum(
        m.flops * m.times for m in matmuls(program)
        if "/experts/" not in m.source and not any(part in m.source for part in attention)
    )  # fmt: skip
    own = sum(m.step_flops for m in costs.matmuls(config, sizes) if not model.op(m.name).rows_move)
    assert own == pytest.approx(compiled, rel=0.02)


def shipped(name: str, *overrides: str) -> cfg.Config:
    return cfg.load_config(f"models/{name}", ["data.batch_size=64", "data.seq_len=4096", *overrides])


@pytest.mark.parametrize(
    ("name", "whole", "active"),
    [
        ("mixtral-8x7b", 46.7, 12.9),
        ("mixtral-8x22b", 141, 39),
        ("qwen3-30b-a3b", 30.5, 3.35),
        ("qwen3-235b-a22b", 235, 22.2),
        ("deepseek-v3", 671, 37.6),
        ("gpt-oss-120b", 116.8, 5.7),
    ],
)
def test_published_sizes(name, whole, active):
    """Billions; active with both tables of the vocabulary."""
    model = shipped(name).model
    assert sum(costs.parameter_counts(model).values()) / 1e9 == pytest.approx(whole, rel=0.003)
    assert costs.active_parameters(model) / 1e9 == pytest.approx(active, rel=0.006)
    assert costs.train_flops_per_token(model, 1) == pytest.approx(6 * costs.matmul_parameters(model), rel=1e-3)


def test_arithmetic_of_an_exchange_by_hand():
    """Qwen3-30B-A3B, 16 rows of 4,096 tokens a device, 8 of 128 experts, over 4 devices: 4 is no more than 8, so tokens
    are gathered; asked for otherwise, each row goes alone, 3 times there and 2 back."""
    sizes, S, D = {"fsdp": 1, "expert": 4}, 16 * 4096, 2048
    config = shipped("qwen3-30b-a3b", "mesh.data=1", "step.remat=full")
    at = exchange(config, sizes)
    assert (at.how, at.tokens, at.rows, at.place) == ("gather", S, 8 * S, 4 * 8 * S)
    gathered = [t for t in traffic(config, sizes) if t.what in ("tokens for experts", "experts' partial sums")]
    assert sum(t.step_bytes for t in gathered) == 48 * 5 * 4 * S * D * 2
    alone = config.model_copy(update={"step": config.step.model_copy(update={"expert_exchange": "all_to_all"})})
    rows = [t for t in traffic(alone, sizes) if t.what in ("rows to experts", "rows from experts")]
    assert {t.kind for t in rows} == {"ragged-all-to-all"}
    assert sum(t.step_bytes for t in rows) == 48 * 5 * 8 * S * D * 2
    (numbers,) = [t for t in traffic(alone, sizes, platform="gpu") if t.what == "rows' weights"]
    assert numbers.step_bytes == 48 * 3 * 8 * S * 4


def test_tiles_in_which_experts_meet_cost_time():
    at = exchange(shipped("deepseek-v3", "step.remat=full"), {"fsdp": 32})
    assert at.rows == 2 * 4096 * 8
    assert tiled(at, "tpu") == 1 + 128 * 255 / at.rows
    assert 1 < tiled(at, "gpu") < tiled(at, "tpu")
    assert tiled(exchange(shipped("mixtral-8x7b"), {"fsdp": 8}), "tpu") < 1.05


def test_fsdp_needs_more_tokens_than_a_dense_model():
    """All experts are gathered for the few that a token goes to: E/k times a dense model's bytes a FLOP."""
    where = find_topology("v5p:4x4x4")
    few, many = (shipped("mixtral-8x7b", f"data.batch_size={n}", "step.remat=full") for n in (64, 512))
    found = [forecast(c, where, {"fsdp": 64}) for c in (few, many)]
    assert found[0].mfu < found[1].mfu
    dense = [m for m in costs.matmuls(few, {"fsdp": 64}) if m.groups > 1]
    assert {m.groups for m in dense} == {8}


# GiB of one device by libtpu 0.0.52 (benchmarks/memory.py has the published models)
SMALL = {"vocab_size": 32000, "num_layers": 4, "embed_dim": 2048, "num_heads": 16, "num_kv_heads": 8, "head_dim": 128,
         "mlp_dim": 4096, "moe": {"num_experts": 16, "top_k": 2, "mlp_dim": 2048}}  # fmt: skip


@pytest.mark.parametrize(
    ("mesh", "compiled"),
    [
        ({"fsdp": 8}, 3.250),
        ({"fsdp": 2, "expert": 4}, 4.755),
        ({"fsdp": 4, "expert": 2}, 3.370),
        ({"fsdp": 4, "expert": 2}, 3.566),
    ],
    ids=str,
)
def test_memory_as_libtpu_gave_it(mesh, compiled):
    """v5p:2x2x2 twice, v6e:2x4, tpu7x:2x2x1. The second has room for four times the rows, the others with an axis of
    experts for twice as many, as all may choose one device's experts."""
    config = make_config(
        mesh, model=SMALL, data={"batch_size": 32, "seq_len": 2048}, loss={"chunk": 512},
        step={"remat": "full", "compute_dtype": "bfloat16"},
    )  # fmt: skip
    assert memory(config, mesh).peak / 2**30 == pytest.approx(compiled, rel=0.05)


def test_plan_tries_the_experts_axis_and_says_why_not():
    where = find_topology("v5p:4x4x4")
    config = cfg.load_config("qwen3-30b-a3b", ["data.kind=synthetic", "data.path=null", "step.remat=full"])
    found = plan(config, where, held=("step.remat", "mesh.data"))
    assert {c.mesh.get("expert", 1) for c in found.choices} >= {1, 2, 8}
    assert "loss.balance" in found.not_tried["step.microbatches"]
    assert {c.config.step.microbatches for c in found.choices} == {1}
    dense = plan(cfg.load_config("llama3.1-8b", ["data.kind=synthetic", "data.path=null"]), where,
                 held=("step", "mesh.data"))  # fmt: skip
    assert all("expert" not in c.mesh for c in dense.choices)
    assert "the model has no experts" in dense.not_tried["expert"]
