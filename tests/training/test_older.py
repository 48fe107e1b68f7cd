"""Runs that earlier versions wrote go on: `older/format-1.tar.xz` was trained for six steps by the first format's code.

Its parameters are bfloat16 and so are its moments and its average, which began at the initial weights.
"""

import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from support import Listener

from jaxscale import config as cfg
from jaxscale.parallel.mesh import start_devices
from jaxscale.training.build import build
from jaxscale.training.checkpoint import Checkpointer
from jaxscale.training.serve import restore_params
from jaxscale.training.step import trained_parameters
from jaxscale.training.trainer import train

# sums of absolute values as that code read them
SAVED = {"params": 45.10037899017334, "ema": 34.43983459472656, "mu": 2.625561907887459, "steps": 6.0}


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    with tarfile.open(Path(__file__).parent / "older" / "format-1.tar.xz") as file:
        file.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def size(x) -> float:
    return float(np.abs(np.asarray(x, np.float64)).sum())


def test_a_run_of_the_first_format_is_read_and_goes_on(run):
    config = cfg.load_config(run / "config.yaml")
    setup = build(config, start_devices(config.runtime)[:1])
    program = setup.program
    with setup.context():
        checkpointer = Checkpointer(run / "checkpoints")
        state, _ = checkpointer.restore_latest(program.abstract, config, say=print)
        checkpointer.close()
        assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, program.abstract)
        used = trained_parameters(config, state)["embedding"]
        served = restore_params(run, program, config, None, print)["embedding"]
    found = {
        "params": size(state.params["embedding"]), "mu": size(state.opt_state[0][1][0].mu["embedding"]),
        "ema": size(state.ema["embedding"]) / (1 - 0.9**6), "steps": float(state.opt_state[1].steps),
    }  # fmt: skip
    assert found == pytest.approx(SAVED, rel=1e-5)
    np.testing.assert_array_equal(used, served)

    listener = Listener()
    result = train(cfg.load_config(run / "config.yaml", ["steps=8"]), watcher=listener)
    assert any(line.startswith("resuming from step 6") for line in listener.lines)
    assert result.step == 8
    assert np.isfinite(result.loss)
