"""`explain`: rows read from the traced step agree with the cost model to the byte, and with what was compiled."""

import json
import math
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec

import jax
import pytest
from support import make_config

from jaxscale.compiled.collectives import collectives
from jaxscale.compiled.hlo import parse
from jaxscale.explain.follow import follow
from jaxscale.explain.match import SMALL, found_in, match
from jaxscale.explain.paths import sources
from jaxscale.explain.rows import Tensor, as_values, from_values
from jaxscale.explain.story import ATTENTION, Explanation, assumed_topology, of_one_replica, timed_rows, with_mesh
from jaxscale.explain.trace import trace
from jaxscale.hardware.topology import find_topology
from jaxscale.predict import costs
from jaxscale.predict.attention import attention_cost
from jaxscale.predict.traffic import traffic
from jaxscale.training.build import build

CUBE = {"data": 2, "fsdp": 2, "tensor": 2}
MODEL = {"vocab_size": 1000, "num_layers": 3, "embed_dim": 128, "num_heads": 8, "num_kv_heads": 4, "mlp_dim": 384}
LATENT = MODEL | {
    "num_kv_heads": 8,
    "head_dim": 24,
    "latent": {"kv_rank": 64, "q_rank": 96, "nope_head_dim": 16, "rope_head_dim": 8, "value_head_dim": 32},
}


def traced(mesh, **sections):
    """Rows, other collectives, the mesh, the config and the step to lower."""
    sections = {"model": MODEL, "data": {"kind": "synthetic", "batch_size": 16, "seq_len": 128}} | sections
    config = make_config(mesh, **sections)
    setup = build(config, jax.devices()[: math.prod(mesh.values())])
    sizes, batch = dict(setup.mesh.shape), setup.abstract_batch(documents=False)
    with setup.context():
        rows, others, step = trace(config, setup.program, batch, sizes)
    return rows, others, sizes, config, lambda: lower(step, setup.mesh)


def lower(step, devices) -> str:
    with jax.set_mesh(devices):
        return step.lower().compile().as_text()


@pytest.fixture(scope="module")
def cube():
    return traced(CUBE)


@pytest.fixture(scope="module")
def few():
    return traced({"fsdp": 2, "tensor": 4}, model=MODEL | {"num_kv_heads": 2})


@pytest.fixture(scope="module")
def compiled(cube):
    return collectives(parse(cube[4]()), cube[2])


def sent(rows, others) -> Counter:
    total: Counter = Counter()
    for s in [s for r in rows for s in r.sends] + [o for o in others if o.bytes >= SMALL]:
        total[s.kind, s.axes] += s.bytes * s.times
    return total


@pytest.mark.parametrize(
    ("mesh", "sections"),
    [
        (CUBE, {}),
        ({"fsdp": 8}, {}),
        ({"data": 2, "tensor": 4}, {"step": {"remat": "full"}}),
        ({"fsdp": 4, "tensor": 2}, {"step": {"remat": "dots", "microbatches": 2}, "loss": {"chunk": 32}}),
        ({"data": 8}, {"step": {"microbatches": 2}}),
        (CUBE, {"model": MODEL | {"tie_embeddings": True, "embed_dim": 384, "head_dim": 48}, "loss": {"chunk": 64}}),
        (CUBE, {"model": MODEL | {"embed_dim": 384, "num_heads": 8, "head_dim": 48, "num_kv_heads": 8}}),
        ({"fsdp": 2, "tensor": 4}, {"model": MODEL | {"num_kv_heads": 2}}),
        (CUBE, {"step": {"compute_dtype": "bfloat16"}, "model": MODEL | {"mlp": "gelu", "norm": "layernorm"}}),
        (CUBE, {"model": MODEL | {"position": "learned"}}),
        ({"data": 2, "fsdp": 4}, {"model": MODEL | {"position": "learned"}}),
        (CUBE, {"model": LATENT}),
        ({"fsdp": 2, "tensor": 4}, {"model": LATENT, "step": {"remat": "full"}}),
        ({"fsdp": 4, "tensor": 2}, {"model": LATENT, "step": {"remat": "dots", "microbatches": 2}}),
        (CUBE, {"model": LATENT | {"latent": LATENT["latent"] | {"q_rank": None}}}),
    ],
)
def test_rows_are_the_cost_models_to_the_byte(mesh, sections):
    rows, others, sizes, config, _ = traced(mesh, **sections)
    by_matmul = sum(r.flops * r.times for r in rows if r.name not in ATTENTION)
    assert by_matmul == sum(m.step_flops for m in costs.matmuls(config, sizes))
    by_attention = sum(r.flops * r.times for r in rows if r.name in ATTENTION)
    assert by_attention == attention_cost(config, sizes).step_flops
    expected: Counter = Counter()
    for t in traffic(config, sizes):
        if t.what != "losses":
            expected[t.kind, t.axes] += t.step_bytes
    found = sent(rows, [o for o in others if o.what not in ("cross_entropy", "norm")])
    assert found == expected


def test_a_matmul_says_how_it_is_cut(cube):
    rows = {r.title: r for r in cube[0]}
    assert str(rows["up"]) == "x[B_{data,fsdp}, T_tensor, D] · w_up[D_fsdp, F_tensor] -> up[B_{data,fsdp}, T, F_tensor]"
    assert rows["up"].cases == {"data": 1, "fsdp": 2, "tensor": 4}
    assert rows["down"].cases == {"data": 1, "fsdp": 4, "tensor": 3}
    assert rows["scores"].cases == {"data": 1, "fsdp": 1, "tensor": 1}
    assert rows["up, gradient of w"].cases == {"data": 3, "fsdp": 3, "tensor": 1}
    assert [(s.operand, s.kind, s.axes) for s in rows["down"].sends] == [
        ("w", "all-gather", ("fsdp",)), ("out", "reduce-scatter", ("tensor",)),
    ]  # fmt: skip
    gathered = rows["q"].sends[0]
    assert (gathered.operand, gathered.axes, gathered.shared) == ("x", ("tensor",), ("k", "v"))
    assert rows["down, gradient of w"].out.unreduced == ("data", "fsdp")
    assert (rows["up"].m, rows["up"].k, rows["up"].n) == (512, 128, 192)
    assert rows["up"].hbm_bytes == 4 * (512 * 128 + 128 * 192 + 512 * 192)


def test_layouts_are_those_of_the_program_and_not_of_a_list():
    """Without sequence parallelism the same matmuls ask for other collectives, in the rows as in the program."""
    plain = {"sharding": {"activations": {"residual_sequence": ["context"]}}}
    rows, others, mesh, _, text = traced(CUBE, **plain)
    down = next(r for r in rows if r.title == "down")
    assert str(down.out) == "y[B_{data,fsdp}, T, D]"
    assert [(s.kind, s.axes) for s in down.sends] == [("all-gather", ("fsdp",)), ("all-reduce", ("tensor",))]
    told, _, inserted = match(rows, others, collectives(parse(text()), mesh))
    assert {s.compiled for r in told for s in r.sends if s.kind != "reduce-scatter"} == {"same"}
    assert not [f for f in inserted if f.bytes >= SMALL]


def test_what_the_compiler_inserted_stands_beside_what_was_asked_for(cube, compiled):
    rows, _, inserted = match(cube[0], cube[1], compiled)
    sends = [s for r in rows for s in r.sends]
    assert not [f for f in inserted if f.bytes >= SMALL]
    for s in sends:  # XLA's CPU compiler writes them as an all-reduce and a slice
        scattered = s.kind == "reduce-scatter"
        assert s.compiled == ("form" if scattered else "same"), s
        assert not scattered or s.note == "an all-reduce and a slice of it: twice the bytes on the wire"


def test_a_collective_too_few_is_marked(cube, compiled):
    gone = next(c for c in compiled if c.kind == "all-gather" and "/down/" in c.source and "jvp()/while" in c.source
                and "transpose" not in c.source)  # fmt: skip
    rows, _, _ = match(cube[0], cube[1], [c for c in compiled if c is not gone])
    marked = [(r.title, s.kind, s.axes) for r in rows for s in r.sends
              if s.compiled == "different" and s.kind == "all-gather"]  # fmt: skip
    assert len(marked) == 1
    assert marked[0][0].startswith("down")


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"times": 1}, "different", "1 run, not 3: moved out of a loop"),
        ({"bytes": 196608, "sizes": (196608,)}, "form", "in float32, twice the bytes"),
        ({"bytes": 49152, "sizes": (49152,), "wire": "bf16"}, "form", "in bfloat16, half the bytes"),
        ({"kind": "all-reduce"}, "different", "all-reduce instead of arrays padded with zeros"),
        ({"axes": ("data", "fsdp")}, "different", "all-gather over data+fsdp at once"),
    ],
)
def test_a_difference_is_explained(cube, compiled, change, status, words):
    one = next(c for c in compiled if c.kind == "all-gather" and "/down/" in c.source and c.bytes == 98304)
    rows, _, _ = match(cube[0], cube[1], [replace(c, **change) if c is one else c for c in compiled])
    odd = [s for r in rows for s in r.sends if s.compiled != "same" and s.kind == "all-gather"]
    assert [s.compiled for s in odd] == [status]
    assert words in odd[0].note


def test_arrays_laid_one_after_another_are_as_asked(cube, compiled):
    """As NVIDIA's compiler does: one array as long as all of a loop's gradients, under no one's name."""
    one = next(c for c in compiled if c.axes == ("data",) and c.arrays == 7)
    flat = replace(one, sizes=(one.bytes,), arrays=1, source="jit(train_step)/while")
    rows, _, inserted = match(cube[0], cube[1], [flat if c is one else c for c in compiled])
    own = [s for r in rows for s in r.sends if s.axes == ("data",) and s.times == 3]
    assert {(s.compiled, s.note) for s in own} == {("same", "in one of 7 arrays")}
    assert not [f for f in inserted if f.bytes >= SMALL]


def test_a_collective_too_many_is_told(cube, compiled):
    more = replace(compiled[0], bytes=123456, sizes=(123456,), source="jit(train_step)/jvp(strange)/dot_general")
    _, _, inserted = match(cube[0], cube[1], [*compiled, more])
    assert [(f.name, f.bytes) for f in inserted if f.bytes >= SMALL] == [("strange", 123456)]


def test_few_kv_heads_are_told_apart(few):
    """Two kv heads on four shards of tensor: stored whole, one used by each, gradients gathered over tensor."""
    rows = {r.title: r for r in few[0]}
    assert rows["k"].cases == {"fsdp": 2, "tensor": 4}
    assert rows["k, gradient of x"].cases["tensor"] == 3
    assert [(s.kind, s.axes) for s in rows["k, gradient of w"].sends][-1] == ("all-gather", ("tensor",))
    stops = follow(explanation(few), "w_k")
    assert (stops[0].layout, stops[0].bytes) == ("w_k[D_fsdp, K, H]", 128 * 2 * 16 * 4 // 2)
    assert "2 heads, whole over tensor" in stops[0].words
    assert "all-gather over tensor" in " ".join(s.words for s in stops)


def test_gradients_have_the_dims_of_what_they_are_of():
    for mesh in ({"data": 1}, {"tensor": 2}, CUBE):
        rows = traced(mesh)[0]
        forward = {row.name: row for row in rows if not row.what and row.name not in ATTENTION}
        for row in (r for r in rows if r.what in ("gradient of x", "gradient of w")):
            of = forward[row.name].x if row.what == "gradient of x" else forward[row.name].w
            assert row.out.letters == of.letters, row


def test_numbers_that_a_chip_narrows_are_matched_by_name_first(cube, compiled):
    """q's gather in bfloat16 is as long as k's in float32: neither may be taken for the other."""
    half = lambda c: replace(c, bytes=c.bytes // 2, sizes=tuple(n // 2 for n in c.sizes), wire="bf16")  # noqa: E731
    narrow = [half(c) if c.kind == "all-gather" else c for c in compiled]
    rows, _, inserted = match(cube[0], cube[1], narrow)
    gathers = [s for r in rows for s in r.sends if s.kind == "all-gather"]
    assert {s.compiled for s in gathers} == {"form"}
    assert not [f for f in inserted if f.bytes >= SMALL and f.kind == "all-gather"]


def test_one_device_sends_nothing():
    rows, others, _, _, _ = traced({"data": 1})
    assert str(next(r for r in rows if r.title == "q")) == "x[BT, D] · w_q[D, NH] -> q[BT, NH]"
    assert not [s for r in rows for s in r.sends]
    assert not others


def test_rows_survive_the_way_through_json(cube):
    values = json.loads(json.dumps(as_values(cube[0], cube[1])))
    assert from_values(values) == (cube[0], cube[1])


def test_names_that_the_compiler_put_together():
    text = "jit(f)/transpose(jvp())/while/(k/a,b->c/transpose:norm/shard_map/psum)"
    assert sources(text) == ["transpose(jvp())/while/k/a,b->c", "transpose(jvp())/while/norm/shard_map"]
    assert sources("jit(f)/jvp(lookup)/shard_map/all_gather") == ["jvp(lookup)/shard_map"]
    assert sources("") == [""]


def explanation(cube, **changes) -> Explanation:
    rows, others, mesh, config, _ = cube
    topology = assumed_topology(8)
    rows = timed_rows(rows, config, topology, mesh)
    return Explanation(
        config, mesh, topology, True, None, "not asked for", jax.__version__, rows, others, [], **changes
    )


def test_seconds_and_what_binds_are_the_timing_models(cube):
    found = explanation(cube)
    up = next(r for r in found.rows if r.title == "up")
    assert set(up.seconds) == {"compute", "HBM", "ICI (tensor)", "ICI (fsdp)"}
    assert up.bound == max(up.seconds, key=up.seconds.get)
    assert up.seconds["ICI (tensor)"] == sum(s.seconds for s in up.sends if s.axes == ("tensor",)) > 0


def test_a_parameter_is_followed_from_rest_to_update(cube):
    stops = follow(explanation(cube), "w_down")
    assert stops[0].layout == stops[-1].layout == "w_down[F_tensor, D_fsdp]"
    words = " / ".join(s.words for s in stops)
    for part in ("two moments", "all-gather over fsdp", "read by down", "gradient of x", "sum over data and fsdp",
                 "reduce-scatter over fsdp", "all-reduce over data", "nothing is sent"):  # fmt: skip
        assert part in words
    assert stops[0].bytes * 2 == stops[1].bytes == 384 * 128 * 4 // 2


@pytest.mark.parametrize(
    ("name", "tensor", "kept", "update"),
    [
        ("lion", "w_down", "its momentum", "nothing is sent"),
        ("muon", "w_down", "its momentum", "orthogonal as a whole matrix"),
        ("muon", "w_unembedding", "its two moments", "nothing is sent"),
        ("adafactor", "w_down", "its factors", "means of its squared gradient"),
    ],
)
def test_a_parameter_says_what_its_optimizer_keeps_and_does(cube, name, tensor, kept, update):
    found = explanation(cube)
    config = found.config.model_copy(update={"optimizer": found.config.optimizer.model_copy(update={"name": name})})
    stops = follow(replace(found, config=config), tensor)
    assert kept in stops[0].words
    assert update in stops[-1].words


def test_an_activation_is_followed_to_its_gradient(cube):
    stops = follow(explanation(cube), "mlp_up")
    assert [s.words for s in stops if s.when == "forward"] == ["made by up", "read by down as a part of h"]
    assert stops[-1].layout == "d_up[B_{data,fsdp}, T, F_tensor]"
    full = traced({"fsdp": 8}, step={"remat": "full"})
    kept = {name: next(s.words for s in follow(explanation(full), name) if s.when == "kept?")
            for name in ("mlp_up", "layer_in", "mlp_out")}  # fmt: skip
    assert [words.split(":")[0] for words in kept.values()] == ["not kept", "kept for the backward pass", "not kept"]
    assert kept["mlp_out"].endswith("nothing of the backward pass reads it")
    with pytest.raises(ValueError, match=r"--tensor w_upp; did you mean w_up\?; there are the parameters w_q"):
        follow(explanation(cube), "w_upp")


def test_a_tensor_knows_its_block():
    w = Tensor("w", ("D", "F"), (128, 384), (("fsdp",), ("tensor",)), ((), ("tensor",)), "bfloat16")
    assert (w.local(CUBE), w.local(CUBE, used=False)) == ((128, 192), (64, 192))
    assert w.local_bytes(CUBE) == 128 * 192 * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data=2,foo=2", "no axis 'foo'; there are pipeline, data, fsdp, expert, context, tensor"),
        ("data=two", "'data=two' is not axis=size"),
        ("fsdp=0", "'fsdp=0' is not axis=size"),
        ("data", "'data' is not axis=size"),
        ("data=\u00b2", "is not axis=size"),
        ("data=2,data=4", "twice 'data'"),
        ("", "'' is not axis=size"),
    ],
)
def test_a_bad_mesh_is_refused_in_words(text, words):
    with pytest.raises(ValueError, match="mesh") as error:
        with_mesh(make_config(), text)
    assert words in str(error.value)


def test_data_goes_over_slices_where_nothing_else_is_said():
    config = with_mesh(make_config({"fsdp": 4}), "data=4,tensor=2", slices=2)
    assert (config.mesh.sizes(None), config.mesh.over_slices) == ({"data": 4, "tensor": 2}, {"data": 2})
    with pytest.raises(ValueError, match="data=1 is not divisible over 2 slices"):
        with_mesh(make_config(), "fsdp=8", slices=2)


def test_the_mesh_of_the_command_line_replaces_the_configs():
    config = with_mesh(make_config({"fsdp": 4}), "data=2, tensor=2")
    assert config.mesh.sizes(None) == {"data": 2, "tensor": 2}


def test_a_machine_is_assumed_where_none_is_given():
    assert [assumed_topology(n).name for n in (1, 8, 64, 6)] == ["v5p:1x1x1", "v5p:2x2x2", "v5p:4x4x4", "h100:1x6"]
    with pytest.raises(ValueError, match="say which machine with --topology"):
        assumed_topology(24)


# --- as a person types it -----------------------------------------------------------------------------------------


@pytest.fixture
def explain(jaxscale_here, monkeypatch):
    """What is explained is traced and compiled in a child process in any case."""
    monkeypatch.setenv("COLUMNS", "200")
    tiny = ["model.num_layers=2", "data.seq_len=64", "data.batch_size=8"]

    def call(*arguments: object, code: int = 0) -> str:
        out = jaxscale_here("explain", "quickstart", *tiny, *arguments)
        assert out.returncode == code, (out.returncode, out.stdout[-2000:], out.stderr[-2000:])
        assert "Traceback" not in out.stderr
        return out.stdout if code == 0 else out.stderr

    return call


@pytest.mark.slow
def test_the_terminal_shows_every_matmul_of_both_passes(explain):
    text = explain("--mesh", "data=2,fsdp=2,tensor=2", "--backward")
    assert "up x2   x[B_{data,fsdp}, T_tensor, D] · w_up[D_fsdp, F_tensor] -> up[B_{data,fsdp}, T, F_tensor]" in text
    assert "down, gradient of w x2" in text
    assert "all-gather w_up over fsdp" in text
    assert "= compiled" in text
    assert "≈ an all-reduce and a slice of it: twice the bytes on the wire" in text
    assert "all-gather x over tensor: with q" in text
    assert "FLOPs by formula: a query sees 32 of 64 keys on average" in text
    assert "XLA's CPU compiler for 8 simulated devices" in text
    assert "as no --topology was given" in text


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the aot-tpu extra")
def test_beside_the_tpus_own_compiler(explain):
    values = json.loads(explain("--mesh", "fsdp=4,tensor=2", "--topology", "v5e:2x4", "--json"))
    assert values["step"]["interval"]["low"] < values["step"]["seconds"] < values["step"]["interval"]["high"]
    assert values["compiled_by"] == "libtpu's compiler for v5e:2x4"
    sends = [s for r in values["rows"] for s in r["sends"]]
    assert {s["compiled"] for s in sends} <= {"same", "form", "different"}
    assert sum(s["compiled"] in ("same", "form") for s in sends) > 0.8 * len(sends)
    assert all(s["note"] for s in sends if s["compiled"] != "same")


def test_two_meshes_side_by_side_and_one_tensor(explain):
    text = explain("--compare", "fsdp=8", "data=4,tensor=2", "--compiler", "none")
    assert "all-gather w_up fsdp" in text
    assert "reduce-scatter y tensor" in text
    assert "binds" in text
    assert "made again in the backward pass" in explain("step.remat=full", "--tensor", "mlp_up", "--compiler", "none")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mesh", "data=3"), "8 is not divisible by 3"),
        (("--mesh", "data=8", "--topology", "v5p:4x4x4"), "is of 8 devices, and v5p:4x4x4 has 64"),
        (("--compiler", "chip"), "--compiler chip needs --topology"),
        (("--compare", "data=2", "data=4", "--tensor", "w_up"), "--compare has no use for --tensor; leave it out"),
        (("--compare", "data=2", "foo=4"), "no axis 'foo'"),
        (("--mesh", "fsdp=2,tensor=2", "sharding.parameters={mlp: null}"), "contracting dims"),
        (("--mesh", "data=3,fsdp=8", "--topology", "v5p:2x2x2", "--slices", "3", "data.batch_size=7"), "7"),
        (("--slices", "2"), "needs --topology"),
        (("--mesh", "fsdp=2", "-o", "nowhere/x.html"), "cannot write nowhere/x.html"),
    ],
)
def test_what_cannot_be_is_one_line(explain, arguments, words):
    error = explain(*arguments, code=2)
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_found_in_splits_what_was_put_together(compiled):
    together = next(c for c in compiled if c.arrays > 3 and c.kind == "reduce-scatter")
    parts = found_in([together])
    assert sum(f.bytes for f in parts) == together.bytes
    assert {"q", "k", "v", "out", "up", "gate", "down"} <= {f.name for f in parts}


def test_replicas_are_explained_as_one_of_them():
    """On its devices and rows; inside a slice its devices are no topology by themselves."""
    apart = {"outer": {"every": 4}, "data": {"batch_size": 16}}
    inside = make_config({"replica": 2, "fsdp": 2}, runtime={"simulated_devices": 4}, **apart)
    one, where = of_one_replica(inside, None)
    assert (one.mesh.sizes(2), one.data.batch_size, one.outer.every) == ({"fsdp": 2}, 8, None)
    assert (one.runtime.simulated_devices, where) == (2, None)
    other = with_mesh(inside, "tensor=2")
    assert (other.mesh.sizes(2), other.data.batch_size) == ({"tensor": 2}, 8)
    over = make_config({"fsdp": 4, "dcn": {"replica": 2}}, **apart)
    one, where = of_one_replica(over, find_topology("v5e:2x2", 2))
    assert (one.mesh.replicas, where) == (1, find_topology("v5e:2x2"))
    with pytest.raises(ValueError, match="explain shows one replica's step; give --topology of its devices"):
        of_one_replica(inside, find_topology("v5e:2x2"))
