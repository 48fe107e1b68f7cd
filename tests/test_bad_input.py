"""What a person can get wrong: one line that begins with `error:`, a non-zero exit, no traceback, and nothing lost."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from jaxscale import cli
from jaxscale.training.metrics import read_records

MODEL = {"vocab_size": 257, "num_layers": 1, "embed_dim": 32, "num_heads": 2, "mlp_dim": 64}
STEPS, EVERY = 4, 2


class Shell:
    """Runs `jaxscale ...` in this process; every answer is (exit code, stdout, stderr)."""

    def __init__(self, capfd, monkeypatch):
        self.capfd, self.monkeypatch = capfd, monkeypatch

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["jaxscale", *map(str, arguments)])
        self.capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as exit:
            assert exit.code is None or isinstance(exit.code, int)
            code = exit.code or 0
        out, err = self.capfd.readouterr()
        return code, out, err

    def good(self, *arguments: object) -> str:
        code, out, err = self(*arguments)
        assert code == 0, err
        return out

    def refused(self, *arguments: object) -> str:
        """The one line of an error; stdout is looked at for nothing but a traceback."""
        code, out, err = self(*arguments)
        assert code == 2, (code, out, err)
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        assert err.endswith("\n")
        assert "Traceback" not in out
        return err.strip()


@pytest.fixture
def shell(capfd, monkeypatch):
    return Shell(capfd, monkeypatch)


def run_file(directory: Path, dataset: Path, **sections) -> Path:
    values = {
        "name": "tiny", "out": str(directory / "run"), "steps": STEPS, "model": MODEL,
        "mesh": {"data": 2, "fsdp": 2, "tensor": 2},
        "data": {"path": str(dataset), "batch_size": 8, "seq_len": 32},
        "step": {"compute_dtype": "float32", "remat": "none"},
        "optimizer": {"learning_rate": 1e-2}, "metrics": {"tensorboard": False},
        "checkpoint": {"every": EVERY, "keep_last": 3}, "evaluation": {"batches": 1},
        "runtime": {"platform": "cpu", "compilation_cache": None},
    }  # fmt: skip
    path = directory / "tiny.yaml"
    path.write_text(yaml.safe_dump(values | sections))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, stdlib) -> Path:
    """A directory with a run file and a finished run of it, with checkpoints of steps 2 and 4; not to be changed."""
    directory = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["jaxscale", "train", str(run_file(directory, stdlib))])
        with pytest.raises(SystemExit) as exit:
            cli.main()
    assert not exit.value.code
    return directory


@pytest.fixture
def work(trained, tmp_path) -> Path:
    """A copy of the trained directory, its run file pointing into the copy."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "tiny.yaml", tmp_path / "run" / "config.yaml"):
        path.write_text(path.read_text().replace(str(trained), str(tmp_path)))
    return tmp_path


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_x(work, shell):
    print(shell("train", work / "tiny.yaml", "steps=6"))
    print(shell("train", work / "tiny.yaml", "steps=6"))
    print(shell("generate", work / "run", "--max-new-tokens", "4"))
    print(*snapshot(work))
    assert 0
