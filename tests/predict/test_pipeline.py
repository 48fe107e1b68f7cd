"""What a pipeline costs, by arithmetic: beside XLA's programs, and beside libtpu's of Llama-3.1-8B."""

from collections import Counter

import pytest
from support import Setup, make_config

from jaxscale import config as cfg
from jaxscale.compiled.collectives import collectives
from jaxscale.compiled.hlo import parse
from jaxscale.compiled.work import matmuls
from jaxscale.config.mesh_text import mesh_text
from jaxscale.hardware.chips import GIB
from jaxscale.hardware.stated import with_stated
from jaxscale.hardware.topology import find_topology
from jaxscale.predict import costs
from jaxscale.predict.attention import attention_cost
from jaxscale.predict.forecast import forecast
from jaxscale.predict.memory import memory
from jaxscale.predict.plan import plan
from jaxscale.predict.traffic import traffic
from jaxscale.predict.ways import held_keys, meshes

SMALL = 512  # bytes
LAYERS, ROWS = 8, 8  # two layers a stage and more, as a loop of one layer is none; rows of a microbatch
MESHES = [
    ({"pipeline": 4}, {}),
    ({"pipeline": 2, "data": 2, "fsdp": 2}, {"tie_embeddings": True}),
    ({"pipeline": 2, "fsdp": 2, "tensor": 2}, {}),
    ({"pipeline": 2, "context": 2, "tensor": 2}, {}),
    ({"pipeline": 2, "fsdp": 2}, {"qk_norm": True, "norm": "layernorm", "mlp": "gelu"}),
    ({"replica": 2, "pipeline": 2, "fsdp": 2}, {}),
]


@pytest.mark.parametrize(("mesh", "model"), MESHES, ids=[mesh_text(mesh) for mesh, _ in MESHES])
def test_flops_and_bytes_are_the_compiled_program_s(mesh, model):
    """Within 1 %, by axis; numbers and vectors apart. XLA gathers a head that no loop cuts once, before all ticks."""
    replicas = mesh.get("replica", 1)
    config = make_config(
        mesh, model={"num_layers": LAYERS, "num_kv_heads": 8} | model, step={"microbatches": 4, "remat": "full"},
        data={"batch_size": 4 * ROWS * replicas}, optimizer={"clip_norm": None},
        outer={"every": 50 if replicas > 1 else None},
    )  # fmt: skip
    setup = Setup(config)
    sizes, program = dict(setup.mesh.shape), parse(setup.hlo())
    compiled = sum(m.flops * m.times for m in matmuls(program) if not is_attention(m.source))
    assert sum(m.step_flops for m in costs.matmuls(config, sizes)) == pytest.approx(compiled, rel=0.01)
    sent: Counter = Counter()
    for c in collectives(program, sizes):
        sent[tuple(sorted(c.axes))] += sum(size for size in c.sizes if size >= SMALL) * c.times
    predicted: Counter = Counter()
    for t in traffic(config, sizes, platform="cpu"):
        times = 1 if (t.kind, t.what) == ("all-gather", "unembedding weight") else t.times
        predicted[tuple(sorted(t.axes))] += t.bytes * times if t.bytes >= SMALL else 0
    assert {axes: pytest.approx(n, rel=0.01) for axes, n in predicted.items()} == {a: n for a, n in sent.items() if n}


def is_attention(source: str) -> bool:
    return any(part in source for part in ("gth,gsh", "gts,gsh", "gts,gth", "bkgts"))


EIGHT_B = ["data.kind=synthetic", "data.path=null", "data.batch_size=256", "data.seq_len=8192", "step.remat=full"]
SIZES = {"pipeline": 4, "fsdp": 16}


def test_a_published_model_as_libtpu_compiled_it():
    """Llama-3.1-8B on v5p:4x4x4 with 16 microbatches, libtpu 0.0.52: GB a step by kind, and HBM within 3 %."""
    config = cfg.load_config("llama3.1-8b", [*EIGHT_B, "step.microbatches=16"])
    sent: Counter = Counter()
    for t in traffic(config, SIZES):
        sent[t.kind, t.axes] += t.step_bytes / 1e9
    compiled = {
        ("all-gather", ("fsdp",)): 136.830,
        ("reduce-scatter", ("fsdp",)): 70.506,
        ("all-reduce", ("pipeline",)): 4.699,
        ("collective-permute", ("pipeline",)): 2.550,
        ("all-to-all", ("fsdp",)): 2.550,
    }
    assert {key: n for key, n in sent.items() if n > 0.01} == {
        k: pytest.approx(n, rel=1e-3) for k, n in compiled.items()
    }
    done = sum(m.step_flops for m in costs.matmuls(config, SIZES)) + attention_cost(config, SIZES).step_flops
    assert done / 1e12 == pytest.approx(2129.685 + 376.033, rel=1e-5)
    needed = memory(config, SIZES)
    assert needed.backward["kept activations"] == 3.5 * GIB
    assert needed.peak == pytest.approx(8.68 * GIB, rel=0.03)


def test_two_slices_as_libtpu_compiled_them():
    """One stage a slice, fsdp=64 within it, 16 microbatches of 64 rows: GB over the slow network; HBM within 6 %."""
    sizes = {"pipeline": 2, "fsdp": 64}
    overrides = ["step.microbatches=16", "data.batch_size=1024", "mesh.dcn.pipeline=2", "mesh.fsdp=64"]
    config = cfg.load_config("llama3.1-8b", [*EIGHT_B, *overrides])
    sent: Counter = Counter()
    for t in traffic(config, sizes):
        sent[t.kind] += t.step_bytes / 1e9 if t.axes == ("pipeline",) else 0
    assert (sent["all-reduce"], sent["collective-permute"]) == pytest.approx((4.431, 2.282), rel=1e-3)
    assert memory(config, sizes).peak == pytest.approx(7.85 * GIB, rel=0.06)


@pytest.mark.parametrize("microbatches", [2, 4, 16])
def test_layers_run_in_every_tick_and_the_head_once_a_microbatch(microbatches):
    config = cfg.load_config("llama3.1-8b", [*EIGHT_B, f"step.microbatches={microbatches}"])
    whole, stages = ({m.name: m for m in costs.matmuls(config, s)} for s in ({"fsdp": 16}, SIZES))
    ticks = microbatches + 3
    for name, m in stages.items():
        one = whole[name]
        if m.stacked:
            assert m.step_flops / one.step_flops == pytest.approx(ticks / microbatches / 4)
        else:
            assert m.step_flops / one.step_flops == 1 / 4
    time = forecast(config, find_topology("v5p:4x4x4"), SIZES).time
    layers = sum(time.parts[name] for name in ("matmuls", "attention", "elementwise"))
    assert time.parts["bubble"] / (time.parts["bubble"] + layers) == pytest.approx(3 / ticks, rel=0.06)
    assert "bubble" not in forecast(config, find_topology("v5p:4x4x4"), {"fsdp": 64}).time.parts


def test_what_is_kept_does_not_grow_with_the_number_of_microbatches():
    few, many = (
        memory(cfg.load_config("llama3.1-8b", [*EIGHT_B, f"step.microbatches={m}", f"data.batch_size={16 * m}"]), SIZES)
        for m in (4, 16)
    )
    assert few.temporaries == many.temporaries


# --- plans ------------------------------------------------------------------------------------------------------


def test_a_plan_tries_a_pipeline_only_where_it_may_be_needed():
    """Weights over a slow network between nodes are waited for; within a slice they are not."""
    near = plan(cfg.load_config("llama3.1-8b", EIGHT_B), find_topology("v5p:4x4x4"))
    assert "M/S times as often" in near.not_tried["pipeline"]
    assert not any(c.mesh.get("pipeline") for c in near.choices)
    config = cfg.load_config("llama3.1-70b", ["data.kind=synthetic", "data.path=null", "data.batch_size=512"])
    far = plan(config, with_stated(find_topology("h100:16x8"), "25Gb/s", None))
    assert "pipeline" not in far.not_tried
    staged = [c for c in far.choices if c.mesh.get("pipeline")]
    assert staged
    assert all(c.remat == "full" and c.config.step.microbatches >= c.mesh["pipeline"] for c in staged)
    assert far.considered == len(far.choices) + sum(n for _, n in far.left_out)


def test_a_pipeline_that_is_given_is_planned_around():
    overrides = ["mesh.pipeline=4", "step.microbatches=16"]
    config = cfg.load_config("llama3.1-8b", [*EIGHT_B, *overrides])
    found = plan(config, find_topology("v5p:4x4x4"), held=held_keys(overrides))
    assert found.choices
    assert {c.mesh["pipeline"] for c in found.choices} == {4}
    assert "pipeline" not in found.not_tried


def test_slices_may_be_stages():
    config = cfg.load_config("llama3.1-8b", EIGHT_B)
    over = {tuple(m.over_slices.items()) for m in meshes(config, find_topology("v5p:4x4x4", 2), in_stages=True)}
    assert over == {(("pipeline", 2),), (("data", 2),), (("fsdp", 2),)}
