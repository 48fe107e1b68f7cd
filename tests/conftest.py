"""Eight simulated CPU devices for every test, and one rule for all: the partitioner never gives up."""

import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each of hundreds of children would parse all of JAX again: 3 s
os.environ.pop("COLUMNS", None)  # workers have it from the readline of the process that starts them: tables would fold

import jax
import pytest
from browser import driver  # noqa: F401  a fixture

from jaxscale import cli
from jaxscale.parallel.mesh import give_threads
from jaxscale.training import trainer

sys.dont_write_bytecode = False
ROOT = Path(__file__).parent.parent
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")  # gw0, gw1; empty where one process runs all
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a shell: children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Half of the suite would be waiting for XLA's CPU code generator. Later versions of jax abort on this flag.
FLAGS = os.environ.get("XLA_FLAGS")
ONE_PART = "--xla_cpu_parallel_codegen_split_count=1"  # small programs: cutting them up takes longer than it saves
if jax.__version_info__[:2] == (0, 10):
    os.environ["XLA_FLAGS"] = f"{FLAGS or ''} --xla_cpu_use_fusion_emitters=false {ONE_PART}".strip()

give_threads(8)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)  # LLVM's: half of the suite would be waiting for them
# a cache for each worker: jax writes an entry in place, and another process could read half of it
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".pytest_cache" / f"xla{WORKER}"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
gc.set_threshold(50_000, 20, 50)  # JAX's heap is large: a tenth of the suite would be looking for garbage in it
assert jax.device_count() == 8  # now, before a run of a test asks for fewer
os.environ.pop("XLA_FLAGS", None)  # XLA has read it: no child, such as a compiler for TPUs, inherits it
if FLAGS is not None:
    os.environ["XLA_FLAGS"] = FLAGS

# Tests of which a case took a second or more when `pytest tests --record-seconds` ran last. The default suite leaves
# out what took LONG seconds. Files that take longest start first: no worker begins on one when the other has nothing
# left.
RECORD = ROOT / "tests" / "seconds.json"
SECONDS: dict[str, float] = json.loads(RECORD.read_text())
LONG = 1.5
# Sweeps whose cases are alike and take seconds each. By default one in three runs, with the first; `make sweep` runs
# the others.
SWEEPS = {
    # abilities, blueprint, explain, interop
    "test_every_mesh_gives_the_same",
    "test_every_single_override_is_refused_or_predicted_as_it_is_traced",
    "test_the_rules_layouts_are_the_traced_programs",
    "test_gradients_and_steps_are_those_of_transformers",
    "test_logits_on_a_mesh",
    # models
    "test_splash_and_its_gradient_equal_the_reference",
    "test_splash_of_a_rank_equals_the_reference",
    "test_plain_blocks_are_attention_and_its_gradient",
    "test_experts_over_any_axes_that_split_tokens",
    "test_every_kind_of_router",
    "test_what_lies_in_rows_that_no_expert_has_reaches_nothing",
    "test_every_mesh_gives_the_gradients_of_one_device",
    "test_with_experts_too",
    # objectives, rollouts
    "test_chunks_microbatches_and_meshes",
    "test_chunks_and_microbatches_on_eight_devices_equal_one",
    "test_other_models_and_axes_sample_the_same",
    # predict, scaling
    "test_split_sequences_send_what_the_compiled_program_sends",
    "test_flops_and_bytes_are_the_compiled_program_s",
    "test_replicas_send_what_their_programs_do",
    "test_replicas_hold_what_their_programs_do",
    "test_intervals_hold_the_truth",
    "test_intervals_hold_the_truth_of_two_hundred_ladders",
    # training
    "test_every_factorisation_equals_one_device",
    "test_every_mesh_is_the_reference",
    "test_each_way_to_compute_the_step_is_the_reference",
    "test_each_way_to_compute_the_step_equals_the_plain_one",
    "test_a_step_in_one_piece_equals_one_device",
    "test_a_pipeline_equals_one_device",
    "test_stages_send_what_the_schedule_asks_for",
    "test_a_replica_trains_as_one_model_does_on_its_rows",
    "test_whatever_is_asked_for",
    "test_other_optimizers_keep_replicas_apart_too",
    "test_every_optimizer_learns_alike_on_a_mesh",
    "test_bfloat16_parameters_have_gradients_that_are_rounded_and_no_more",
    "test_a_bias_moves_once_a_step_towards_even_loads",
    "test_a_model_with_all_of_deepseek",
    "test_microbatches_are_one_batch",
    "test_resume_on_another_mesh_agrees",
}
WHOLE = "JAXSCALE_TESTS_WHOLE"  # was no path given?
GAVE_UP = "Involuntary full rematerialization"


# --- once in a process: what each of a hundred short runs would do again ----------------------------------------


def build_once(config, mesh, rules, *, model=None, build=trainer.build_on, kept={}):  # noqa: B006
    """The trainer's `build_on`: runs of one config share a program, which is traced and compiled once."""
    if model is not None:
        return build(config, mesh, rules, model=model)
    values = config.model_dump(mode="json", exclude={"name", "out", "checkpoint", "evaluation", "metrics", "watch"})
    key = (json.dumps(values), mesh)
    setup = kept.pop(key, None) or build(config, mesh, rules)
    kept[key] = setup  # the last used one at the end
    if len(kept) > 8:
        del kept[next(iter(kept))]
    return dataclasses.replace(setup, config=config)


trainer.build_on = build_once


def pytest_addoption(parser):
    parser.addoption("--first", action="store_true", help="of a test with many cases, the first alone")
    parser.addoption("--share", help="K/N: of the long tests only the share K of N, from 0, by their names")
    parser.addoption("--record-seconds", action="store_true", help="write tests/seconds.json anew")


def pytest_configure(config):
    if not WORKER:  # pytest-xdist gives its workers a path in any case
        whole = config.args_source is not pytest.Config.ArgsSource.ARGS
        os.environ[WHOLE] = "yes" if whole else ""
    if hasattr(config.option, "loadscopereorder"):  # of pytest-xdist, which would start with the most numerous files
        config.option.loadscopereorder = False


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before -m looks at marks, and after it has chosen
def pytest_collection_modifyitems(config, items):
    seen: Counter[str] = Counter()
    of_file: Counter[Path] = Counter()
    for item in items:
        name = function_of(item.nodeid)
        if item.originalname in SWEEPS and seen[name] % 3:
            item.add_marker("sweep")
        if os.environ[WHOLE] and SECONDS.get(name, 0) >= LONG:
            item.add_marker("long")
        seen[name] += 1
        of_file[item.path] += SECONDS.get(name, 0)
    items.sort(key=lambda item: -of_file[item.path])
    yield
    if config.option.share:
        items[:] = [item for item in items if in_share(item, config.option.share)]
    if config.option.first:
        items[:] = {function_of(item.nodeid): item for item in reversed(items)}.values()
        items.reverse()


def in_share(item: pytest.Item, share: str) -> bool:
    """Is a test quick, or of this share of the long ones? Of those in turns each case is for itself."""
    k, n = map(int, share.split("/"))
    turns, name = item.get_closest_marker("turns"), function_of(item.nodeid)
    if not turns and SECONDS.get(name, 0) < LONG:
        return True
    return zlib.crc32((item.nodeid if turns else name).encode()) % n == k


def function_of(nodeid: str) -> str:
    """`tests/a.py::test_b[case]` -> `a.py::test_b`."""
    return nodeid.split("[")[0].removeprefix("tests/")


def pytest_terminal_summary(terminalreporter, config):
    """The longest case of each test, where that is asked for. With pytest-xdist this process hears of all of them."""
    if not config.option.record_seconds:
        return
    cases, functions = Counter(), Counter()
    for report in (r for kind in ("passed", "failed", "") for r in terminalreporter.stats.get(kind, [])):
        cases[report.nodeid] += getattr(report, "duration", 0)
    for case, seconds in cases.items():
        functions[function_of(case)] = max(functions[function_of(case)], round(seconds, 1))
    found = {name: seconds for name, seconds in sorted(functions.items()) if seconds >= 1}
    RECORD.write_text(json.dumps(found, indent=1) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """XLA says on stderr when it replicates a tensor because it found no way to reshard it: that fails the test."""
    report = yield
    if report.when == "call" and report.passed and GAVE_UP in report.capstderr:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: XLA replicated a tensor:\n{report.capstderr}"
    return report


@pytest.fixture
def jaxscale_here(capfd, monkeypatch):
    """`jaxscale ...` in this process, which costs no interpreter: exit code, stdout and stderr, as of a process."""

    def call(*arguments: object) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["jaxscale", *map(str, arguments)])
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def stdlib(tmp_path_factory) -> Path:
    """Real text: a dataset of byte tokens from part of the standard library."""
    from email import __path__ as email_path

    from jaxscale.data.prepare import prepare
    from jaxscale.data.sources import text_source

    out = tmp_path_factory.mktemp("data") / "stdlib"
    prepare(
        text_source([f"{folder}/*.py" for folder in (*json.__path__, *email_path)]),
        "byte",
        out,
        validation_fraction=0.15,
        progress=lambda p: None,
    )
    return out
