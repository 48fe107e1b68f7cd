"""What is timed is what it says: the matmuls of a backward pass, collectives and their bytes, attention's error."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import make_config

from jaxscale.bench import attention, clock, collectives, matmul, memory, split_attention, verbs
from jaxscale.bench.clock import Effort, time_calls
from jaxscale.bench.header import Header
from jaxscale.bench.record import FAILED, INTERRUPTED
from jaxscale.compiled.hlo import parse
from jaxscale.parallel.mesh import make_mesh
from jaxscale.predict import costs

QUICK = Effort(repeats=4, seconds=0.2, burn_in=1, shortest=0)


@pytest.fixture
def ticking(monkeypatch):
    """A clock on which each look takes a millisecond: a machine that is busy elsewhere changes nothing."""
    ticks = itertools.count()
    monkeypatch.setattr(clock, "time", types.SimpleNamespace(perf_counter=lambda: next(ticks) / 1e3))


def test_every_sample_is_waited_for_and_burn_in_stands_apart(ticking):
    calls = []

    def call(i):
        calls.append(i)
        return jnp.float32(i)

    samples = time_calls(call, QUICK)
    assert samples == pytest.approx([1e-3] * 4)
    assert calls == list(range(6))  # one of burn-in, one to see how long it takes, four samples


def test_short_calls_are_timed_in_bundles(ticking):
    calls = itertools.count()
    samples = time_calls(lambda i: jnp.float32(next(calls)), Effort(repeats=3, burn_in=1, shortest=1e-2))
    assert samples == pytest.approx([1e-4] * 3)  # a millisecond for ten
    assert next(calls) == 1 + 1 + 3 * 10


@pytest.mark.parametrize("which", matmul.PASSES)
def test_the_passes_are_those_of_a_matmul(which):
    """The operands and contractions of each pass give y, dx and dw of y = x w."""
    rng = np.random.default_rng(0)
    m, k, n = 6, 4, 5
    x, w, dy = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n), (m, n)))
    wanted = {"forward": (x, w, x @ w), "backward wrt x": (dy, w, dy @ w.T), "backward wrt w": (x, dy, x.T @ dy)}
    a, b, result = wanted[which]
    operands, contract = matmul.PASSES[which]
    assert operands(m, k, n) == (a.shape, b.shape)
    np.testing.assert_allclose(matmul.multiply(contract, "float32")(a, b), result, rtol=1e-5)


def test_operands_are_random_and_differ():
    pool = matmul.Pool(jax.devices()[0])
    a, b = pool.cut((64, 32), "float32", 0), pool.cut((64, 32), "float32", 1)
    assert 0.9 < float(a.std()) < 1.1
    assert not np.array_equal(a, b)
    assert pool.cut((8192, 16384), "bfloat16", 1).shape == (8192, 16384)  # more than the pool holds


@pytest.mark.parametrize("mesh", [{"data": 2}, {"fsdp": 2, "tensor": 2}])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_models_matmuls_are_all_of_them(mesh, remat):
    config = make_config(mesh, step={"remat": remat})
    sizes = config.mesh.sizes(None)
    rows = list(matmul.model_matmuls(config, sizes, jax.devices()[0], 1e9, QUICK))
    parts, ceiling = rows[:-1], rows[-1]
    done = sum(r.figures["flops"].value * r.figures["runs"].value for r in parts)
    assert done == sum(m.step_flops for m in costs.matmuls(config, sizes)) == ceiling.figures["flops"].value
    samples = [[r.figures["flops_per_second"].samples[i] for r in parts] for i in range(3)]
    for together, single in zip(ceiling.figures["flops_per_second"].samples, samples, strict=False):
        assert min(single) <= together <= max(single)
    share = ceiling.figures["share_of_peak"]
    assert share.value == pytest.approx(ceiling.figures["flops_per_second"].value / 1e9)


def test_search_measures_its_best_again(monkeypatch):
    monkeypatch.setitem(matmul.GRIDS, "cpu", (64, 128))
    rows = list(matmul.search(jax.devices()[0], "float32", None, seconds=3.0, effort=QUICK))
    stages = [r.labels["stage"] for r in rows]
    assert stages.count("best") == min(5, stages.count("tried"))
    best = matmul.best_row(rows)
    assert best.figures["flops_per_second"].samples
    assert "share_of_peak" not in best.figures  # no peak, no utilization
    tried = {(r.labels["m"], r.labels["k"], r.labels["n"]) for r in rows if r.labels["stage"] == "tried"}
    assert tried <= set(itertools.product((64, 128), repeat=3))


def test_memory_rows_say_what_moved():
    rows = list(memory.copies([4096], jax.devices()[0], QUICK))
    moved = {r.labels["what"]: r.figures["bytes_moved"].value for r in rows}
    assert moved == {"device copy": 8192, "host to device": 4096, "device to host": 4096}


# --- collectives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["data", "tensor"])
@pytest.mark.parametrize("kind", collectives.KINDS)
def test_collectives_do_what_they_are_called(kind, axis):
    mesh = make_mesh(data=2, tensor=4)
    n = mesh.shape[axis]
    x = np.random.default_rng(0).standard_normal(n * 8 * n).astype(np.float32)
    parts = x.reshape(n, -1)  # what each device of a group holds
    where = jax.sharding.PartitionSpec(axis)
    body = collectives.operation(kind, axis, n)
    run = jax.shard_map(body, mesh=mesh, in_specs=where, out_specs=where, check_vma=False)
    out = np.asarray(jax.jit(run)(jax.device_put(x, jax.sharding.NamedSharding(mesh, where)))).reshape(n, -1)
    wanted = {
        "all-reduce": np.tile(parts.sum(0), (n, 1)),
        "all-gather": np.tile(x, (n, 1)),
        "reduce-scatter": parts.sum(0).reshape(n, -1),
        "all-to-all": parts.reshape(n, n, -1).transpose(1, 0, 2).reshape(n, -1),
        "ppermute": np.roll(parts, 1, axis=0),
    }[kind]
    np.testing.assert_allclose(out, wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", collectives.KINDS)
def test_bytes_are_nccl_tests(kind):
    """S of a record is the compiled collective's: its input, or for an all-gather its output."""
    mesh, size = make_mesh(data=8), 8192
    local = size // 4 // (8 if kind == "all-gather" else 1)
    where = jax.sharding.PartitionSpec("data")
    run = jax.shard_map(
        collectives.operation(kind, "data", 8), mesh=mesh, in_specs=where, out_specs=where, check_vma=False
    )
    x = jax.ShapeDtypeStruct((8 * local,), jnp.float32, sharding=jax.sharding.NamedSharding(mesh, where))
    program = parse(jax.jit(run).lower(x).compile().as_text())
    opcode = {"ppermute": "collective-permute"}.get(kind, kind)
    (found,) = [i for c, _ in program.running() for i in c if i.opcode == opcode]
    assert found.bytes * (8 if kind == "reduce-scatter" else 1) == size  # what is scattered is eight times a result


def test_bus_bandwidth_is_nccl_tests():
    assert collectives.wire_share("all-reduce", 8) == 2 * 7 / 8
    assert {collectives.wire_share(k, 8) for k in ("all-gather", "reduce-scatter", "all-to-all")} == {7 / 8}
    assert collectives.wire_share("ppermute", 8) == 1


def test_a_line_is_found_again():
    points = [(p, b, p * 2e-6 + b / 5e9) for p, b in itertools.product((1, 2), (1e3, 1e5, 1e7))]
    latency, bandwidth = collectives.fit_line(points)
    assert latency == pytest.approx(2e-6)
    assert bandwidth == pytest.approx(5e9)
    assert collectives.fit_error(points, latency, bandwidth) < 1e-9


def test_neither_latency_nor_bandwidth_is_negative():
    latency, bandwidth = collectives.fit_line([(1, 1e3, 1e-7), (1, 1e6, 1e-3)])  # steeper than proportional
    assert latency == 0
    assert bandwidth > 0


def test_a_bandwidth_that_cannot_be_told_is_none():
    points = [(1, 1e3, 2e-3), (1, 1e6, 1e-3)]  # the larger one was faster
    latency, bandwidth = collectives.fit_line(points)
    assert 1e-3 <= latency <= 2e-3
    assert bandwidth is None
    assert set(collectives.fit_figures(points)) == {"latency_seconds", "points"}
    assert "fit_error" not in collectives.fit_figures([(1, 1e3, 1e-5), (1, 1e6, 1e-3)])  # of two points it says nothing


def test_each_axis_gets_rows_and_a_fit():
    rows = list(collectives.measure(make_mesh(data=2, tensor=4), [4096, 65536], "float32", QUICK))
    plain = [r for r in rows if "fit" not in r.labels]
    assert len(plain) == 2 * 5 * 2
    for r in plain:
        share = collectives.wire_share(str(r.labels["collective"]), int(r.labels["size"]))
        assert r.figures["busbw"].value == pytest.approx(r.figures["algbw"].value * share)
    ring = [r for r in rows if r.labels.get("fit") and r.labels["collective"] == "ring"]
    assert [r.labels["axis"] for r in ring] == ["data", "tensor"]
    for r in ring:  # on a busy machine times may not grow with the bytes: then there is no bandwidth to tell
        assert r.figures["latency_seconds"].value >= 0
        assert "bandwidth" not in r.figures or r.figures["bandwidth"].value > 0


# --- attention ------------------------------------------------------------------------------------------------


def test_attention_rows_tell_speed_memory_and_error():
    case = attention.Case(2, 64, 4, 2, 16, "float32")
    rows = list(attention.measure([case], jax.devices()[0], None, QUICK))
    done = {r.labels["pass"]: r for r in rows if not r.error}
    assert set(done) == {"forward", "forward and backward"}
    for row in done.values():
        assert 0 <= row.figures["max_error"].value < 1e-4
        assert row.figures["peak_memory_bytes"].basis == "compiled"
    forward, both = (done[p].figures for p in ("forward", "forward and backward"))
    work = [f["flops_per_second"].samples[0] * f["seconds"].samples[0] for f in (forward, both)]
    assert work == pytest.approx([case.forward_flops, 3.5 * case.forward_flops])
    assert {r.labels["kernel"]: r.error for r in rows if r.error}.keys() == {"cudnn", "splash"}


def test_rows_that_devices_share_are_measured_both_ways():
    case = attention.Case(2, 64, 4, 2, 16, "float32")
    rows = list(split_attention.measure([case], jax.devices()[:4], None, QUICK))
    done = {(r.labels["way"], r.labels["pass"]): r for r in rows if not r.error}
    assert set(done) == {(way, name) for way in ("gather", "ring") for name in ("forward", "forward and backward")}
    for row in done.values():
        assert 0 <= row.figures["max_error"].value < 1e-4
        assert row.labels["context"] == 4
    assert {r.labels["kernel"] for r in rows if r.error} == {"cudnn", "splash"}


def test_an_error_of_a_kernel_would_be_seen(monkeypatch):
    monkeypatch.setitem(attention.RUN, "xla", lambda q, k, v, **_: 1.01 * attention.reference(q, k, v))
    assert attention.largest_error(attention.Case(2, 64, 4, 2, 16, "float32"), "xla")[0] > 1e-3


def test_busy_time_is_the_union_of_spans():
    assert clock.busy_seconds([(0, 4e9), (1e9, 2e9), (3e9, 6e9), (10e9, 11e9)]) == pytest.approx(7)
    assert clock.busy_seconds([]) == 0


def test_a_cpu_has_no_clock_of_its_own(tmp_path):
    assert clock.device_seconds(lambda i: jnp.float32(i)) is None
    with clock.trace(tmp_path):
        jnp.ones(4).sum().block_until_ready()
    assert clock.device_planes(clock.read_planes(tmp_path)) == []
    with pytest.raises(ValueError, match="no profiler trace"):
        clock.read_planes(tmp_path / "nothing")


def test_what_was_measured_before_ctrl_c_is_kept():
    row = matmul.matmul_row(matmul.Shape(8, 8, 8), [1.0], None)

    def rows():
        yield row
        raise KeyboardInterrupt

    record = verbs.finished(Header("matmul", "test", jax.devices()[:1]), rows())
    assert record.rows == [row]
    assert any(note.startswith(INTERRUPTED) for note in record.notes)
    assert any("no peak is known of cpu" in note for note in record.notes)


def test_a_shape_that_does_not_fit_is_a_row(monkeypatch):
    def full(shape, *rest):
        if shape.m == 16:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\n more")
        return matmul.matmul_row(shape, [1.0], None)

    monkeypatch.setattr(matmul, "full_row", full)
    rows = list(matmul.sweep_shapes([matmul.Shape(m, 8, 8) for m in (8, 16, 32)], jax.devices()[0], None, QUICK))
    assert [r.error for r in rows] == [None, "RESOURCE_EXHAUSTED: Out of memory more", None]


def test_what_is_too_large_is_a_row_and_the_others_are_there():
    device = jax.devices()[0]
    rows = list(matmul.sweep_shapes([matmul.Shape(8, 8, 8), matmul.Shape(10**7, 10**7, 8)], device, None, QUICK))
    assert [r.error is None for r in rows] == [True, False]
    rows = list(memory.copies([4096, 10**15], device, QUICK))
    assert [r.error is None for r in rows] == [True] * 3 + [False] * 3
    rows = list(collectives.measure(make_mesh(data=8), [4096, 10**15], "float32", QUICK, kinds=("all-reduce",)))
    assert [r.error is None for r in rows] == [True, False]


def test_an_error_after_some_rows_keeps_them():
    row = matmul.matmul_row(matmul.Shape(8, 8, 8), [1.0], None)

    def rows():
        yield row
        raise RuntimeError("the device is gone")

    record = verbs.finished(Header("matmul", "test", jax.devices()[:1]), rows())
    assert record.rows == [row]
    assert any(note.startswith(FAILED) and "the device is gone" in note for note in record.notes)
    with pytest.raises(RuntimeError, match="at once"):
        verbs.finished(Header("matmul", "test", jax.devices()[:1]), at_once())


def at_once():
    raise RuntimeError("at once")
    yield
