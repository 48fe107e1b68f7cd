"""A run tells each happening once, to its journal. Each subscriber hears of it once, and in order."""

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_up import Machine, run
from support import Listener, make_config

import jaxscale
from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.rollouts.worth import Judges
from jaxscale.training import trainer
from jaxscale.training.events import Events
from jaxscale.training.guard import Rollback
from jaxscale.training.journal import Journal
from jaxscale.training.owner import Owner
from jaxscale.training.peak import Peak
from jaxscale.training.watcher import Silent
from jaxscale.training.writer import MetricsWriter

PACKAGE = Path(jaxscale.__file__).parent


class Console(Silent):
    """Keeps what each subscriber of a run hears, in one list; it is the console itself, and hears for the monitor."""

    def __init__(self, monkeypatch):
        self.told = []
        for owner, name, heard in (
            (Events, "write", lambda event, phase, step=None, **_: ("events", event, phase, step)),
            (MetricsWriter, "write", lambda kind, step, values, **_: ("metrics", kind, step)),
            (MetricsWriter, "go_back", lambda step: ("metrics", "go back", step)),
        ):
            monkeypatch.setattr(owner, name, self.hearing(getattr(owner, name), heard))

    def hearing(self, call, heard):
        def both(subscriber, *arguments, **more):
            self.told.append(heard(*arguments, **more))
            return call(subscriber, *arguments, **more)

        return both

    def follow(self, event, phase, step):
        self.told.append(("monitor", event, phase, step))

    def say(self, line):
        self.told.append(("console", line))

    def start(self, first_step, config):
        self.told.append(("console", "start", first_step))

    def step(self, step, values, speed):
        self.told.append(("console", "step", step))

    def finish(self):
        self.told.append(("console", "finish"))


def mark(event, phase, step=None):
    return [("monitor", event, phase, step), ("events", event, phase, step)]


def span(event, step, *inside, end=None):
    return [*mark(event, "start", step), *inside, *mark(event, "end", step if end is None else end)]


def step(number, *judged):
    return [*mark("step", "end", number), *judged, ("console", "step", number), ("metrics", "train", number)]


def saved(number):
    return span("checkpoint", number, ("metrics", "checkpoint", number))


def evaluated(number):
    line = f"step {number}: validation loss 2.0000"
    return span("evaluation", number, ("metrics", "validation", number), ("console", line))


BEGIN = [("events", "run", "start", None), ("console", "start", 0)]
END = [("console", "finish"), *mark("run", "end")]
BAD = "step 3: loss nan, gradient norm 1.0"


def first_steps():
    return [*BEGIN, *span("data wait", 0), *span("compile", None), *step(1), *step(2), *saved(2)]


def test_a_rollback_is_told_once(monkeypatch, tmp_path):
    console = Console(monkeypatch)
    run(monkeypatch, tmp_path, Machine(ahead=True, bad={2: 1}), steps=4, watcher=console, on_nonfinite="rollback",
        checkpoint={"every": 2}, evaluation={"every": 0})  # fmt: skip
    back = ("metrics", "go back", 2), ("metrics", "rollback", 2), ("console", f"{BAD}; back to step 2, past 1 batches")
    assert console.told == [
        *first_steps(), *mark("step", "end", 3), ("metrics", "nonfinite", 3), *span("rollback", 3, *back, end=2),
        *span("data wait", 2), *span("compile", None), *step(3), *step(4), *evaluated(4), *saved(4), *END,
    ]  # fmt: skip


def test_an_update_that_is_left_out_is_told_once(monkeypatch, tmp_path):
    console = Console(monkeypatch)
    run(monkeypatch, tmp_path, Machine(ahead=True, bad={2: 1}), steps=4, watcher=console, on_nonfinite="skip",
        checkpoint={"every": 2}, evaluation={"every": 0})  # fmt: skip
    left_out = ("metrics", "nonfinite", 3), ("console", f"{BAD}; update skipped (1 so far)")
    assert console.told == [*first_steps(), *step(3, *left_out), *step(4), *evaluated(4), *saved(4), *END]


def test_what_lies_between_two_steps_is_told_once(monkeypatch, tmp_path):
    """An outer step, a peak that is measured again, an evaluation, a save."""
    console = Console(monkeypatch)
    low, better = Peak(1e9, "a test", measured=True), Peak(6e9, "again", measured=True)
    monkeypatch.setattr(trainer, "measure_again", lambda *_: better)
    monkeypatch.setattr(trainer.jax, "local_devices", lambda: [None])
    run(monkeypatch, tmp_path, Machine(ahead=True), steps=4, watcher=console, peak=low, flops_per_token=1e7,
        mesh={"replica": 2}, outer={"every": 2}, evaluation={"every": 2}, checkpoint={"every": 2})  # fmt: skip
    assert console.told == [
        *BEGIN, *evaluated(0), *span("data wait", 0), *span("compile", None),
        *step(1), *step(2), *span("outer step", 2), ("metrics", "outer", 2),
        *span("devices", 2, ("metrics", "peak", 2)), *evaluated(2), *saved(2),
        *step(3), *step(4), *span("outer step", 4), ("metrics", "outer", 4), *evaluated(4), *saved(4), *END,
    ]  # fmt: skip


# --- the journal by itself -----------------------------------------------------------------------------------


class Numbers(Silent):
    def __init__(self):
        self.seen = []

    def step(self, step, values, speed):
        self.seen.append((step, dict(values)))


def test_the_console_sees_the_newest_numbers_with_the_steps_that_follow():
    journal, written = Journal(Numbers()), []
    journal.metrics = SimpleNamespace(write=lambda *record, **more: written.append((*record, more)))
    journal.record("validation", 2, {"loss": 3.0, "batches": 1, "cause": "x"}, plotted={"loss": 3.0})
    journal.step(3, {"loss": 2.5}, None, kept=False)
    journal.record("validation", 4, {"loss": 2.0})
    journal.step(5, {"loss": 2.0}, None, kept=True)
    assert journal.watcher.seen == [
        (3, {"loss": 2.5, "validation/loss": 3.0}),
        (5, {"loss": 2.0, "validation/loss": 2.0}),
    ]
    assert written == [
        ("validation", 2, {"loss": 3.0, "batches": 1, "cause": "x"}, {"plotted": {"loss": 3.0}}),
        ("validation", 4, {"loss": 2.0}, {"plotted": None}),
        ("train", 5, {"loss": 2.0}, {}),
    ]


@pytest.mark.parametrize("kind", [Rollback, ValueError, KeyboardInterrupt])
def test_a_span_that_fails_has_an_end_and_keeps_the_error(kind):
    journal, heard = Journal(Listener()), []
    journal.monitor = SimpleNamespace(follow=lambda *event: heard.append(event))
    error = Rollback(3, "no") if kind is Rollback else kind("no")
    with pytest.raises(kind) as caught, journal.during("evaluation", 3):
        raise error
    assert caught.value is error
    assert heard == [("evaluation", "start", 3), ("evaluation", "end", 3)]


# --- the end of a run ----------------------------------------------------------------------------------------


class Stops(Silent):
    def __init__(self, ends, error):
        self.ends, self.error = ends, error

    def step(self, step, values, speed):
        raise self.error

    def finish(self):
        self.ends.append("console")


def test_what_is_open_is_closed_in_order_also_after_an_error(monkeypatch, tmp_path):
    ends, error = [], RuntimeError("enough")
    parts = {"metrics": MetricsWriter, "judges": Judges, "checkpoints": Checkpointer, "events": Events, "owner": Owner}

    def closing(name, close):
        def ended(part):
            ends.append(name)
            close(part)

        return ended

    for name, part in parts.items():
        monkeypatch.setattr(part, "close", closing(name, part.close))
    config = make_config({"data": 8}, steps=2, out=str(tmp_path), runtime={"simulated_devices": 8})
    with pytest.raises(RuntimeError) as caught:
        trainer.train(config, watcher=Stops(ends, error))
    assert caught.value is error
    assert ends == ["console", *parts]
    ends.clear()
    refused = config.model_copy(update={"mesh": config.mesh.model_copy(update={"data": 3})})
    with pytest.raises(ValueError, match="3"):
        trainer.train(refused, watcher=Stops(ends, error))
    assert ends == []
    monkeypatch.setattr(trainer, "open_checkpoints", lambda config: (_ for _ in ()).throw(ValueError("no")))
    with pytest.raises(ValueError, match="no"):
        trainer.train(config, watcher=Stops(ends, error))
    assert ends == ["console", "judges", "events", "owner"]


# --- the sources ---------------------------------------------------------------------------------------------

TOLD_TO = ("watcher", "events", "writer")
SUBSCRIBERS = {"MetricsWriter", "Events"}  # `Watcher` is an argument of `train`
INSIDE = {"watcher", "events", "metrics", "writer", "newest", "mark"}  # of the journal
OWN = {"journal.py", "events.py", "watcher.py", "writer.py"}
FILES = [p for room in ("training", "rollouts") for p in sorted((PACKAGE / room).glob("*.py")) if p.name not in OWN]


def past_the_journal(text: str) -> list[str]:
    """Lines of a source that reach a subscriber without the journal, or through it."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            found += [(node.lineno, a.name) for a in node.names if a.name in SUBSCRIBERS]
        elif isinstance(node, ast.Attribute):
            base = ast.unparse(node.value).split(".")[-1]
            if base in TOLD_TO or node.attr == "follow" or (base == "journal" and node.attr in INSIDE):
                found.append((node.lineno, ast.unparse(node)))
    return [f"{line}: {what}" for line, what in sorted(found)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_nothing_is_told_past_the_journal(path):
    assert past_the_journal(path.read_text()) == []


def test_the_scan_sees_what_it_must_refuse():
    text = """
from jaxscale.training.events import Events
self.watcher.say("x")
run.writer.write("kind", 1, {})
events.write("run", "start")
monitor.follow("run", "start", None)
self.journal.metrics.write("kind", 1, {})
journal.monitor = monitor
self.journal.say("x")
"""
    assert past_the_journal(text) == [
        "2: Events", "3: self.watcher.say", "4: run.writer.write", "5: events.write", "6: monitor.follow",
        "7: self.journal.metrics",
    ]  # fmt: skip
    names = {path.name for path in FILES}
    assert {"trainer.py", "saves.py", "guard.py", "opening.py"} <= names
