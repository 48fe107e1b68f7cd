"""Eight simulated CPU devices for every test, and one rule for all: the partitioner never gives up."""

import os
import signal
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest
from browser import driver  # noqa: F401  a fixture

from jaxscale.parallel.mesh import give_threads

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a shell: children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Half of the suite would be waiting for XLA's CPU code generator. Later versions of jax abort on this flag.
FLAGS = os.environ.get("XLA_FLAGS")
if jax.__version_info__[:2] == (0, 10):
    os.environ["XLA_FLAGS"] = f"{FLAGS or ''} --xla_cpu_use_fusion_emitters=false".strip()

give_threads(8)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)  # LLVM's: half of the suite would be waiting for them
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".pytest_cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
assert jax.device_count() == 8  # now, before a run of a test asks for fewer
os.environ.pop("XLA_FLAGS", None)  # XLA has read it: no child, such as a compiler for TPUs, inherits it
if FLAGS is not None:
    os.environ["XLA_FLAGS"] = FLAGS

GAVE_UP = "Involuntary full rematerialization"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """XLA says on stderr when it replicates a tensor because it found no way to reshard it: that fails the test."""
    report = yield
    if report.when == "call" and report.passed and GAVE_UP in report.capstderr:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: XLA replicated a tensor:\n{report.capstderr}"
    return report


@pytest.fixture(scope="session")
def stdlib(tmp_path_factory) -> Path:
    """Real text: a dataset of byte tokens from part of the standard library."""
    import json
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
