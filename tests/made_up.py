"""The trainer's own loop over a machine that is made up, with a clock of its own: nothing is compiled.

The machine dispatches ahead of its device (accelerators, several CPU devices) or holds the host until the step is done
(one CPU device). Steps, waits for data, evaluations and saves take times that the test knows.
"""

import itertools
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from support import Listener, make_config

from jaxscale.files.jsonl import read_records
from jaxscale.training import evaluation, trainer
from jaxscale.training import events as events_file
from jaxscale.training import pending as pending_file
from jaxscale.training.journal import Journal
from jaxscale.training.metrics import Meter

STEP, OUTER, EVALUATION, SAVE, RECOMPUTE, COMPILE, DISPATCH = 1.0, 2.0, 7.0, 3.0, 5.0, 20.0, 0.001


class State(NamedTuple):
    """`applied`: of each step the batch that it read and the loss that it gave."""

    step: int
    applied: tuple[tuple[int, float], ...] = ()


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
        metrics = {"loss": loss, "grad_norm": 1.0, "tokens": 100.0 + batch["number"]}
        after = State(state.step + 1, (*state.applied, (batch["number"], loss)))
        return after, {name: Metric(self, self.free, value) for name, value in metrics.items()}

    def outer(self, state):
        """The step that replicas take together."""
        self.now = max(self.now, self.free) + OUTER
        return state, {"grad_norm": 1.0}


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
    """In place of the feed: batch n is {"number": n}, after a wait (seconds, or a function of n)."""

    ahead = True

    def __init__(self, machine, wait, start, stop):
        self.machine, self.wait, self.numbers = machine, wait, iter(range(start, stop))
        self.wait_seconds = 0.0

    def __iter__(self):
        return self

    def __next__(self):
        number = next(self.numbers)
        self.wait_seconds = self.wait(number) if callable(self.wait) else self.wait
        self.machine.spend(self.wait_seconds)
        return {"number": number}

    def take(self, state):
        return next(self)

    def close(self):
        pass


class Saves:
    """In place of the checkpointer."""

    def __init__(self, machine):
        self.machine, self.good, self.states = machine, None, {}

    def save(self, step, state, *_):
        self.machine.spend(SAVE)
        self.good, self.states[step] = step, state
        return SAVE

    def settle(self):
        return ""

    still_writing = settle


class MadeUpRun(trainer.Run):
    """The loop as it is, on such a machine."""

    def restore(self, *_):
        step = self.saves.newest = self.checkpointer.good
        return None if step is None else (self.checkpointer.states[step], {})

    def compile(self, *_):
        with self.journal.during("compile"):
            self.checkpointer.machine.spend(COMPILE)


def run(monkeypatch, folder, machine, *, wait=0.0, steps=12, peak=None, flops_per_token=None, watcher=None, **sections):
    """(the run, its records of training, its events, the wall time)"""
    for module in (events_file, pending_file):
        monkeypatch.setattr(module, "time", machine)
    config = make_config(steps=steps, out=str(folder), **{"checkpoint": {"every": 0}} | sections)

    def feed(*_, start_step=0, stop_step, offset=0, **__):
        past = offset // config.data.batch_size  # batches that rollbacks have left out
        return Batches(machine, wait, start_step + past, stop_step + past)

    def feeds(first, offset):
        return feed(start_step=first, stop_step=config.steps, offset=offset)

    monkeypatch.setattr(evaluation, "Feed", feed)
    monkeypatch.setattr(evaluation, "batch_sharding", lambda mesh: None)

    def evaluate(state, batch):
        machine.spend(EVALUATION)
        return {"cross_entropy": np.float32(2.0), "tokens": np.float32(1.0)}

    program = SimpleNamespace(step=machine.step, outer=machine.outer, combine=lambda found: found, evaluate=evaluate)
    monitor = SimpleNamespace(may_start=lambda step: True, follow=getattr(watcher, "follow", lambda *_: None))
    setup = SimpleNamespace(config=config, program=program, mesh=SimpleNamespace(devices=np.array([])))
    monkeypatch.setattr(trainer.Guard, "make_sums", lambda self: None)
    monkeypatch.setattr(trainer.Guard, "recompute", lambda self, *_: machine.spend(RECOMPUTE))
    journal, began = Journal(watcher or Listener()), machine.now
    journal.monitor = monitor
    one = MadeUpRun(setup, Saves(machine), {}, journal, monitor, Meter(config, peak, flops_per_token))
    journal.open(config, 0)
    one.final = None
    try:
        one.final = one.go(State(0), feeds, [evaluation.ValidationLoss(range(8), config)])
    finally:
        journal.finish()
        journal.close()
    records = [r for r in read_records(folder / "metrics.jsonl") if r["kind"] == "train"]
    return one, records, read_records(folder / "events.jsonl"), machine.now - began
