"""A short soak: ten random faults, and then the losses and parameters of the run in peace, bit by bit."""

import json
import subprocess
import sys

import pytest
from faults.processes import ROOT


@pytest.mark.faults
def test_launch_survives_each_kind_of_kill_by_itself(tmp_path):
    command = [sys.executable, "benchmarks/soak.py", "--launch", "--faults", "5", "--seed", "3", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert record["survived"] == record["faults"] == len(record["by_kind"]) == 5
    assert record["committed_checkpoints_lost"] == 0
    assert record["beside_the_run_in_peace"]["state_bitwise"]


@pytest.mark.faults
def test_ten_faults_lose_no_committed_checkpoint_and_change_no_bit(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/soak.py", "--faults", "10", "--seed", "7", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    record = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert record["survived"] == record["faults"] == 10
    assert record["committed_checkpoints_lost"] == 0
    assert len(record["by_kind"]) >= 5
    end = record["beside_the_run_in_peace"]
    assert end["state_bitwise"]
    assert end["losses_and_gradient_norms_bitwise"]
    assert end["losses_compared"] >= end["steps"] - end["losses_missing"] > 100
