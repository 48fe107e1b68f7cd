"""`compile`, `plan`, `chips` and `train --executable` as a person types them.

A fresh process asks where that is what is tested: noise on stderr, crashes, Ctrl-C, two at one time, a file for another
process. The other questions are asked in this process; their compiles run in a child in any case.

The compiles are real: libtpu's for TPU topologies, NVIDIA's for GPU ones, with no such device. They run where the
extras aot-tpu and aot-gpu are installed (CI installs both on one Python).
"""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from jaxscale.compiled.child import last_words
from jaxscale.compiled.libtpu import older_libtpu
from jaxscale.config import load_config
from jaxscale.process.quiet import DRIVERS

TPU = pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the aot-tpu extra")
GPU = pytest.mark.skipif(find_spec("jax_cuda13_plugin") is None, reason="needs the aot-gpu extra")
MODEL = {"vocab_size": 1000, "num_layers": 2, "embed_dim": 256, "num_heads": 4, "num_kv_heads": 2, "head_dim": 128,
         "mlp_dim": 512}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A home of its own, where compiled programs are kept: the second question is answered from there."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def run_file(tmp_path):
    def write(**sections) -> Path:
        values = {
            "name": "tiny", "out": str(tmp_path / "run"), "steps": 3, "model": MODEL, "mesh": {"fsdp": -1},
            "data": {"kind": "synthetic", "batch_size": 16, "seq_len": 128}, "step": {"remat": "full"},
            "metrics": {"tensorboard": False},
        }  # fmt: skip
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(values | sections))
        return path

    return write


@pytest.fixture
def jaxscale(jaxscale_here, home, monkeypatch):
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
        out = jaxscale_here(*arguments)
        assert out.returncode == code, (out.returncode, out.stdout[-3000:], out.stderr[-3000:])
        return out

    return call


@pytest.fixture
def process(home):
    def call(*arguments: object, code: int = 0) -> subprocess.CompletedProcess:
        program = "from jaxscale.cli import main; main()"
        out = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=500,
            env=os.environ | {"HOME": str(home), "COLUMNS": "160"},
        )  # fmt: skip
        assert out.returncode == code, (out.returncode, out.stdout[-3000:], out.stderr[-3000:])
        return out

    return call


def refused(out: subprocess.CompletedProcess) -> str:
    assert out.stderr.startswith("error: "), out.stderr
    assert out.stderr.count("\n") == 1, out.stderr
    return out.stderr


# --- without a compiler ---------------------------------------------------------------------------------------


def test_chips_prints_every_chip_with_sources(process):
    out = process("chips").stdout
    assert all(name in out for name in ("v4", "v5e", "v5p", "v6e", "tpu7x", "a100", "h100", "h200", "b200", "t4"))
    assert "scaling book" in out
    assert "datasheet" in out


def test_plan_ranks_says_what_binds_and_why_others_are_left_out(jaxscale, tmp_path):
    best = tmp_path / "best.yaml"
    out = jaxscale("plan", "llama3.1-8b", "--topology", "v6e:4x4", "--batch-tokens", 16 * 8192, "--budget", "1mol",
                   "-o", best).stdout  # fmt: skip
    assert "tokens/s" in out
    assert "compute" in out
    assert "memory is short by" in out
    assert "days on 16 chips, predicted" in out
    config = load_config(best)  # a config that train takes as it is
    assert config.data.batch_size == 16
    assert config.mesh.sizes(16)


@pytest.mark.skipif(any(Path(name).exists() for name in DRIVERS), reason="there is a driver, which may speak")
def test_plugins_without_a_driver_are_not_heard(process):
    out = process("--version")
    assert "jax " in out.stdout
    assert out.stderr == ""


def test_plan_as_json(jaxscale):
    found = json.loads(jaxscale("plan", "llama3.1-8b", "--topology", "h100:4x8", "--json", "--rows", 3).stdout)
    assert len(found["choices"]) == 3
    assert found["choices"][0]["step_seconds"] <= found["choices"][1]["step_seconds"]
    assert all(c["basis"] == "predicted" for c in found["choices"])
    assert all(c["interval"]["low"] < c["step_seconds"] < c["interval"]["high"] for c in found["choices"])


def test_a_plan_in_which_nothing_fits_is_an_answer(jaxscale):
    out = jaxscale("plan", "llama3.1-405b", "--topology", "v5e:2x2", code=1).stdout
    assert "DOES NOT FIT on v5e:2x2" in out
    assert "memory is short by" in out
    found = json.loads(jaxscale("plan", "llama3.1-405b", "--topology", "v5e:2x2", "--json", code=1).stdout)
    assert found["choices"] == []
    assert found["left_out"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "llama3.1-8b"], "--topology is missing"),
        (["plan", "llama3.1-8b", "--topology", "v5p:3x3"], "the nearest are"),
        (["plan", "llama3.1-8b", "--topology", "v5p:4x4x4", "--batch-tokens", "1000"], "multiple of data.seq_len"),
        (["plan", "llama3.1-8b", "--topology", "v5p:4x4x4", "--budget", "much"], "no number of FLOPs"),
        (["plan", "llama3.1-8b", "--topology", "v5p:4x4x4", "-o", "/nowhere/x.yaml"], "cannot write /nowhere/x.yaml"),
        (["compile", "llama3.1-8b", "--topology", "v5p:4x4x4", "--save", "/nowhere/x"], "cannot write /nowhere/x"),
        (["compile", "llama3.1-8b", "--topology", "tpu9:1"], "no chip 'tpu9'"),
    ],
)
def test_bad_questions_are_one_line(jaxscale, arguments, says):
    assert says in refused(jaxscale(*arguments, code=2))


def test_a_crash_is_heard_where_stderr_is_kept_away():
    code = (
        "import os\nfrom jaxscale.process.quiet import quiet\nwith quiet():\n    os.write(2, b'noise')\n    os.abort()"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode != 0
    assert "Fatal Python error: Aborted" in out.stderr
    assert "noise" not in out.stderr


@pytest.mark.skipif(find_spec("libtpu") is not None, reason="the compiler is here")
def test_a_missing_tpu_compiler_says_what_to_install(jaxscale):
    out = jaxscale("compile", "llama3.1-8b", "--topology", "v5e:4x4", code=2)
    assert "pip install 'jaxscale[aot-tpu]'" in refused(out)


@pytest.mark.skipif(find_spec("jax_cuda13_plugin") is not None, reason="the compiler is here")
def test_a_missing_gpu_compiler_says_what_to_install(jaxscale):
    out = jaxscale("compile", "llama3.1-8b", "--topology", "h100:8", code=2)
    assert "pip install 'jaxscale[aot-gpu]'" in refused(out)
    assert "about 1 GB" in out.stderr


# --- with one -------------------------------------------------------------------------------------------------


def check_report(report: dict, *, chips: int) -> None:
    assert report["fits"]
    assert report["unknown_loops"] == []
    assert sum(report["memory"].values()) == report["memory_needed"]
    assert report["memory"]["optimizer state"] > report["memory"]["parameters"]
    assert 1 < (report["matmul_flops"] + report["attention_flops"]) / report["model_flops"] < 1.6  # full recompute
    assert report["attention_calls"] == [4, 2]  # the kernel is in the program; 2 layers, forward again for backward
    time = report["time"]
    assert time["overlapped"] <= time["best"] <= time["nothing_overlapped"]
    gathers = [s for s in report["sent"] if s["kind"] == "all-gather" and s["axes"] == ["fsdp"]]
    matrices = 2 * 256 * 512 + 2 * 256 * 256 + 3 * 256 * 512  # of a layer: q, out; k, v; gate, up, down
    head = 256 * 1024  # the unembedding, once
    assert sum(s["bytes"] for s in gathers) == pytest.approx((2 * 2 * matrices + head) * 2, rel=0.1)  # bf16
    assert report["tokens_per_second_per_chip"] * time["best"] * chips == pytest.approx(16 * 128)


@TPU  # on each Python, whose libtpu is another one
def test_compile_for_a_tpu_and_ask_again(jaxscale, process, run_file, tmp_path, home):
    """Splash attention and asynchronous all-gathers in the program; the second answer needs no compiler and no jax."""
    config, hlo = run_file(), tmp_path / "step.txt"
    out = process("compile", config, "--topology", "v6e:2x2", "--json", "--hlo", hlo)
    assert out.stderr == ""  # the compilers' noise stays away
    found = json.loads(out.stdout)
    assert found["report"]["basis"]["memory"] == "compiled"
    assert found["report"]["basis"]["time"] == "predicted"
    assert set(found["report"]["basis"]) <= set(found["report"])
    check_report(found["report"], chips=4)
    assert "splash" in hlo.read_text()
    assert any(s["asynchronous"] for s in found["report"]["sent"] if s["kind"] == "all-gather")
    assert not found["cached"]
    again = jaxscale("compile", config, "--topology", "v6e:2x2")
    assert "kept from an earlier compile" in again.stdout
    assert "fits, with" in again.stdout
    assert "MFU" in again.stdout
    (kept,) = (home / ".cache" / "jaxscale" / "compiled").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100] + b"damaged" + whole[107:])  # is compiled again, not believed
    assert "compiled in" in jaxscale("compile", config, "--topology", "v6e:2x2").stdout
    assert "kept from an earlier compile" in jaxscale("compile", config, "--topology", "v6e:2x2").stdout


@TPU
@pytest.mark.slow
def test_two_compiles_at_the_same_time(run_file, tmp_path):
    config, program = run_file(), "from jaxscale.cli import main; main()"
    command = [sys.executable, "-c", program, "compile", str(config), "--topology", "v5e:2x2", "--json"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env=os.environ | {"HOME": str(tmp_path / name)}) for name in ("a", "b")
    ]  # fmt: skip
    reports = []
    for process in both:
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
        assert err == ""
        reports.append(json.loads(out)["report"])
    assert reports[0]["memory"] == reports[1]["memory"]


@TPU
def test_a_compiler_that_dies_is_one_line(jaxscale, run_file, monkeypatch):
    """XLA ends the process over a flag that it does not know."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such_flag=1")
    told = refused(jaxscale("compile", run_file(), "--topology", "v5e:2x2", code=2))
    assert "the compiler for v5e:2x2 ended by " in told
    assert "--xla_no_such_flag" in told
    plan = refused(jaxscale("plan", run_file(), "--topology", "v5e:2x2", "--compile", 1, code=2))
    assert "--xla_no_such_flag" in plan
    verbose = jaxscale("compile", run_file(), "--topology", "v5e:2x2", "--verbose", code=2)
    assert verbose.stderr.count("\n") > 1
    assert verbose.stderr.splitlines()[-1].startswith("error: the compiler for v5e:2x2 ended by ")


@TPU
def test_ctrl_c_ends_a_compile_and_its_child_at_once(run_file, tmp_path):
    program = "from jaxscale.cli import main; main()"
    parent = subprocess.Popen(
        [sys.executable, "-c", program, "compile", str(run_file()), "--topology", "v5e:2x2"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while not (found := children.read_text().split()) or "jaxlib" not in Path(f"/proc/{found[0]}/maps").read_text():
        assert parent.poll() is None
        time.sleep(0.01)
    parent.send_signal(signal.SIGINT)
    out, err = parent.communicate(timeout=60)
    note = older_libtpu()
    assert (parent.returncode, out, err) == (130, f"{note}\n" if note else "", "error: stopped\n")
    assert not Path(f"/proc/{found[0]}").exists()


@pytest.mark.parametrize(
    ("stderr", "says"),
    [
        ("I0000 00:00:17.5 24 a.cc:1] noise\nF0000 00:00:17.6 24 flags.cc:2] Unknown flag: x\n    @ 0x7f stack\n",
         "Unknown flag: x"),
        ("Fatal Python error: Aborted\n\nThread 0x00 (most recent call first):\n  File \"a.py\", line 1 in f\n", ""),
        ("Traceback (most recent call last):\n  File \"a.py\", line 1\nKeyError: 'x'\n", "KeyError: 'x'"),
        ("", ""),
    ],
)  # fmt: skip
def test_last_words(stderr, says):
    assert last_words(stderr) == says


@TPU
@pytest.mark.slow
def test_out_of_memory_is_an_answer_with_what_would_fit(jaxscale, run_file):
    """Logits of 6 x 4096 tokens by 128k entries: too much at once, and not in chunks."""
    model = MODEL | {"vocab_size": 128_000, "num_layers": 1}
    config = run_file(model=model, data={"kind": "synthetic", "batch_size": 6, "seq_len": 4096}, mesh={"data": -1})
    out = jaxscale("compile", config, "--topology", "v5e:1x1", code=1).stdout
    assert "DOES NOT FIT" in out
    assert "too much" in out
    assert "logits" in out or "f32[" in out
    assert "tried loss.chunk=512" in out


@GPU
@pytest.mark.slow
def test_a_compiler_option_that_there_is_not_is_one_line(jaxscale, run_file):
    out = jaxscale(
        "compile", run_file(runtime={"compiler_options": {"xla_nope": True}}), "--topology", "h100:8", code=2
    )
    assert "runtime.compiler_options: " in refused(out)
    assert "xla_nope" in out.stderr


@GPU
@pytest.mark.slow
def test_compile_for_gpus(jaxscale, run_file, tmp_path):
    hlo = tmp_path / "step.txt"
    out = jaxscale("compile", run_file(), "--topology", "h100:8", "--json", "--hlo", hlo)
    check_report(json.loads(out.stdout)["report"], chips=8)
    assert "fmha" in hlo.read_text()  # cuDNN's attention


# --- executables ----------------------------------------------------------------------------------------------

SAVE_AND_TRAIN = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
from pathlib import Path
from jaxscale.compiled.aot import compile_on
from jaxscale.config import load_config
from jaxscale.training.executable import save_executable
from jaxscale.training.trainer import train
config = load_config(sys.argv[1])
built = compile_on(config, jax.devices(), documents=False)
save_executable(Path(sys.argv[2]), built.executable, config, jax.devices())
train(load_config(sys.argv[1], [f"out={sys.argv[3]}"]))
"""


def test_train_starts_from_an_executable_and_refuses_another_run_s(jaxscale, process, run_file, tmp_path, monkeypatch):
    """One process writes the file and trains without it, another one trains from the file."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # as in conftest.py
    runtime = {"platform": "cpu", "simulated_devices": 4, "compilation_cache": None}
    step = {"compute_dtype": "float32", "remat": "full"}
    config, file = run_file(runtime=runtime, step=step), tmp_path / "step.bin"
    subprocess.run([sys.executable, "-c", SAVE_AND_TRAIN, config, file, tmp_path / "plain"], check=True, timeout=500,
                   env=os.environ | {"PJRT_NPROC": "16"})  # fmt: skip
    same_mesh = ("mesh.fsdp=4", "mesh.data=1")  # what -1 stood for
    from_file = process("train", config, "--executable", file, f"out={tmp_path / 'from-file'}", *same_mesh)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
         if json.loads(line)["kind"] == "train"] for name in ("plain", "from-file")
    ]  # fmt: skip
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    assert "step 3" in from_file.stdout
    out = jaxscale("train", config, "--executable", file, "data.batch_size=32", code=2)
    assert "data.batch_size 16 there, 32 here" in refused(out)
    file.write_bytes(b"something else")
    assert "is no executable" in refused(jaxscale("train", config, "--executable", file, code=2))
