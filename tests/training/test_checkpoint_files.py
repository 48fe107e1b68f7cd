"""A checkpoint's own JSON, damaged: told as damage, not as an error of Python's."""

import contextlib
import json
import logging

import jax
import numpy as np
import pytest
from support import Setup, make_config

from jaxscale import config as cfg
from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.checkpoint.fingerprint import Sums, fingerprints, named_leaves
from jaxscale.checkpoint.identity import config_differences
from jaxscale.checkpoint.inventory import inventory
from jaxscale.checkpoint.noise import Damaged, reading
from jaxscale.checkpoint.verify import verify
from jaxscale.serving.serve import run_tokenizer

SMALL = {"num_layers": 1, "embed_dim": 8, "num_heads": 1, "num_kv_heads": 1, "mlp_dim": 8}


@pytest.fixture(scope="module")
def tiny() -> Setup:
    return Setup(make_config(model=SMALL, data={"batch_size": 1, "seq_len": 8}))


@pytest.fixture
def saved(tiny, tmp_path):
    """Checkpoints of steps 1 and 2."""
    with tiny.context():
        checkpointer = Checkpointer(tmp_path / "checkpoints", cfg.Checkpoint())
        for step in (1, 2):
            checkpointer.save(step, tiny.program.init(), tiny.config, {})
        checkpointer.close()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("part", ["config", "state", "data", "config.model", "config.optimizer"])
def test_metadata_of_the_wrong_type_gives_way_to_the_checkpoint_before(tiny, saved, part):
    path = next((saved / "2" / "meta").glob("metadata"))
    values = json.loads(path.read_text())
    section = values["config"] if "." in part else values
    section[part.rpartition(".")[2]] = 5
    path.write_text(json.dumps(values))
    said: list[str] = []
    with tiny.context():
        checkpointer = Checkpointer(saved, cfg.Checkpoint())
        found = checkpointer.restore_latest(tiny.program.abstract, tiny.config, say=said.append)
        assert found is not None
        assert checkpointer.steps() == [1]
        checkpointer.close()
    assert "lacks config, state or data" in said[0]


@pytest.mark.parametrize("text", ["[]", "5", '"x"', "[" * 5000 + "]" * 5000, '{"init_timestamp_nsecs": "x"}'])
def test_orbaxs_own_metadata_of_another_type_is_damage_of_one_checkpoint(tiny, saved, text):
    for step in (2, 1):  # first the newest alone, then both
        (saved / str(step) / "_CHECKPOINT_METADATA").write_text(text)
        said: list[str] = []
        with tiny.context(), contextlib.closing(Checkpointer(saved, cfg.Checkpoint())) as checkpointer:
            if step == 2:
                assert verify(checkpointer.directory, inventory(checkpointer.directory)[1]).problems
                assert checkpointer.restore_latest(tiny.program.abstract, tiny.config, say=said.append) is not None
                assert checkpointer.steps() == [1]
                assert "checkpoint 2 is damaged (ValueError: its _CHECKPOINT_METADATA" in said[0]
            else:
                with pytest.raises(ValueError, match=r"can be read \(1: ValueError: its _CHECKPOINT_METADATA"):
                    checkpointer.restore_latest(tiny.program.abstract, tiny.config, say=said.append)
                assert checkpointer.steps() == [1]  # nothing is moved
                assert not said


def test_null_for_orbaxs_own_metadata_is_as_if_there_were_none(tiny, saved):
    (saved / "2" / "_CHECKPOINT_METADATA").write_text("null")
    with tiny.context(), contextlib.closing(Checkpointer(saved, cfg.Checkpoint())) as checkpointer:
        checkpointer.restore_latest(tiny.program.abstract, tiny.config, say=print)
        assert checkpointer.good == 2


@pytest.mark.parametrize("sizes", [{"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_a_save_holds_its_own_step_though_the_next_one_takes_the_arrays(tmp_path, sizes):
    """Sums and files are made while steps go on that are given the saved arrays."""
    setup = Setup(make_config(sizes))
    with setup.context(), contextlib.closing(Checkpointer(tmp_path, cfg.Checkpoint(keep_last=3))) as checkpointer:
        state, wanted = setup.program.init(), {}
        for step in (1, 2, 3):
            wanted[step] = {name: np.array(x) for name, x in named_leaves(state).items()}
            sums = Sums(state)
            checkpointer.save(step, state, setup.config, {})
            for _ in range(2):
                state, _ = setup.program.step(state, setup.batch)
            jax.block_until_ready(state)
            assert not checkpointer.settle()
            late = sums.told([sums.own()])
            found = checkpointer.restore(step, setup.program.abstract)
            assert checkpointer.meta(step)["fingerprints"] == fingerprints(found) == late
            assert all(np.array_equal(wanted[step][name], x) for name, x in named_leaves(found).items())


def test_a_setting_that_a_checkpoint_lacks_and_that_has_no_default():
    wanted = make_config(model=SMALL).model_dump(mode="json")
    without = wanted | {"model": {k: v for k, v in wanted["model"].items() if k != "mlp_dim"}}
    assert config_differences(without, wanted) == [f"model.mlp_dim: null -> {wanted['model']['mlp_dim']}"]


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"file": "../tokenizer.json", "separator": "<s>", "fingerprint": "f"}, "leads out of"),
        ({"file": "/etc/passwd", "separator": "<s>", "fingerprint": "f"}, "leads out of"),
        ({"file": None, "separator": None, "fingerprint": 5}, "is damaged"),
        ({"file": None, "separator": None, "fingerprint": "other"}, "is not the one that made this run's tokens"),
        ({"file": "tokenizer.json", "separator": ["<s>"], "fingerprint": "f"}, "is damaged"),
    ],
)
def test_the_identity_of_a_runs_tokenizer(tmp_path, about, words):
    (tmp_path / "run").mkdir()
    (tmp_path / "tokenizer.json").write_text("beside the run")
    (tmp_path / "run" / "tokenizer-identity.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=words):
        run_tokenizer(tmp_path / "run", None)


def test_reads_that_a_damaged_file_ended_are_not_heard(tiny, saved, caplog):
    from jaxscale.process.quiet import quiet_logs

    for path in (saved / "2" / "state" / "d").iterdir():
        path.write_bytes(b"")
    level = logging.getLogger("asyncio").level
    quiet_logs()
    try:
        with tiny.context():
            checkpointer = Checkpointer(saved)
            with pytest.raises(Damaged):
                reading(checkpointer.restore, 2, tiny.program.abstract)
            checkpointer.close()
    finally:
        logging.getLogger("asyncio").setLevel(level)
    assert not [entry for entry in caplog.records if entry.exc_info]
