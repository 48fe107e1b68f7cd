"""Training, predictions and pages where the system is not Linux: without fcntl, resource, SIGUSR1, glibc and /proc.

A child process of Linux that lacks them stands for macOS and Windows. It shows that nothing here asks for them; it
cannot show how JAX itself behaves there.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT = """
import ctypes, os, signal, sys
import jax, orbax.checkpoint, tensorboardX, grain  # they know their systems themselves
import multiprocessing.popen_spawn_posix, tempfile, subprocess
sys.modules.pop("fcntl", None), sys.modules.pop("resource", None)
sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP"):
    delattr(signal, name)
for name in ("sched_getaffinity", "O_NOFOLLOW", "O_CLOEXEC", "pread", "killpg", "getuid", "fork"):
    delattr(os, name)
real = ctypes.CDLL
def CDLL(name, *rest, **more):
    if name is None:
        raise TypeError("the path should be a string")
    return real(name, *rest, **more)
ctypes.CDLL = CDLL
sys.argv = ["jaxscale", *sys.argv[1:]]
from jaxscale.cli import main
main()
"""
SMALL = [
    "steps=2", "checkpoint.every=2", "optimizer.warmup_steps=0", "evaluation.every=0", "metrics.tensorboard=false",
    "model.num_layers=1", "mesh.data=1", "mesh.fsdp=1", "mesh.tensor=1", "runtime.simulated_devices=1",
]  # fmt: skip


def without_linux(where: Path, *words: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT, *words],
        cwd=where,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HOME": str(where)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("elsewhere")


def test_a_run_trains_resumes_and_is_drawn(where):
    (where / "notes.txt").write_text("The tide was out, and the ship lay on the sand.\n" * 400)
    without_linux(where, "data", "prepare", "--text", "notes.txt", "--validation-tail", ".2", "--out", "data/notes")
    data = ["data.path=data/notes", "out=runs/notes", *SMALL, "data.batch_size=8", "evaluation.batches=1"]
    assert "cannot be locked" in without_linux(where, "train", "quickstart", *data)
    without_linux(where, "report", "runs/notes", "-o", "report.html")
    assert (where / "report.html").stat().st_size > 10_000


def test_it_is_predicted_and_explained(where):
    assert "MFU" in without_linux(where, "plan", "llama3.2-1b", "--topology", "h100:8")
    assert "w_up" in without_linux(where, "explain", "quickstart", "--compiler", "none")
    init = ["init", "--text", str(ROOT / "README.md"), "--machine", "h100:8", "--hours", "1"]
    assert "wrote run.yaml" in without_linux(where, *init)
