"""The trainer's step, timed and taken apart; sweeps in fresh processes; the command line's refusals."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from support import make_config

from jaxscale.bench import checkpoint, loader, startup, sweep
from jaxscale.bench.profile import COMPUTE, PARTS, Event, classify, split_device, split_time
from jaxscale.bench.record import BenchRecord, Clock, Device, Peak, read_record, write_record
from jaxscale.bench.step import Plan, bench_step, step_flops
from jaxscale.compiled import hlo
from jaxscale.compiled.aot import compile_on
from jaxscale.config import shipped_configs
from jaxscale.parallel.mesh import start_devices

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
MODEL = {"vocab_size": 257, "num_layers": 2, "embed_dim": 64, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 128}


def small(mesh=None, **sections):
    return make_config(
        MESH if mesh is None else mesh, model=MODEL, runtime={"simulated_devices": 8 if mesh is None else 1}, **sections
    )


@pytest.fixture(scope="module")
def measured_step(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    plan = Plan(steps=6, burn_in=2, ceilings=True, profile=folder)
    return bench_step(small(step={"remat": "full"}), plan, say=lambda line: None)


def test_a_step_is_measured_compiled_and_predicted(measured_step):
    figures = measured_step.rows[0].figures
    assert len(figures["step_seconds"].samples) == 6
    tokens = [8 * 32 / s for s in figures["step_seconds"].samples]
    assert figures["tokens_per_second"].samples == pytest.approx(tokens)
    assert figures["compile_seconds"].value > 0
    assert figures["compiled_memory_bytes"].basis == "compiled"
    assert figures["compiled_matmul_flops"].value > 0
    assert measured_step.peak
    for convention in ("causal", "palm"):
        flops, seconds = figures[f"model_flops_{convention}"].value, figures["step_seconds"].samples
        mfu = sorted(flops / s / measured_step.peak.flops_per_second for s in seconds)
        assert sorted(figures[f"mfu_{convention}"].samples) == pytest.approx(mfu)
        assert figures[f"hfu_{convention}"].value > figures[f"mfu_{convention}"].value  # remat computes again
    assert figures["mfu_palm"].value > figures["mfu_causal"].value
    for name in ("share_of_best_matmul", "share_of_model_shaped_peak"):  # such small matmuls are faster in a step
        withheld = any(note.startswith(f"{name} withheld in 1 of ") for note in measured_step.notes)
        assert withheld != (name in figures)
        assert withheld or 0 < figures[name].value <= 1
    assert measured_step.mesh == MESH
    assert "causal" in measured_step.convention or "mask" in measured_step.convention


def test_a_profile_tells_where_the_time_goes(measured_step):
    parts = {r.labels["part"]: r.figures for r in measured_step.rows if "part" in r.labels}
    assert set(parts) == {*PARTS, "hidden communication"}
    assert sum(parts[p]["share"].value for p in PARTS) == pytest.approx(1)
    step = measured_step.rows[0].figures["step_seconds"].value
    assert sum(parts[p]["seconds"].value for p in PARTS) == pytest.approx(step)
    for part in ("matmul", "attention", "other compute", "exposed communication"):
        assert parts[part]["share"].value > 0, part


def test_without_recompute_hardware_flops_are_the_models():
    config = small(step={"remat": "none"})
    for convention in ("causal", "palm"):
        model, hardware = step_flops(config, MESH, 8, convention)
        assert model == hardware
    model, hardware = step_flops(small(step={"remat": "full"}), MESH, 8, "causal")
    assert 1.1 < hardware / model < 4 / 3


def test_instructions_are_told_apart():
    config = small()
    devices = start_devices(config.runtime)
    text = compile_on(config, devices, documents=False).kept.hlo
    program = hlo.parse(text)
    parts = classify(program)
    opcodes = {i.name: i.opcode for c, _ in program.running() for i in c}
    assert {p for name, p in parts.items() if opcodes[name] == "all-reduce"} == {"communication"}
    assert {p for name, p in parts.items() if opcodes[name] == "dot"} == {"matmul", "attention"}
    assert "while" not in {opcodes[name] for name in parts}


def test_time_is_split_as_it_was():
    """Seconds: matmul 0-10, attention 5-15 beside it, communication 12-25 (3 hidden), nothing until 30, other 30-34."""
    spans = {"matmul": (0, 10), "attention": (5, 15), "communication": (12, 25), "other compute": (30, 34)}
    events = [Event("0", part, start * 1e9, end * 1e9) for part, (start, end) in spans.items()]
    found = split_device(events)
    assert found == pytest.approx({
        "matmul": 7.5, "attention": 7.5, "other compute": 4, "exposed communication": 10, "hidden communication": 3,
        "host and data wait": 5,
    })  # fmt: skip
    assert sum(found[p] for p in PARTS) == pytest.approx(34)
    twice = split_time(events + [Event("1", e.part, e.start, e.end) for e in events if e.part in COMPUTE])
    assert twice["matmul"] == pytest.approx(7.5)
    assert twice["exposed communication"] == pytest.approx(5)  # the other device has none


def test_loading_and_saving(stdlib, tmp_path):
    config = small(data={"kind": "tokens", "path": str(stdlib)})
    devices = start_devices(config.runtime)
    (row,) = loader.load_rows(config, devices, batches=5)
    assert len(row.figures["tokens_per_second"].samples) == 5
    rows = {r.labels["part"]: r.figures for r in checkpoint.measure(config, devices, tmp_path, repeats=3)}
    assert set(rows) == {
        "save, blocking",
        "save, copies in the next step",
        "save, in the background",
        "save, whole",
        "restore",
    }
    assert len(rows["restore"]["seconds"].samples) == 3
    assert rows["save, whole"]["bytes"].value > 3 * 4 * 100_000  # parameters and two moments
    assert not list(tmp_path.iterdir())  # what was written for the measurement is gone


# --- processes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Without LLVM's optimizations in the processes that tests start, as in conftest.py in this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    values = small({"data": 1}).model_dump(mode="json", exclude_unset=True)
    values["runtime"] |= {"compilation_cache": None}
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_failed_run_is_a_row_and_the_others_are_kept(config_file, tmp_path):
    grid = sweep.Grid(name="test", config=str(config_file), vary={"data.batch_size": [4], "mesh.tensor": [1, 3]})
    options, said = ["--steps", "3", "--no-ceilings"], []
    for _ in range(2):
        found = list(sweep.sweep(grid, tmp_path, ["data.seq_len=16"], options, say=said.append))
        (good, kept), (bad, none) = found
        assert good.figures["step_seconds"].samples == kept.rows[0].figures["step_seconds"].samples
        assert good.labels == {"data.batch_size": 4, "mesh.tensor": 1, "devices": 1}
        assert "needs 3 devices and there are 1" in bad.error
        assert none is None
    assert [line for line in said if line.startswith("1/2")] == [
        "1/2 data.batch_size=4 mesh.tensor=1", "1/2 data.batch_size=4 mesh.tensor=1: kept from before",
    ]  # fmt: skip
    assert said.count("2/2 data.batch_size=4 mesh.tensor=3") == 2  # what failed is tried again
    record = sweep.summary(grid, found, ["test"])
    assert [r.labels["mesh.tensor"] for r in record.rows] == [1, 3]
    assert [r.error is None for r in record.rows] == [True, False]
    with pytest.raises(ValueError, match=r"none of the 1 runs of test came through; the first: .*3 devices"):
        sweep.summary(grid, found[1:], ["test"])


def test_ideal_is_the_first_runs_rate_times_the_devices(config_file):
    def row(devices, rate):
        figures = {"tokens_per_second": sweep.Figure(value=rate, unit="tokens/s")}
        return sweep.Row(labels={"devices": devices}, figures=figures)

    rows = [row(4, 300.0), row(1, 100.0), sweep.Row(labels={}, error="no")]
    grid = sweep.Grid(name="test", config=str(config_file), runs=[{}], ideal="strong")
    found = sweep.with_ideal(grid, rows, shared_cores=False)
    assert [r.figures["ideal_tokens_per_second"].value for r in found[:2]] == [400.0, 100.0]
    shared = sweep.with_ideal(grid, rows, shared_cores=True)
    assert [r.figures["ideal_tokens_per_second"].value for r in shared[:2]] == [100.0, 100.0]


def test_ideal_is_of_the_same_work(config_file):
    def row(devices, width, rate):
        figures = {"tokens_per_second": sweep.Figure(value=rate, unit="tokens/s")}
        return sweep.Row(labels={"devices": devices, "model.embed_dim": width, "mesh.data": devices}, figures=figures)

    grid = sweep.Grid(name="test", config=str(config_file), runs=[{}], ideal="strong")
    rows = [row(1, 256, 1000.0), row(2, 256, 1500.0), row(1, 1024, 100.0), row(2, 1024, 180.0)]
    found = sweep.with_ideal(grid, rows, shared_cores=False)
    assert [r.figures["ideal_tokens_per_second"].value for r in found] == [1000.0, 2000.0, 100.0, 200.0]


def made_record(peak, *, platform="cpu", dtype="float32"):
    return BenchRecord(
        kind="step", name="x", time="2026-11-21T10:00:00+00:00", device=Device(platform=platform, kind="x", count=1),
        peak=Peak(flops_per_second=peak, source="x"), config={"step": {"compute_dtype": dtype}}, rows=[],
        clock=Clock(source="x"),
    )  # fmt: skip


def test_utilization_is_against_one_peak_where_each_run_measured_its_own():
    row = sweep.Row(figures={"mfu_causal": sweep.Figure(value=0.4, unit="share", samples=[0.4, 0.5])})
    one, two = made_record(1e11), made_record(2e11)
    scaled = sweep.against(two, row, one).figures["mfu_causal"]
    assert (scaled.value, scaled.samples) == (0.2, [0.2, 0.25])
    for own in (made_record(1e11, platform="gpu"), made_record(1e11, dtype="bfloat16"), None):
        assert sweep.against(two, row, own) == row  # a datasheet's peak, or one of another dtype


def test_rows_follow_from_the_whole_config(config_file, tmp_path):
    """A run file that changed makes other runs, whatever its name."""
    copy = tmp_path / "run.yaml"
    copy.write_text(config_file.read_text())
    grid = sweep.Grid(name="test", config=str(copy), vary={"seed": [0, 1]})
    names = {sweep.identity(grid, sweep.overrides_of(grid, run, []), []) for run in sweep.runs_of(grid)}
    assert len(names) == 2  # a key without a dot is an override in `vary`
    copy.write_text(copy.read_text().replace("num_layers: 2", "num_layers: 3"))
    assert not names & {sweep.identity(grid, sweep.overrides_of(grid, run, []), []) for run in sweep.runs_of(grid)}


def test_a_damaged_row_is_measured_again(tmp_path):
    path = write_record(made_record(1e11), tmp_path / "a.json")
    assert sweep.kept(path) is None  # no row in it
    path.write_text(path.read_text()[:50])
    assert sweep.kept(path) is None
    assert sweep.kept(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no keys"),
        ("name: [", "is no grid, which is YAML"),
        ("{name: a, config: quickstart}", "either vary"),
        ("{name: a/b, config: quickstart, vary: {seed: [1]}}", "has a slash"),
        ("{name: a, config: quickstart, vary: {seed: []}}", "vary.seed has no value"),
        ("{name: a, config: quickstart, runs: [{seed: 1}]}", "seed has no dot"),
        ("{name: a, config: nowhere, vary: {seed: [1]}}", "nowhere"),
        ("{name: a, config: quickstart, surprise: 1, vary: {seed: [1]}}", "surprise"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(tmp_path, text, said):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        sweep.read_grid(str(path))


@pytest.mark.parametrize("name", sorted(path.stem for path in (shipped_configs() / "grids").glob("*.yaml")))
def test_shipped_grids_name_runs_that_can_be(name):
    from jaxscale.config import load_config

    grid = sweep.read_grid(name)
    for run in sweep.runs_of(grid):
        config = load_config(grid.config, sweep.overrides_of(grid, run, []))
        assert config.mesh.sizes(config.runtime.simulated_devices)


def test_start_up_has_parts_that_add_up(config_file):
    rows = {}
    for row in startup.measure(str(config_file), [], repeats=1, say=lambda line: None):
        rows.setdefault(row.labels["cache"], {})[row.labels["part"]] = row.figures["seconds"].value
    for parts in rows.values():
        assert set(parts) == set(startup.PARTS)
        assert sum(v for k, v in parts.items() if k != "all") == pytest.approx(parts["all"])
        assert all(v >= 0 for v in parts.values()), parts
    with pytest.raises(ValueError, match="mesh"):
        list(startup.measure(str(config_file), ["mesh.tensor=3"], repeats=1, say=lambda line: None))


def run_cli(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", "jaxscale.cli", "bench", *map(str, arguments)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip


def test_a_benchmark_from_the_command_line(jaxscale_here, config_file, tmp_path):
    done = run_cli("step", config_file, "--steps", 3, "--no-ceilings", "-o", tmp_path / "a.json")
    assert done.returncode == 0, done.stderr
    assert "tokens per second" in done.stdout
    record = read_record(tmp_path / "a.json")
    assert record.command[:3] == ["jaxscale", "bench", "step"]
    other = jaxscale_here("bench", "step", config_file, "--steps", 3, "--no-ceilings", "-o", tmp_path / "b.json")
    assert other.returncode == 0, other.stderr
    compared = jaxscale_here("bench", "compare", tmp_path / "a.json", tmp_path / "b.json", "--all")
    assert compared.returncode == 0, compared.stderr
    assert "step seconds" in compared.stdout
    wrong = json.loads((tmp_path / "b.json").read_text()) | {"schema_version": 99}
    (tmp_path / "b.json").write_text(json.dumps(wrong))
    refused = jaxscale_here("bench", "compare", tmp_path / "a.json", tmp_path / "b.json")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert "has schema 99" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["matmul", "--shape", "12x3"], "--shape 12x3 is not MxKxN"),
        (["matmul", "--shape", "8x8x8", "--dtype", "bf16"], "--dtype bf16"),
        (["matmul", "--shape", "8x8x8", "--search"], "give one of them"),
        (["matmul", "--model", "quickstart", "--mesh", "tensor=3"], "3 shards of kv_heads"),
        (["step", "quickstart", "--profile", "/proc/nowhere"], "cannot write to /proc/nowhere"),
        (
            ["collectives", "--mesh", "data=2,nope=4", "--platform", "cpu"],
            "no axis 'nope'; there are replica, pipeline, data, fsdp, expert, context, tensor",
        ),
        (["attention", "--heads", "4", "--kv-heads", "3"], "--heads 4 is not a multiple of --kv-heads 3"),
        (["attention", "--context", "4", "--seq-len", "100", "--platform", "cpu"], "is not divisible by 2 * 4"),
        (["sweep", "nothing-there"], "context, experts, strong-scaling, weak-scaling, width"),
        (["step", "quickstart", "data.path=/nowhere"], "/nowhere"),
        (["memory", "-o", "/proc/nowhere/x.json"], "cannot write to /proc/nowhere/x.json"),
        (["compare", "/nowhere/a.json", "/nowhere/b.json"], "/nowhere/a.json"),
        (["checkpoint", "quickstart", "--folder", "/nowhere"], "is no directory"),
    ],
)
def test_refusals_are_one_line(jaxscale_here, arguments, said):
    check_refusal(jaxscale_here("bench", *arguments), said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["matmul", "--platform", "tpu", "--shape", "8x8x8"], "JAX finds no such device"),
        (["matmul", "--platform", "gpu", "--shape", "8x8x8"], "JAX finds no such device"),
        (["collectives", "--platform", "cpu"], "give --devices 8"),
    ],
)
def test_devices_that_are_not_here_are_refused_in_one_line(arguments, said):
    """In a process where JAX has not looked for devices yet."""
    check_refusal(run_cli(*arguments), said)


def check_refusal(done, said):
    assert done.returncode == 2, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
