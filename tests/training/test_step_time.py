"""A step's time is the step's, whatever is read when: the real loop over a machine that is made up, with its own clock.

The machine dispatches ahead of its device (accelerators, several CPU devices) or holds the host until the step is done
(one CPU device). Steps, waits for data, evaluations and saves take times that the test knows.
"""

import itertools
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from support import Listener, make_config

from jaxscale.report.goodput import goodput
from jaxscale.training import events as events_file
from jaxscale.training import pending as pending_file
from jaxscale.training import trainer
from jaxscale.training.events import Events
from jaxscale.training.jsonl import read_records
from jaxscale.training.metrics import Meter

STEP, EVALUATION, SAVE, RECOMPUTE, COMPILE, DISPATCH = 1.0, 7.0, 3.0, 5.0, 20.0, 0.001


class State(NamedTuple):
    step: int


class Machine:
    """A clock and a device. `ahead`: dispatch returns at once; else it returns when the step is done."""

    def __init__(self, *, ahead: bool, bad=None, away: set[int] = frozenset(), uneven: bool = False):
        self.now, self.free, self.ahead, self.uneven = 100.0, 0.0, ahead, uneven
        self.bad = bad or {}  # batch -> how often its loss is not finite
        self.away = away  # calls after which the host is away for several steps
        self.calls = itertools.count(1)

    def perf_counter(self):
        return self.now

    def time(self):
        return 1e9 + self.now

    def spend(self, seconds):
        self.now += seconds

    def seconds(self, step):
        """What the device needs for it."""
        return STEP * (1 + (step % 3) / 2) if self.uneven else STEP

    def step(self, state, batch):
        self.spend(DISPATCH)
        self.free = max(self.now, self.free) + self.seconds(state.step + 1)
        if not self.ahead:
            self.now = self.free
        if next(self.calls) in self.away:
            self.spend(4 * STEP)
        loss = 1.0 + batch["number"]
        if self.bad.get(batch["number"], 0):
            self.bad[batch["number"]] -= 1
            loss = float("nan")
        return State(state.step + 1), {n: Metric(self, self.free, v) for n, v in (("loss", loss), ("grad_norm", 1.0))}


class Metric:
    def __init__(self, machine, done, value):
        self.machine, self.done, self.value = machine, done, value

    def is_ready(self):
        return self.machine.now >= self.done

    def block_until_ready(self):
        self.machine.now = max(self.machine.now, self.done)
        return self

    def __array__(self, dtype=None, copy=None):
        self.block_until_ready()
        return np.asarray(self.value, dtype)


class Batches:
    """In place of the feed: batch n is {"number": n}, after a wait."""

    def __init__(self, machine, wait, start, stop):
        self.machine, self.wait, self.numbers = machine, wait, iter(range(start, stop))
        self.wait_seconds = 0.0

    def __iter__(self):
        return self

    def __next__(self):
        number = next(self.numbers)
        self.machine.spend(self.wait)
        self.wait_seconds = self.wait
        return {"number": number}

    def close(self):
        pass


class Saves:
    """In place of the checkpointer."""

    def __init__(self, machine):
        self.machine, self.good = machine, None

    def save(self, step, *_):
        self.machine.spend(SAVE)
        self.good = step
        return SAVE

    def settle(self):
        return ""

    still_writing = settle


class MadeUpRun(trainer.Run):
    """The loop as it is, on such a machine."""

    def restore(self, *_):
        self.saved = self.checkpointer.good
        return State(self.saved)

    def compile(self, *_):
        with self.events.during("compile"):
            self.checkpointer.machine.spend(COMPILE)


def run(monkeypatch, folder, machine, *, wait=0.0, steps=12, **sections):
    """(the run, its records of training, its events, the wall time)"""
    for module in (events_file, pending_file):
        monkeypatch.setattr(module, "time", machine)
    config = make_config(steps=steps, out=str(folder), **{"checkpoint": {"every": 0}} | sections)
    monkeypatch.setattr(
        trainer, "Feed", lambda *_, start_step=0, stop_step, **__: Batches(machine, wait, start_step, stop_step)
    )
    monkeypatch.setattr(trainer, "batch_sharding", lambda mesh: None)

    def evaluate(state, batch):
        machine.spend(EVALUATION)
        return {"cross_entropy": np.float32(2.0), "tokens": np.float32(1.0)}

    program = SimpleNamespace(step=machine.step, evaluate=evaluate)
    monitor = SimpleNamespace(may_start=lambda step: True)
    mesh = SimpleNamespace(devices=np.array([]))
    events, began = Events(), machine.now
    one = MadeUpRun(config, program, Saves(machine), {}, Listener(), monitor, mesh, events)
    monkeypatch.setattr(trainer.Guard, "make_sums", lambda self: None)
    monkeypatch.setattr(trainer.Guard, "recompute", lambda self, *_: machine.spend(RECOMPUTE))
    events.open(folder, print)
    one.open(0, Meter(config, None, None))
    one.go(State(0), range(1000), range(8))
    one.close()
    events.close()
    records = [r for r in read_records(folder / "metrics.jsonl") if r["kind"] == "train"]
    return one, records, read_records(folder / "events.jsonl"), machine.now - began


OFTEN = {
    "nothing else": {},
    "evaluation.every=2": {"evaluation": {"every": 2, "batches": 1}},
    "evaluation.every=1": {"evaluation": {"every": 1, "batches": 1}},
    "checkpoint.every=1": {"checkpoint": {"every": 1}},
    "checkpoint.every=3": {"checkpoint": {"every": 3}},
    "recompute_every=2": {"guard": {"recompute_every": 2}},
    "all of them": {
        "evaluation": {"every": 2, "batches": 1},
        "checkpoint": {"every": 3},
        "guard": {"recompute_every": 4},
    },
}


@pytest.mark.parametrize("wait", [0.0, 0.4, 3.0], ids=lambda w: f"data waits {w}")
@pytest.mark.parametrize("ahead", [True, False], ids=["dispatched ahead", "held until done"])
@pytest.mark.parametrize("often", OFTEN)
def test_every_step_takes_its_time_and_the_parts_add_up(monkeypatch, tmp_path, often, ahead, wait):
    """No step is faster than the device; what the host cannot hide is on top; all parts sum to the wall."""
    machine = Machine(ahead=ahead, uneven=True)
    one, records, events, wall = run(monkeypatch, tmp_path, machine, wait=wait, **OFTEN[often])
    assert [r["step"] for r in records] == list(range(1, 13))
    seconds = [r["step_seconds"] for r in records]
    longer = [s - machine.seconds(step) for step, s in enumerate(seconds, 1)]
    assert min(longer) >= -1e-6
    assert max(longer) <= (2 * wait if ahead else wait) + 2 * DISPATCH
    assert seconds == pytest.approx([e["seconds"] for e in events if e["event"] == "step"])
    assert one.meter.seconds == seconds[1:]  # the first one loads the program
    times = [e["time"] for e in events]
    assert times == sorted(times)

    spans = dict.fromkeys(("evaluation", "checkpoint", "recompute", "compile", "data wait"), 0.0)
    for e in events:
        if e["event"] in spans:
            spans[e["event"]] += e["time"] if e["phase"] == "end" else -e["time"]
    counts = {n: sum((e["event"], e["phase"]) == (n, "end") for e in events) for n in spans}
    assert spans["evaluation"] == pytest.approx((EVALUATION + wait) * counts["evaluation"], abs=1e-4)
    assert spans["checkpoint"] == pytest.approx(SAVE * counts["checkpoint"], abs=1e-4)
    assert sum(seconds) + sum(spans.values()) == pytest.approx(wall, rel=0.001)

    spent = goodput(events)
    assert spent.wall_seconds == pytest.approx(wall, abs=1e-4)
    assert sum(spent.seconds.values()) == pytest.approx(wall, abs=1e-4)
    assert spent.seconds["other"] == pytest.approx(spans["recompute"], abs=0.001 * wall)
    working = spent.seconds["steps that counted"] + spent.seconds["data wait"]
    assert working == pytest.approx(sum(seconds) + spans["data wait"], rel=0.001)


@pytest.mark.parametrize("ahead", [True, False], ids=["dispatched ahead", "held until done"])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_host_that_was_away_for_several_steps(monkeypatch, tmp_path, every, ahead):
    """Two steps that were both done when the host came back share the time: none is said to have taken nothing."""
    machine = Machine(ahead=ahead, away={4, 7, 8})
    _, records, _, wall = run(monkeypatch, tmp_path, machine, evaluation={"every": every, "batches": 1})
    seconds = [r["step_seconds"] for r in records]
    assert min(seconds) >= STEP * 0.999
    others = EVALUATION * (12 // every + (12 % every > 0) + 1) + SAVE + COMPILE
    assert sum(seconds) + others == pytest.approx(wall, rel=0.001)


@pytest.mark.parametrize("ahead", [True, False], ids=["dispatched ahead", "held until done"])
def test_steps_around_a_rollback(monkeypatch, tmp_path, ahead):
    """The bad step was read while another was in flight, which is thrown away; times begin anew after it."""
    machine = Machine(ahead=ahead, bad={7: 1})
    one, records, events, wall = run(
        monkeypatch, tmp_path, machine, on_nonfinite="rollback", checkpoint={"every": 3}, guard={"max_rollbacks": 1}
    )
    assert one.skipped == 2  # step 8 read batch 7; back to step 6, past batches 6 and 7
    assert [r["step"] for r in records] == list(range(1, 13))
    done = [e for e in events if e["event"] == "step"]
    assert [e["step"] for e in done] == [1, 2, 3, 4, 5, 6, 7, 8, 7, 8, 9, 10, 11, 12]
    assert min(e["seconds"] for e in done) >= STEP * 0.999
    spent = goodput(events)
    assert (spent.steps_counted, spent.steps_lost) == (12, 2)
    assert sum(spent.seconds.values()) == pytest.approx(wall, abs=1e-4)
