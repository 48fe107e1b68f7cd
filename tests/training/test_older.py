"""Runs that earlier versions wrote go on. Each archive was trained for six steps by the code of its format.

Format 1: parameters are bfloat16 and so are its moments and its average, which began at the initial weights. Format 2:
`run` keeps an average and judges losses, `plain` does neither; both name an activation as it was called then.
"""

import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from support import Listener

from jaxscale import config as cfg
from jaxscale.bench.compare import compare
from jaxscale.bench.record import read_record
from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.data.store import open_tokenizer, open_tokens
from jaxscale.parallel.mesh import start_devices
from jaxscale.serving.serve import restore_params
from jaxscale.training.build import build
from jaxscale.training.step import used_parameters
from jaxscale.training.trainer import train

# sums of absolute values as that code read them, and the losses of the next two steps where it took them
RUNS = {
    "format-1/run": (
        {"params": 45.10037899017334, "ema": 34.43983459472656, "mu": 2.625561907887459, "steps": 6},
        None,
    ),
    "format-2/run": (
        {"params": 45.123719692230225, "ema": 19.424747257329955, "mu": 2.63256277983146, "steps": 6},
        [4.845017433166504, 4.860631465911865],
    ),
    "format-2/plain": (
        {"params": 45.34573360451759, "ema": 0, "mu": 2.44459400080148, "steps": 0},
        [4.858034610748291, 4.848972320556641],
    ),
}


@pytest.fixture(params=RUNS)
def case(request, tmp_path, monkeypatch):
    """(the run's directory, what its code read, the next losses)."""
    archive, _, name = request.param.partition("/")
    with tarfile.open(Path(__file__).parent / "older" / f"{archive}.tar.xz") as file:
        file.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / name, *RUNS[request.param]


def size(x) -> float:
    return float(np.abs(np.asarray(x, np.float64)).sum())


def test_a_run_of_an_earlier_format_is_read_and_goes_on(case):
    run, saved, losses = case
    config = cfg.load_config(run / "config.yaml")
    setup = build(config, start_devices(config.runtime)[:1])
    program = setup.program
    with setup.context():
        checkpointer = Checkpointer(run / "checkpoints")
        state, _ = checkpointer.restore_latest(program.abstract, config, say=print)
        checkpointer.close()
        types = [jax.tree.map(lambda x: (x.dtype, x.shape), tree) for tree in (state, program.abstract)]
        assert types[0] == types[1]
        used = used_parameters(config, state)["embedding"]
        served = restore_params(run, program, config, None, print)["embedding"]
    ema = size(state.ema["embedding"]) if state.ema else 0
    found = {
        "params": size(state.params["embedding"]), "mu": size(state.opt_state[1][0].mu["embedding"]),
        "ema": ema / (1 - 0.9**6) if losses is None else ema, "steps": float(state.losses.steps),
    }  # fmt: skip
    assert found == pytest.approx(saved, rel=1e-5)
    np.testing.assert_array_equal(used, served)

    listener = Listener()
    result = train(cfg.load_config(run / "config.yaml", ["steps=8"]), watcher=listener)
    assert any(line.startswith("resuming from step 6") for line in listener.lines)
    assert [line for line in listener.lines if line.startswith("changed")] == ["changed since step 6: steps 6 -> 8"]
    assert result.step == 8
    assert np.isfinite(result.loss)
    if losses:
        np.testing.assert_allclose([result.losses[7], result.losses[8]], losses, rtol=1e-6)


def test_the_name_of_an_activation_is_of_today(case):
    run, _, losses = case
    if losses:
        assert "attention_context" in (run / "config.yaml").read_text()
        assert cfg.load_config(run / "config.yaml").step.remat == {"q": "save", "attended": "save"}
        copy = run.parent / "mine.yaml"
        copy.write_text((run / "config.yaml").read_text())
        with pytest.raises(ValueError, match=r"step\.remat\.attention_context is called step\.remat\.attended now"):
            cfg.load_config(copy)


def test_a_dataset_and_a_record_of_an_earlier_version_are_read(tmp_path):
    """Made when run directories had their first format: the tokens decode to the text, the record is compared."""
    with tarfile.open(Path(__file__).parent / "older" / "inputs-1.tar.xz") as file:
        file.extractall(tmp_path, filter="data")
    tokens = open_tokens(tmp_path / "bytes")
    text = open_tokenizer(tmp_path / "bytes").decode([int(t) for t in tokens.read(0, tokens.num_tokens)])
    assert "one document of a few words" in text
    assert "another one, with more words than the first" in text
    record = read_record(tmp_path / "record.json")
    assert (record.kind, record.command[1]) == ("matmul", "bench")
    assert all(ratio.verdict for ratio in compare(record, record))
