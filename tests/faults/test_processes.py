"""Faults of a run on two processes: real processes, signals and files. Seconds are upper limits, so that nothing hangs.

A run in peace is what all others have to end as: bitwise on the same mesh, to 1e-5 on another.
"""

import json
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from faults.processes import Group, being_saved, committed, last_step, losses, records, train
from faults.reader import Reader, difference

from jaxscale import config as cfg
from jaxscale.cluster.codes import BROKEN, DONE, HUNG, MENDABLE, PREEMPTED, VANISHED

pytestmark = pytest.mark.faults
LAST, EVERY = 120, 20
RUN = {
    "name": "faults", "steps": LAST, "mesh": {"data": 1, "fsdp": 2},
    "model": {"vocab_size": 250, "num_layers": 1, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 64},
    "data": {"kind": "synthetic", "batch_size": 8, "seq_len": 32},
    "step": {"compute_dtype": "float32", "remat": "none"},
    "optimizer": {"learning_rate": 1e-4, "schedule": "constant"},
    "checkpoint": {"every": EVERY}, "metrics": {"tensorboard": False},
    "watch": {"peer": 8, "start": 120, "step": 120},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def config(folder) -> Path:
    runtime = {"platform": "cpu", "simulated_devices": 2, "compilation_cache": str(folder / "cache")}
    (folder / "faults.yaml").write_text(yaml.safe_dump(RUN | {"runtime": runtime}))
    return folder / "faults.yaml"


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(cfg.validate(RUN | {"mesh": {"data": 1}}, source="test"))


@pytest.fixture(scope="module")
def peace(config, folder) -> Path:
    """The run that nothing happens to."""
    with train(config, folder / "peace") as group:
        assert group.wait() == [DONE, DONE], group.texts()
    return folder / "peace"


def resumed_from(group: Group) -> int:
    lines = [line for line in group.text(0).splitlines() if line.startswith("resuming from step")]
    return int(lines[0].split()[3]) if lines else 0


def steps_on(group: Group, out: Path, count: int) -> None:
    """Wait until this attempt has made so many steps, and a checkpoint is whole where one was due by then: on a quick
    machine steps do not wait for it."""
    group.until(lambda: "training steps" in group.text(0))
    first = resumed_from(group)
    group.until(lambda: last_step(out) >= first + count)
    if count > EVERY:
        group.until(lambda: committed(out))


def assert_same_bits(reader: Reader, out: Path, peace: Path) -> None:
    assert losses(out) == losses(peace)
    wanted, found = reader.arrays(peace, LAST), reader.arrays(out, LAST)
    assert all(np.array_equal(wanted[name], found[name]) for name in wanted)


def test_killed_told_to_stop_and_killed_while_saving_a_run_ends_with_the_same_bits(config, folder, reader, peace):
    """Process 1 is killed; SIGTERM goes to process 1, SIGUSR1 to process 0; process 0 is killed in a save."""
    out = folder / "chain"
    with train(config, out) as group:
        steps_on(group, out, 25)
        group.signal(1, signal.SIGKILL)
        assert group.wait(60) == [VANISHED, -signal.SIGKILL], group.texts()
        assert "process 1 vanished" in group.error(0)
    assert reader.whole(out, committed(out)) == committed(out) != []

    for rank, number in ((1, signal.SIGTERM), (0, signal.SIGUSR1)):
        newest = committed(out)[-1]
        with train(config, out) as group:
            steps_on(group, out, 3)
            assert resumed_from(group) == newest
            group.signal(rank, number)
            assert group.wait(60) == [PREEMPTED, PREEMPTED], group.texts()
            assert group.error(0) == group.error(1)  # after the same step
            assert f"stopped after step {committed(out)[-1]};" in group.error(0)
            assert last_step(out) == committed(out)[-1]

    with train(config, out) as group:
        killed_while_saving(group, out)
        assert group.wait(60) == [-signal.SIGKILL, VANISHED], group.texts()
        assert "process 0" in group.error(1)
    whole = committed(out)
    assert reader.whole(out, whole) == whole

    with train(config, out) as group:
        assert group.wait() == [DONE, DONE], group.texts()
        assert resumed_from(group) == whole[-1]
    assert_same_bits(reader, out, peace)


def killed_while_saving(group: Group, out: Path) -> None:
    """Process 0, who gives a checkpoint its final name, is held as soon as one is begun; is it still unfinished, it is
    killed, and otherwise the next one is waited for."""
    while True:
        group.until(lambda: being_saved(out), pause=0.001)
        group.signal(0, signal.SIGSTOP)
        if being_saved(out):
            group.signal(0, signal.SIGKILL)
            return
        group.signal(0, signal.SIGCONT)
        assert last_step(out) < LAST - 20, "no save was met before its end"


def test_after_a_kill_and_a_stopped_process_one_process_ends_the_run_on_another_mesh(config, folder, reader, peace):
    out = folder / "fewer"
    with train(config, out) as group:
        steps_on(group, out, 25)
        group.signal(0, signal.SIGKILL)
        assert group.wait(60) == [-signal.SIGKILL, VANISHED], group.texts()
        assert "process 0" in group.error(1)

    with train(config, out) as group:
        steps_on(group, out, 3)
        group.signal(1, signal.SIGSTOP)
        assert group.wait(60, ranks=[0])[0] == VANISHED, group.texts()
        assert "process 1 vanished: not heard of for" in group.error(0)

    newest = committed(out)[-1]
    with train(config, out, ["mesh.data=2", "mesh.fsdp=1"], processes=1) as group:
        assert group.wait() == [DONE], group.texts()
        assert resumed_from(group) == newest
    wanted, found = losses(peace), losses(out)
    assert found.keys() == wanted.keys()
    assert all(abs(found[step][0] - wanted[step][0]) <= 1e-5 * wanted[step][0] for step in wanted)
    state, other = reader.arrays(peace, LAST), reader.arrays(out, LAST)
    assert max(difference(state[name], other[name]) for name in state) <= 1e-5


def test_a_save_that_one_process_cannot_write_is_told_of_and_training_goes_on(config, folder, reader):
    """No file of process 1 may become longer than 30,000 bytes, for one save."""
    out = folder / "unsaved"
    with train(config, out, ["steps=100000"]) as group:
        steps_on(group, out, 25)
        pid, size = group.processes[1].pid, resource.RLIMIT_FSIZE
        _, most = resource.prlimit(pid, size, (30_000, resource.RLIM_INFINITY))
        group.until(lambda: "training goes on" in group.text(0))
        assert "process 1 could not write it" in group.text(0)
        resource.prlimit(pid, size, (most, most))
        newest = committed(out)[-1]
        group.until(lambda: committed(out)[-1] > newest)
        group.signal(0, signal.SIGTERM)
        assert group.wait(60) == [PREEMPTED, PREEMPTED], group.texts()
    assert reader.whole(out, committed(out)) == committed(out)
    assert not being_saved(out)


HANGS = """
import os, sys
from jaxscale.config import load_config
from jaxscale.training.trainer import train
from jaxscale.training.watcher import Silent

class Reads(Silent):
    def step(self, step, values, speed):
        if step == 5 and os.environ["JAXSCALE_PROCESS_ID"] == "1":
            open(sys.argv[1]).read()

train(load_config(sys.argv[2], sys.argv[3:]), watcher=Reads())
"""


def test_a_hang_is_named_with_the_stacks_of_all_processes(config, folder):
    """Process 1 reads, between two steps, a FIFO that nobody writes."""
    out, fifo = folder / "hang", folder / "fifo"
    os.mkfifo(fifo)
    with Group(["-c", HANGS, str(fifo), str(config), f"out={out}", "watch.step=12"], folder / "hang-logs") as group:
        assert group.wait(120) == [HUNG, HUNG], group.texts()
        for rank in (0, 1):
            assert "behind: process 1 (at step 6, step for" in group.error(rank)
            assert "in journal.py" in group.error(rank)  # which has called the watcher
            stacks = (out / "stacks" / f"process-{rank}.txt").read_text()
            assert "trainer.py" in stacks
            assert "monitor.py" in stacks
        assert '"<string>", line 10 in step' in (out / "stacks" / "process-1.txt").read_text()


GARBLES = """
import os, sys, time
from jaxscale.cluster.start import client, prefix
from jaxscale.config import load_config
from jaxscale.training.trainer import train
from jaxscale.training.watcher import Silent

class Writes(Silent):
    def step(self, step, values, speed):
        until = time.monotonic() + 60 * (step == 5 and os.environ["JAXSCALE_PROCESS_ID"] == "1")
        while time.monotonic() < until:
            client().key_value_set(f"{prefix()}/word/beat", "no beat", allow_overwrite=True)
            time.sleep(0.01)

train(load_config(sys.argv[1], sys.argv[2:]), watcher=Writes())
"""


def test_a_watchdog_that_fails_ends_the_run_and_says_so(config, folder):
    """What process 0 says of itself in the key-value store is garbled: process 1's monitor cannot read it."""
    out = folder / "garbled"
    with Group(["-c", GARBLES, str(config), f"out={out}"], folder / "garbled-logs") as group:
        assert group.wait(120) == [VANISHED, BROKEN], group.texts()
        assert "what watches this run failed (ValueError: not enough values to unpack" in group.error(1)
        assert "process 1 ended by itself: what watches this run failed (ValueError:" in group.error(0)
        stacks = (out / "stacks" / "process-1.txt").read_text()
        assert "Traceback (most recent call last)" in stacks
        assert "in watch_first" in stacks
        assert re.search(r'"<string>", line 1[123] in step', stacks)


@pytest.mark.parametrize("wrong", [0, 1])
def test_an_error_of_one_process_ends_all_alike_and_is_named(config, folder, stdlib, wrong):
    """The dataset is there for the other process only. Exit code 2 of all: a scheduler must not start this again."""
    out = folder / f"error-{wrong}"
    data = ["data.kind=tokens", "model.vocab_size=257"]
    paths = {rank: [f"data.path={folder / 'nowhere' if rank == wrong else stdlib}"] for rank in (0, 1)}
    with train(config, out, data, each=paths) as group:
        assert group.wait(60) == [MENDABLE, MENDABLE], group.texts()
        assert "nowhere" in group.error(wrong)
        assert f"process {wrong} ended by itself" in group.error(1 - wrong)
        assert "nowhere" in group.error(1 - wrong)
    assert not committed(out)


def test_what_one_process_finds_damaged_is_damaged_for_all(config, folder, peace):
    """Process 1's own part is whole: it would wait for process 0, which has gone on to the checkpoint before."""
    out = folder / "damaged"
    shutil.copytree(peace, out)
    largest = max((out / f"checkpoints/{LAST}/state/ocdbt.process_0/d").iterdir(), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    with train(config, out) as group:
        assert group.wait() == [DONE, DONE], group.texts()
        assert f"checkpoint {LAST} is damaged" in group.text(0)
        assert resumed_from(group) == LAST - 20
    assert losses(out) == losses(peace)


def test_a_second_start_is_refused_on_all_its_processes_while_the_first_lives(config, folder, reader):
    out, endless = folder / "owned", ["steps=1000000"]
    with train(config, out, endless) as group:
        steps_on(group, out, 3)
        pid = group.processes[0].pid
        with train(config, out, endless) as second:
            assert second.wait(60) == [MENDABLE, MENDABLE], second.texts()
            for rank in (0, 1):
                assert f"{out} is in use by another process (process {pid} on " in second.error(rank)
        steps_on(group, out, 25)  # and the first has not noticed
        group.signal(0, signal.SIGKILL)
        group.wait(60)
    newest = committed(out)[-1]
    with train(config, out, [f"steps={last_step(out) + 5}"]) as group:
        assert group.wait() == [DONE, DONE], group.texts()
        assert resumed_from(group) == newest
    counts = [r["step"] for r in records(out) if r.get("kind") == "train"]
    assert counts == list(range(1, counts[-1] + 1)), "each step stands there once"


def test_parts_are_started_and_rows_go_on_alike_on_two_processes_and_on_one(config, folder):
    """Another batch size, the guard and an average are turned on: the same losses, whoever goes on."""
    for name in ("two", "one"):
        with train(config, folder / name, ["steps=4"]) as group:
            assert group.wait() == [DONE, DONE], group.texts()
    asked = ["steps=8", "data.batch_size=4", "guard.spike=5", "optimizer.ema=0.9"]
    for name, processes in (("two", 2), ("one", 1)):
        with train(config, folder / name, asked, processes=processes) as group:
            assert group.wait() == [DONE] * processes, group.texts()
            text = group.text(0)
        assert "step 5 goes on after the 32 rows that were read" in text
        assert "guard.spike is on since step 4" in text
        assert "optimizer.ema is on since step 4" in text
    assert losses(folder / "two") == losses(folder / "one")
    assert len(losses(folder / "two")) == 8


def test_an_evaluation_on_two_processes_is_that_of_one(config, folder):
    """One table, by process 0; an error is told by both."""
    out, text = folder / "evaluated", folder / "text.txt"
    text.write_text("the tide and the wind\n" * 40)
    with train(config, out, ["model.vocab_size=257", "steps=2"]) as group:
        assert group.wait() == [DONE, DONE], group.texts()
    found = []
    for processes in (2, 1):
        words = ["evaluate", str(out), "--data", str(text), "--tokenizer", "byte", "--json"]
        with Group(["-m", "jaxscale.cli", *words], folder / "evaluate-logs", processes=processes) as group:
            assert group.wait() == [DONE] * processes, group.texts()
            printed = [group.text(rank) for rank in range(processes)]
            assert not any("{" in text for text in printed[1:])
            found.append(json.loads(printed[0][printed[0].index("{") :])["total"])
    assert found[0]["tokens"] == found[1]["tokens"] == len(text.read_text())
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-6)
    tasks = []
    for processes in (2, 1):
        words = ["evaluate", str(out), "--tasks", "count,coin", "--examples", "12", "--tokenizer", "byte", "--json"]
        with Group(["-m", "jaxscale.cli", *words], folder / "evaluate-logs", processes=processes) as group:
            assert group.wait() == [DONE] * processes, group.texts()
            printed = [group.text(rank) for rank in range(processes)]
            assert not any("{" in text for text in printed[1:])
            tasks.append(json.loads(printed[0][printed[0].index("{") :])["abilities"])
    for two, one in zip(*tasks, strict=True):
        assert two["examples"] == one["examples"] == 12
        for name, metric in two["metrics"].items():
            assert metric["value"] == pytest.approx(one["metrics"][name]["value"], rel=1e-5, abs=1e-6), name
    words = ["evaluate", str(out), "--data", str(folder / "nowhere"), "--tokenizer", "byte"]
    with Group(["-m", "jaxscale.cli", *words], folder / "evaluate-logs") as group:
        assert group.wait() == [MENDABLE, MENDABLE], group.texts()
        assert "names no file" in group.error(0) + group.error(1)
