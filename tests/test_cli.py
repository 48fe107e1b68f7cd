"""The verbs as a person types them: what they print, what they write, and how a run is stopped and gone on with."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from jaxscale import cli
from jaxscale.config import load_config
from jaxscale.files.jsonl import read_records

MODEL = {"vocab_size": 257, "num_layers": 1, "embed_dim": 32, "num_heads": 2, "mlp_dim": 64}


def run_file(directory: Path, dataset: Path, **sections) -> Path:
    values = {
        "name": "tiny", "out": str(directory / "run"), "steps": 3, "model": MODEL,
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        "data": {"path": str(dataset), "batch_size": 8, "seq_len": 32},
        "step": {"compute_dtype": "float32", "remat": "none"},
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant"}, "metrics": {"tensorboard": False},
        "evaluation": {"batches": 1}, "runtime": {"platform": "cpu", "compilation_cache": None},
    }  # fmt: skip
    path = directory / "tiny.yaml"
    path.write_text(yaml.safe_dump(values | sections))
    return path


@pytest.fixture
def run(capfd, monkeypatch):
    """`jaxscale ...` in this process: its stdout, after exit code 0 and nothing on stderr."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["jaxscale", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capfd.readouterr()
        assert not exit.value.code, err
        assert not err
        return out

    return call


# --- help, version, show --------------------------------------------------------------------------------------


def test_help_names_the_verbs(run):
    out = run("--help")
    assert all(verb in out for verb in ("train", "show", "generate", "data"))
    assert "prepare" in run("data", "--help")
    assert "section.key=value" in run("train", "--help")


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_no_verb_is_answered_with_the_help(capsys, monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["jaxscale", *arguments])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 2
    assert "Usage: " in capsys.readouterr().out


def test_version_names_package_jax_and_devices(run):
    assert re.fullmatch(r"jaxscale \d+\.\d+\S*, jax \d+\.\d+\S*, 8 x cpu\n", run("--version"))


def test_show_config_counts_and_layout(run):
    out = run("show", "llama3.1-8b", "--devices", "64", "steps=7")
    config, _, tables = out.partition("Parameters, without vocabulary padding")
    assert yaml.safe_load(config) == load_config("llama3.1-8b", ["steps=7"]).model_dump(mode="json")
    assert "8,030,261,248" in tables
    assert "fsdp=64 (64 devices)" in tables
    row = next(line for line in tables.splitlines() if "embedding" in line and "128256, 4096" in line)
    cells = [cell.strip() for cell in re.split("[│┃]", row)[1:-1]]
    name, axes, spec, shape, size, device_shape, device_size = cells
    assert (name, axes, shape, device_shape) == ("embedding", "vocab, embed", "128256, 4096", "128256, 64")
    assert "'fsdp'" in spec
    assert int(size.replace(",", "")) == 128256 * 4096 * 4 == 64 * int(device_size.replace(",", ""))


def test_show_says_what_an_open_axis_was_taken_for(run):
    assert "taken as 1 here; --devices N says how many" in " ".join(run("show", "gpt2-124m").split())


def test_show_needs_no_device_of_its_mesh(run):
    assert "fsdp=128, tensor=8 (1024 devices)" in run("show", "llama3.1-405b")


# --- from text to text ----------------------------------------------------------------------------------------


def test_story(run, tmp_path, monkeypatch):
    """Prepare, train with a sample, train on, generate on another mesh."""
    monkeypatch.chdir(tmp_path)
    for i in range(12):
        Path(f"text-{i}.txt").write_text(f"def f{i}(x):\n    return x + {i}\n" * 40)
    out = run("data", "prepare", "--text", "text-*.txt", "--validation-fraction", "0.25", "--out", "data/text")
    assert "train on them with data.path=" in out
    assert "already prepared" in run(
        "data", "prepare", "--text", "text-*.txt", "--validation-fraction", "0.25", "--out", "data/text"
    )
    path = run_file(tmp_path, Path("data/text"), out=None)
    out = run("train", path, "--sample", "def ")
    for words in (
        "mesh    data=2, fsdp=2, tensor=2 (8 devices) of cpu",
        "steps 1 to 3",
        "validation loss",
        "tokens/s, measured",
        "MFU, measured",
        "its peak",
        "its convention",
        "A continuation of 'def '",
        "jaxscale generate runs/tiny",
        "jaxscale train runs/tiny/config.yaml steps=6",
    ):
        assert words in out, words
    directory = Path("runs/tiny")
    assert {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "loss.png",
        "checkpoints",
        "tokenizer-identity.json",
    } <= {p.name for p in directory.iterdir()}
    assert load_config(directory / "config.yaml") == load_config(path)
    about = json.loads((directory / "environment.json").read_text())
    assert about["command"][1:] == ["train", str(path), "--sample", "def "]
    assert about["devices"]["count"] == 8
    assert {"jax", "flax", "orbax-checkpoint"} <= set(about["versions"])

    out = run("train", "runs/tiny/config.yaml", "steps=5")  # as the last line said, with another number
    assert "resuming from step 3 of runs/tiny" in out
    assert [r["step"] for r in read_records(directory / "metrics.jsonl") if r["kind"] == "train"] == [1, 2, 3, 4, 5]

    arguments = [
        "generate",
        "runs/tiny",
        "--prompt",
        "def f",
        "--prompt",
        "x",
        "--max-new-tokens",
        5,
        "--temperature",
        0,
    ]
    out = run(*arguments)
    assert out.startswith("def f")
    assert "\nx" in out
    assert run(*arguments, "mesh={tensor: 2, fsdp: 4}") == out, "the same on another mesh"


# --- Ctrl-C ---------------------------------------------------------------------------------------------------


# two devices, and LLVM's optimizations left out, as in conftest.py
QUICK = {"PYTHONUNBUFFERED": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
SMALL = {"mesh": {"data": 2}, "runtime": {"platform": "cpu", "simulated_devices": 2, "compilation_cache": None}}


class Training:
    """`jaxscale train` as a process of its own."""

    def __init__(self, *arguments: object):
        code = "import sys; from jaxscale.cli import main; sys.argv[0] = 'jaxscale'; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", code, "train", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | QUICK,
        )

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def wait_for(self, path: Path, lines: int) -> None:
        """Until `path` has that many lines."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            assert self.process.poll() is None, self.process.communicate()
            if path.exists() and len(path.read_text().splitlines()) >= lines:
                return
            time.sleep(0.02)
        raise AssertionError(f"{path} has not {lines} lines after two minutes")

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_resume(run, stdlib, tmp_path):
    path = run_file(tmp_path, stdlib, steps=1_000_000, **SMALL)
    metrics = tmp_path / "run" / "metrics.jsonl"
    with Training(path) as training:
        training.wait_for(metrics, 5)
        training.interrupt()
        code, out, err = training.end()
    assert code == 130, err
    assert "Traceback" not in out + err
    said = re.search(r"^error: stopped after step (\d+); the same command resumes from there \((.*)\)$", err, re.M)
    assert said, err
    assert said[2] == str(tmp_path / "run")
    assert "stopping after this step; Ctrl-C again leaves at once" in err
    step = int(said[1])
    assert step >= 5
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdecimal()] == [str(step)]
    recorded = [r["step"] for r in read_records(metrics) if r["kind"] == "train"]
    assert recorded == list(range(1, step + 1)), "every step that was done is recorded"

    out = run("train", path, f"steps={step + 2}")
    assert f"resuming from step {step} of {tmp_path / 'run'}" in out
    recorded = [r["step"] for r in read_records(metrics) if r["kind"] == "train"]
    assert recorded == list(range(1, step + 3))


def test_second_ctrl_c_leaves_at_once(stdlib, tmp_path):
    """While a step is being compiled the first one waits for it; the second does not."""
    path = run_file(
        tmp_path,
        stdlib,
        steps=10,
        model=MODEL | {"num_layers": 48},
        step={"remat": "full", "unroll_layers": True},
        **SMALL,
    )
    with Training(path) as training:
        training.wait_for(tmp_path / "run" / "environment.json", 1)  # written before the first step
        time.sleep(0.5)
        training.interrupt()
        time.sleep(0.5)
        assert training.process.poll() is None, "the first one lets the step finish"
        training.interrupt()
        start = time.monotonic()
        code, _, err = training.end()
    assert time.monotonic() - start < 5
    assert code == -signal.SIGINT
    assert "Traceback" not in err
    assert read_records(tmp_path / "run" / "metrics.jsonl") == []
