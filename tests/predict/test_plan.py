"""Plans and forecasts: what is legal, what fits, what binds; by hand where a hand can do it."""

import math
import re
from dataclasses import replace

import pytest
from support import make_config

from jaxscale import config as cfg
from jaxscale.blueprint.rules import key_of
from jaxscale.console.plan import plan_footer
from jaxscale.hardware.chips import CHIPS
from jaxscale.hardware.topology import find_topology
from jaxscale.optimizers import OPTIMIZERS
from jaxscale.predict.advice import what_would_do
from jaxscale.predict.attention import attention_cost
from jaxscale.predict.costs import matmuls, parameter_elements, recomputed_matmuls
from jaxscale.predict.forecast import forecast, offloaded_bytes
from jaxscale.predict.memory import memory
from jaxscale.predict.plan import MOL, plan, read_budget, spend
from jaxscale.predict.timing import Sent, rates, step_time
from jaxscale.predict.traffic import traffic
from jaxscale.predict.ways import held_keys, meshes, remats_of

H100 = find_topology("h100:8").chip


def shipped(name: str, *overrides: str) -> cfg.Config:
    return cfg.load_config(name, ["data.kind=synthetic", "data.path=null", *overrides])


@pytest.fixture(scope="module")
def found():
    return plan(shipped("llama3.1-8b"), find_topology("v5p:4x4x4"))


def test_all_splits_of_the_devices_are_considered(found):
    meshes = {tuple(sorted(c.mesh.items())) for c in found.choices}
    assert (("fsdp", 64),) in meshes
    assert (("data", 4), ("fsdp", 8), ("tensor", 2)) in meshes
    assert all(math.prod(c.mesh.values()) == 64 for c in found.choices)
    assert found.considered == len(found.choices) + sum(n for _, n in found.left_out)


def test_the_fastest_comes_first_and_all_fit(found):
    seconds = [c.forecast.time.best for c in found.choices]
    assert seconds == sorted(seconds)
    assert all(c.memory.peak <= find_topology("v5p:4x4x4").chip.usable_hbm_bytes for c in found.choices)


def test_what_is_left_out_says_why():
    tight = plan(shipped("llama3.1-8b"), find_topology("v6e:4x4"))
    assert any(why.startswith("memory is short by") for why, _ in tight.left_out)
    odd = plan(shipped("llama3.1-8b", "data.batch_size=24"), find_topology("v5p:4x4x4"))
    assert any("data.batch_size" in why and "does not divide" in why for why, _ in odd.left_out)


def test_where_nothing_fits_the_nearest_is_named():
    none = plan(shipped("llama3.1-405b"), find_topology("v5e:4x4"))
    assert none.choices == []
    assert "memory is short by" in none.left_out[0][0]
    assert "(nearest: fsdp=" in none.left_out[0][0]


def test_offloading_is_among_the_ways():
    """40,960 tokens of Llama-3.1-8B a v6e: what fits keeps little of them in HBM."""
    tight = plan(shipped("llama3.1-8b", "data.batch_size=320"), find_topology("v6e:8x8"))
    ways = {c.remat for c in tight.choices if c.config.step.microbatches == 1 and c.mesh == {"fsdp": 64}}
    assert "to the host" in ways
    assert "dots" not in ways
    offloaded = next(c for c in tight.choices if c.remat == "to the host")
    assert offloaded.memory.host > 10 * 2**30


def test_a_smaller_chunk_is_taken_only_where_the_config_s_own_does_not_fit():
    overrides = ("data.batch_size=64", "data.seq_len=4096", "loss.chunk=null")
    wide, tight = (plan(shipped("llama3.1-8b", *overrides), find_topology(name)) for name in ("v5p:2x2x4", "v5e:4x4"))
    assert {c.config.loss.chunk for c in wide.choices if c.remat == "full"} == {None}
    assert {c.config.loss.chunk for c in tight.choices} >= {512}
    best = tight.choices[0].config
    assert cfg.validate(best.model_dump(mode="json"), source="test") == best


def test_overridden_rules_are_honoured():
    """Without sequence parallelism the same ways send all-reduces, which take as long, and keep more in memory."""
    where = find_topology("v5p:4x4x4")
    held = ("mesh", "step", "loss.chunk")
    mesh = ("mesh.data=1", "mesh.fsdp=16", "mesh.tensor=4", "step.microbatches=2", "step.remat=full")
    without = shipped("llama3.1-8b", *mesh, "sharding.activations.residual_sequence=null")
    plain, own = (plan(c, where, held=held).own for c in (shipped("llama3.1-8b", *mesh), without))
    assert own.memory.peak > plain.memory.peak
    kinds = [{s.kind for s in c.forecast.sent if s.axes == ("tensor",)} for c in (plain, own)]
    assert kinds == [{"all-gather", "reduce-scatter", "all-reduce"}, {"all-reduce"}]


def test_a_layout_that_cannot_be_leaves_out_the_ways_that_ask_for_it():
    found = plan(shipped("llama3.1-8b", "sharding.parameters.vocab=[tensor, fsdp]"), find_topology("v5p:4x4x4"))
    assert found.choices
    assert all("fsdp" not in c.mesh for c in found.choices)
    assert any("not a layout that is supported" in reason for reason, _ in found.left_out)


def test_the_ways_of_a_model_without_a_gate_are_configs_that_are_taken():
    """Every remat that a plan tries names activations of this model: what `-o` writes is read again."""
    config = shipped("gpt2-124m", "data.kind=synthetic", "data.path=null", "data.validation_path=null")
    found = plan(config, find_topology("v5e:2x4"))
    assert {"matmuls, attended", "to the host"} & {c.remat for c in found.choices}
    for choice in found.choices:
        assert cfg.validate(choice.config.model_dump(mode="json"), source="test") == choice.config


# --- the config itself, what is held, and what would do -------------------------------------------------------


def test_the_config_as_it_is_stands_beside_the_ways(found):
    own = found.own
    config = shipped("llama3.1-8b")
    assert (own.mesh, own.config, own.short, found.own_problem) == ({"fsdp": 64}, config, {}, "")
    same = next(c for c in found.choices if c.mesh == own.mesh and c.config.step == own.config.step)
    assert same.forecast.time == own.forecast.time
    assert same.memory == own.memory


def test_a_config_that_does_not_fit_says_by_how_much():
    own = plan(shipped("llama3.1-8b"), find_topology("v6e:4x4")).own
    assert own.short == {"memory": own.memory.peak - find_topology("v6e:4x4").chip.usable_hbm_bytes}
    assert own.short["memory"] > 0
    none = plan(shipped("llama3.1-405b"), find_topology("v5p:4x4x4"))
    assert none.own is None
    assert "1024 does not divide 64 devices" in none.own_problem
    slices = plan(shipped("llama3.1-8b"), find_topology("v5p:4x4x4", slices=2))  # nothing says what goes over them
    assert "over 1 slices and there are 2" in slices.own_problem


@pytest.mark.parametrize(
    ("overrides", "holds"),
    [
        (["mesh.fsdp=8"], {"fsdp": 8}),
        (["mesh.tensor=4"], {"tensor": 4}),
        (["mesh.data=2", "mesh.tensor=4"], {"data": 2, "fsdp": 8, "tensor": 4}),
        (["mesh.fsdp=-1", "mesh.tensor=2"], {"data": 1, "fsdp": 32, "tensor": 2}),  # as `train` reads it
        (["mesh={fsdp: 16, data: 4}"], {"data": 4, "fsdp": 16, "tensor": 1}),
        (["mesh.fsdp=1"], {"fsdp": 1}),
    ],
)
def test_a_mesh_that_is_given_is_held(overrides, holds):
    config, held = shipped("llama3.1-8b", *overrides), held_keys(overrides)
    found = list(meshes(config, find_topology("v5p:4x4x4"), held))
    assert found
    assert all(getattr(mesh, axis) == size for mesh in found for axis, size in holds.items())
    free = [axis for axis in ("data", "fsdp", "tensor") if axis not in holds]
    assert len(found) == 1 if not free else len(found) > 1
    ways = plan(config, find_topology("v5p:4x4x4"), held=held)
    assert ways.held == held
    assert all(c.mesh.get(axis, 1) == size for c in ways.choices for axis, size in holds.items())


@pytest.mark.parametrize("overrides", [["step.remat=full"], ["step.microbatches=2"], ["loss.chunk=2048"],
                                       ["step={remat: full, microbatches: 2}"], ["step.remat={q: save}"]])  # fmt: skip
def test_whatever_is_given_is_held(overrides):
    config, held = shipped("llama3.1-8b", *overrides), held_keys(overrides)
    assert len(held) == 1
    for choice in plan(config, find_topology("v6e:4x8"), held=held).choices:
        got = choice.config
        if "remat" in overrides[0]:
            assert got.step.remat == config.step.remat
        if "microbatches" in overrides[0]:
            assert got.step.microbatches == 2
        if "chunk" in overrides[0]:
            assert got.loss.chunk == 2048


def test_other_overrides_hold_nothing():
    assert held_keys(["steps=3", "data.batch_size=8", "step.attention=xla", "model.file=x", "meshes=1"]) == ()


@pytest.mark.parametrize(
    ("overrides", "slices", "says"),
    [
        (["mesh.fsdp=48"], 1, "mesh.fsdp=48 does not divide the 64 devices of v5p:4x4x4; make it 32 or 64"),
        (["mesh.fsdp=-1", "mesh.tensor=3"], 1, "mesh.tensor=3 does not divide the 64 devices"),
        (["mesh.fsdp=16", "mesh.tensor=8"], 1, "make the product 32 or 64"),
        (["mesh.data=1", "mesh.fsdp=8", "mesh.tensor=2"], 1, "takes 16 devices, not the 64"),
        (["mesh.dcn.data=2"], 1, "over 2 slices, and there are 1; give --slices 2"),
        (["mesh.dcn.data=4"], 2, "over 4 slices, and there are 2"),
    ],
)
def test_a_held_mesh_without_devices_is_refused(overrides, slices, says):
    config = shipped("llama3.1-8b", *overrides)
    with pytest.raises(ValueError, match=says):
        plan(config, find_topology("v5p:4x4x4", slices), held=held_keys(overrides))


def test_slices_that_are_given_are_held():
    config = shipped("llama3.1-8b", "mesh.dcn.fsdp=2")
    found = list(meshes(config, find_topology("v5p:4x4x4", slices=2), ("mesh.dcn.fsdp",)))
    assert found
    assert all(mesh.over_slices == {"fsdp": 2} for mesh in found)


@pytest.mark.parametrize(
    ("name", "where", "overrides", "says"),
    [
        ("llama3.1-8b", "v5p:4x4x4", ["data.batch_size=25"], "data.batch_size=24 or 26 in place of 25"),
        ("llama3.1-8b", "h100:3x8", ["data.batch_size=16"], "--topology h100:2x8 or h100:4x8"),
        ("llama3.1-8b", "v5p:4x4x4", ["mesh.tensor=64"], "mesh.tensor=32 in place of 64"),
        ("llama3.1-8b", "v5p:4x4x4", ["mesh.fsdp=64", "data.batch_size=65"], "data.batch_size=64 or 128"),
        ("llama3.1-405b", "gb200:72", [], "--topology gb200:1x64 or gb200:2x64"),
    ],
)
def test_where_sizes_do_not_divide_what_would_is_said(name, where, overrides, says):
    """And more chips are not: each line of the advice was tried, and holds."""
    config, held = shipped(name, *overrides), held_keys(overrides)
    found = plan(config, find_topology(where), held=held)
    assert (found.choices, found.legal) == ([], 0)
    advice = what_would_do(config, found)
    assert any(says in line for line in advice), advice
    assert not any("more chips" in line for line in advice)
    for line in advice:
        for rows in re.findall(r"\d+", line.partition(" in place")[0]) if "batch_size" in line else []:
            assert plan(shipped(name, *overrides, f"data.batch_size={rows}"), find_topology(where), held=held).choices


def test_where_memory_is_short_the_next_machine_that_fits_is_said():
    config = shipped("llama3.1-8b")
    found = plan(config, find_topology("t4:8"))
    assert found.legal
    assert found.choices == []
    (line,) = what_would_do(config, found)
    assert line == "more chips: it fits on t4:2x8 (16 GPUs)"
    assert plan(config, find_topology("t4:2x8")).choices
    config = shipped("llama3.1-405b")
    assert what_would_do(config, plan(config, find_topology("v5e:16x16"))) == [
        "more chips: it fits on v5e:16x16 x 4 slices (1,024 chips)"
    ]


@pytest.mark.parametrize("chip", CHIPS, ids=lambda c: c.name)
def test_there_is_a_plan_on_every_chip(chip):
    """One chip, and the largest machine that is plain: a node, or 16 chips."""
    for shape in (
        ("1", str(chip.node))
        if chip.node
        else ("x".join("1" * chip.torus_dims), "2x2x4" if chip.torus_dims == 3 else "4x4")
    ):
        where = find_topology(f"{chip.name}:{shape}")
        found = plan(
            shipped("gpt2-124m", "data.validation_path=null", "data.batch_size=144", "data.seq_len=512"), where
        )
        assert found.choices, (where.name, found.left_out)
        best = found.choices[0].forecast
        assert 0.01 < best.mfu < 0.9, (where.name, best.mfu)
        assert best.tokens_per_second_per_chip > 1000


def test_saving_every_matmul_costs_no_time_and_a_third_of_the_memory():
    config = shipped("llama3.1-8b", "data.batch_size=64")
    remats = (remats_of(config)[name] for name in ("none", "matmuls, attended"))
    none, saved = (cfg.validate(config.model_dump(mode="json") | {"step": {"remat": r}}, source="test") for r in remats)
    assert recomputed_matmuls(saved) == set()
    assert attention_cost(saved, {"fsdp": 64}) == attention_cost(none, {"fsdp": 64})
    kept = [memory(c, {"fsdp": 64}).loss["kept activations"] for c in (none, saved)]
    assert kept[1] < 0.5 * kept[0]
    seconds = [forecast(c, find_topology("v5p:4x4x4"), {"fsdp": 64}).time.best for c in (none, saved)]
    assert seconds[1] == pytest.approx(seconds[0], rel=0.01)


def test_what_is_offloaded_must_fit_the_hosts():
    """A host of v5p has 448 GB for the 4 chips that offload to it."""
    overrides = (
        "data.batch_size=1024",
        "data.seq_len=8192",
        "step.remat={layer_in: offload, q: offload, mlp_up: offload}",
    )
    config, where = shipped("llama3.1-70b", *overrides), find_topology("v5p:4x4x8")
    own = plan(config, where).own
    assert own.host_bytes == 4 * own.memory.host
    assert own.short == {"host memory": own.host_bytes - 448e9}
    roomy = plan(config, replace(where, host_memory=2e12)).own
    assert roomy.short == {}
    found = plan(config, where)
    assert all(c.host_bytes <= 448e9 for c in found.choices)
    assert any(why.startswith("host memory is short by") for why, _ in found.left_out)


def test_slices_go_over_data_or_fsdp():
    found = plan(shipped("llama3.1-8b"), find_topology("v5p:4x4x4", slices=2))
    over = {tuple(c.config.mesh.over_slices.items()) for c in found.choices}
    assert over == {(("data", 2),), (("fsdp", 2),)}
    assert all(math.prod(c.mesh.values()) == 128 for c in found.choices)


@pytest.mark.parametrize(("text", "flops"), [("1mol", MOL), ("2.5mol", 2.5 * MOL), ("1e24", 1e24), ("mol", MOL)])
def test_budgets(text, flops):
    assert read_budget(text) == flops


@pytest.mark.parametrize("text", ["", "lots", "-1", "nan", "0", "inf", "1kg"])
def test_a_budget_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="no number of FLOPs"):
        read_budget(text)


def test_a_budget_is_spent_at_the_predicted_speed(found):
    best = found.choices[0]
    spent = spend(1e22, best)
    assert spent.tokens * best.forecast.model_flops / best.forecast.tokens == pytest.approx(1e22)
    assert spent.days * 86400 == pytest.approx(spent.steps * best.forecast.time.best)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_planned_and_says_what_is_not_counted(name):
    config = shipped("llama3.2-1b", f"optimizer.name={name}")
    found = plan(config, find_topology("v5e:4x4"))
    assert found.choices
    text = "\n".join(plan_footer(config, found, None, None))
    assert ("not counted: Muon's Newton-Schulz matmuls" in text) == (name == "muon")


# --- forecasts ------------------------------------------------------------------------------------------------


def test_every_chip_has_fractions_below_one():
    for chip in CHIPS:
        assert 0 < chip.fractions.attention <= chip.fractions.matmul < 1


def test_one_matmul_by_hand():
    """q of Llama-3.1-8B, 8192 tokens, tensor=2: [8192, 4096] x [4096, 2048], 2 M K N FLOPs, 32 layers."""
    config = shipped("llama3.1-8b", "data.batch_size=8", "data.seq_len=8192", "step.remat=full")
    q = next(m for m in matmuls(config, {"fsdp": 8, "tensor": 2}) if m.name == "q")
    assert (q.m, q.k, q.n, q.flops) == (8192, 4096, 2048, 2 * 8192 * 4096 * 2048)
    assert (q.forward, q.backward, q.recomputed) == (32, 64, 32)


def test_what_remat_makes_again():
    def again(remat):
        return recomputed_matmuls(make_config(step={"remat": remat}))

    assert again("none") == again("dots") == set()
    assert again("full") == {"q", "k", "v", "out", "gate", "up"}  # nothing needs the output of `down`
    assert again({"q": "save", "attention_out": "offload"}) == {"k", "v", "gate", "up"}


def test_attention_runs_again_unless_its_context_is_kept():
    keep = {"attended": "save"}
    configs = [make_config(step={"remat": r}) for r in ("none", "full", keep)]
    assert [attention_cost(c, {"data": 1}).forward_calls for c in configs] == [2, 4, 2]  # 2 layers


def test_fsdp_gathers_twice_and_scatters_once_a_layer():
    config = shipped("llama3.1-8b")
    up = [(t.kind, t.phase, t.bytes, t.times) for t in traffic(config, {"fsdp": 64}) if t.what.startswith("up ")]
    whole = 4096 * 14336 * 2
    assert up == [
        ("all-gather", "forward", whole, 32), ("all-gather", "recomputed", whole, 32),
        ("reduce-scatter", "backward", whole, 32),
    ]  # fmt: skip


def test_bounds_hold_the_best_estimate():
    for name, where, sizes in (
        ("llama3.1-8b", "v6e:8x8", {"fsdp": 64}),
        ("llama3.1-70b", "h100:16x8", {"data": 4, "fsdp": 8, "tensor": 4}),
    ):
        time = forecast(shipped(name, "step.microbatches=1"), find_topology(where), sizes).time
        assert time.overlapped <= time.best <= time.nothing_overlapped
        assert time.sums[time.binds] == max(time.sums.values())
        assert sum(time.sums.values()) == pytest.approx(sum(time.parts.values()))


def test_compute_binds_as_a_whole():
    """Matmuls 3 s and attention 2 s are 5 s of compute, more than 4 s of a network."""
    sent = [Sent("all-gather", ("fsdp",), 1.0, 1, 4.0, "ICI", 0.0, False)]
    time = step_time({"matmuls": 3.0, "attention": 2.0, "elementwise": 1.0}, sent)
    assert (time.binds, time.sums) == ("compute", {"compute": 5.0, "HBM": 1.0, "ICI (fsdp)": 4.0})


def test_compute_bound_steps_take_their_flops():
    """With one device nothing is sent: the step is its matmuls at the achievable rate, and little else."""
    config = shipped("llama3.1-8b", "data.batch_size=4")
    found = forecast(config, find_topology("h200:1"), {"data": 1})
    floor = sum(m.step_flops for m in matmuls(config, {"data": 1})) / rates(find_topology("h200:1").chip).matmul_flops
    assert found.sent == []
    assert floor < found.time.best < 1.6 * floor


def test_every_microbatch_is_offloaded():
    offload = "step.remat={layer_in: offload}"
    one, four = (shipped("llama3.1-8b", offload, f"step.microbatches={n}") for n in (1, 4))
    assert offloaded_bytes(one, {"fsdp": 64}) == offloaded_bytes(four, {"fsdp": 64}) == 32 * 4 * 8192 * 4096 * 2


def test_more_slices_on_the_slow_network_never_help_the_time_of_a_step():
    config = shipped("llama3.1-8b", "data.batch_size=512")
    one = forecast(config, find_topology("v6e:8x8"), {"fsdp": 64})
    two = forecast(config, find_topology("v6e:8x8", slices=2), {"data": 2, "fsdp": 64}, {"data": 2})
    assert two.time.best > one.time.best / 2


# --- memory ---------------------------------------------------------------------------------------------------


def test_remat_and_microbatches_save_memory():
    def peak(**step):
        config = cfg.validate(shipped("llama3.1-8b").model_dump(mode="json") | {"step": step}, source="test")
        return memory(config, {"fsdp": 32}).peak

    assert peak(remat="full") < peak(remat="dots") < peak(remat="none")
    assert peak(remat="dots", microbatches=4) < peak(remat="dots")


def test_offloaded_activations_are_on_the_host():
    kept, moved = ({"layer_in": how} for how in ("save", "offload"))
    a, b = (memory(shipped("llama3.1-8b", f"step.remat={r}"), {"fsdp": 64}) for r in (kept, moved))
    layer_in = 32 * 4 * 8192 * 4096 * 2  # layers, rows of a device, tokens, embed, bf16
    assert b.host == layer_in
    assert a.peak - b.peak == layer_in * 30 / 32  # two layers' are on their way


def test_what_a_gpu_holds_under_tensor_parallelism_by_hand():
    """Llama-3.1-70B, fsdp=32, tensor=8, 4 microbatches of 4 rows a device: from the buffers of XLA's program."""
    config = shipped("llama3.1-70b", "mesh.tensor=8")
    backward = memory(config, {"fsdp": 32, "tensor": 8}, chip=H100).backward
    tokens, D, F, L = 4 * 8192, 8192, 28672, 80
    whole, mlp, layer_in = tokens * D * 2, tokens * F // 8 * 2, tokens * D // 8 * 2
    heads = tokens * (8 + 8 + 1 + 1) * 128 * 2  # q, context; k, v, of a device's 8 and 1 heads
    assert backward["kept activations"] == L * layer_in
    assert backward["a layer's activations"] == 7 * whole + 4 * mlp + 5 * layer_in + heads
    assert backward["copies of parameters, turned"] == L * (D * D + D * F) // 256 * 4  # out and down
    assert backward["last matrix's gradient"] == D * config.model.padded_vocab_size // 8 * 2


def test_logits_that_are_not_in_chunks_wait_on_a_gpu_where_their_gradient_is_scattered():
    config = shipped("llama3.2-1b", "data.batch_size=16", "data.seq_len=2048", "loss.chunk=null")
    logits = 2 * 2048 * config.model.padded_vocab_size * 4
    split, alone = (memory(config, sizes, chip=H100).backward for sizes in ({"fsdp": 8}, {"data": 8}))
    assert split["gradient of the logits"] > logits > 0
    assert "gradient of the logits" not in alone


def test_a_tpu_pads_kept_heads_to_its_lanes():
    """Heads of 64 take twice their room on a TPU; heads of 128 do not."""

    def kept(name, chip=None):
        return memory(shipped(name, "step.remat={q: save}"), {"fsdp": 8}, chip=chip).loss["kept activations"]

    config = shipped("llama3.2-1b")
    q = 16 * config.data.batch_size // 8 * config.data.seq_len * 32 * 64 * 2
    assert kept("llama3.2-1b") - kept("llama3.2-1b", H100) == q
    assert kept("llama3.1-8b") == kept("llama3.1-8b", H100)


# --- replicas -------------------------------------------------------------------------------------------------

APART = ["mesh.replica=2", "outer.every=100"]


def test_replicas_are_tried_only_where_they_are_given():
    where = find_topology("v5p:4x4x4", 2)
    usual = plan(shipped("llama3.1-8b"), where)
    assert not any("replica" in choice.mesh for choice in usual.choices)
    assert "mesh.replica=2 outer.every=100 tries it" in usual.not_tried["replica"]
    found = plan(shipped("llama3.1-8b", *APART), where)
    assert "replica" not in found.not_tried
    assert found.choices
    for choice in found.choices:  # as many as were given, each in its own slice
        assert choice.mesh["replica"] == 2
        assert choice.config.mesh.over_slices == {"replica": 2}
        assert choice.config.outer.every == 100


def test_replicas_of_one_slice_share_its_devices():
    found = plan(shipped("llama3.1-8b", *APART), find_topology("v5p:4x4x4"))
    assert {choice.mesh["replica"] for choice in found.choices} == {2}
    assert {math.prod(choice.mesh.values()) for choice in found.choices} == {64}
    with pytest.raises(ValueError, match=r"mesh\.replica=3 does not divide the 64 devices"):
        plan(
            shipped("llama3.1-8b", "mesh.replica=3", "outer.every=100", "data.batch_size=6"), find_topology("v5p:4x4x4")
        )


def test_an_outer_step_costs_each_step_its_share():
    """All parameters in float32 over the network between two slices, once in 100 steps."""
    where = find_topology("v5p:4x4x4", 2)
    mesh = ["mesh.data=1", "mesh.fsdp=64", "mesh.dcn.replica=2", "step.microbatches=1"]
    config, seldom = (shipped("llama3.1-8b", *mesh, f"outer.every={n}") for n in (100, 1000))
    sizes = config.mesh.sizes(where.devices)
    found, later = forecast(config, where, sizes), forecast(seldom, where, sizes)
    bytes_of_device = 4 * parameter_elements(key_of(config, sizes))
    assert bytes_of_device == pytest.approx(4 * 8.03e9 / 64, rel=5e-3)  # norms are whole on every device
    (sent,) = (s for s in found.sent if s.what == "outer step")
    assert (sent.kind, sent.axes, sent.network) == ("all-reduce", ("replica",), "DCN")
    assert sent.bytes == bytes_of_device / 100
    assert found.time.parts["DCN (replica)"] == pytest.approx(10 * later.time.parts["DCN (replica)"])
    assert found.time.parts["outer step"] == pytest.approx(10 * later.time.parts["outer step"])
    assert not any("replica" in s.axes for s in found.sent if s is not sent)
    data = forecast(shipped("llama3.1-8b", *mesh[:2], "mesh.dcn.data=2", mesh[3]), where, {"data": 2, "fsdp": 64})
    assert sum(s.bytes for s in data.sent if s.network == "DCN") > 40 * sent.bytes
