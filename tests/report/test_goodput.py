"""Wall time by what it went to, from hand-made events: every second in one part, whatever happened to the run."""

import json
import random

import pytest

from jaxscale.files.jsonl import read_records
from jaxscale.report.goodput import PARTS, goodput


def event(name, phase, time, attempt=1, step=None, **more):
    return {"event": name, "phase": phase, "time": time, "attempt": attempt, "step": step} | more


def step(number, time, attempt=1, seconds=1.0, wait=0.0):
    return event("step", "end", time, attempt, number, seconds=seconds, data_wait_seconds=wait)


def spent(found):
    """The parts that took time; all of them sum to the wall."""
    assert list(found.seconds) == list(PARTS)
    assert sum(found.seconds.values()) == pytest.approx(found.wall_seconds, abs=1e-9)
    assert all(v >= 0 for v in found.seconds.values())
    return {k: round(v, 9) for k, v in found.seconds.items() if v > 1e-12}


STRAIGHT = [
    event("run", "start", 100.0),
    event("init", "start", 100.0), event("init", "end", 103.0, step=0),
    event("compile", "start", 103.5), event("compile", "end", 110.0),
    step(1, 111.0), step(2, 112.0, wait=0.25),
    event("evaluation", "start", 112.0, step=2), event("evaluation", "end", 114.0, step=2),
    event("checkpoint", "start", 114.0, step=2), event("checkpoint", "end", 114.5, step=2),
    step(3, 115.5), event("run", "end", 116.0, step=3),
]  # fmt: skip


def test_a_straight_run():
    found = goodput(STRAIGHT)
    assert spent(found) == {
        "steps that counted": 2.75, "compile": 6.5, "init": 3.0, "data wait": 0.25, "evaluation": 2.0,
        "checkpoint blocking": 0.5, "other": 1.0,
    }  # fmt: skip
    assert (found.wall_seconds, found.steps_counted, found.steps_lost, found.attempts) == (16.0, 3, 0, 1)
    assert found.share == pytest.approx(2.75 / 16)


def killed_and_resumed(resumed_from):
    """Killed in step 6 of a run that saved step 3; the second attempt does 4 to 6."""
    first = [event("run", "start", 0.0), event("init", "start", 0.0), event("init", "end", 2.0, step=0)]
    first += [step(n, 2.0 + n) for n in (1, 2, 3)]
    first += [event("checkpoint", "start", 5.0), event("checkpoint", "end", 5.5), step(4, 6.5), step(5, 7.5)]
    second = [event("run", "start", 20.0, 2, resumed_from), event("init", "start", 20.0, 2)]
    second += [event("init", "end", 21.0, 2, resumed_from)]
    second += [step(n, 18.0 + n, 2) for n in (4, 5, 6)]
    return first, second


@pytest.mark.parametrize("said", [3, None])
def test_killed_and_resumed(said):
    """The steps after the checkpoint are lost, also where only the steps of the later attempt tell where it began."""
    first, second = killed_and_resumed(said)
    found = goodput(first + second)
    assert spent(found) == {
        "steps that counted": 6.0, "lost steps": 2.0, "init": 3.0, "checkpoint blocking": 0.5, "restart": 12.5
    }  # fmt: skip
    assert (found.steps_counted, found.steps_lost, found.attempts) == (6, 2, 2)


def test_lost_twice():
    """A third attempt from an older checkpoint takes steps of both before it; one that never stepped loses nothing."""
    first, second = killed_and_resumed(3)
    third = [event("run", "start", 30.0, 3), event("init", "start", 30.0, 3)]  # killed while it began
    fourth = [event("run", "start", 40.0, 4, 2), step(3, 41.0, 4)]
    found = goodput(first + second + third + fourth)
    assert (found.steps_counted, found.steps_lost, found.attempts) == (3, 6, 4)
    assert spent(found)["lost steps"] == 6.0
    assert found.seconds["restart"] == pytest.approx(12.5 + 6.0 + 10.0)


def test_starts_without_ends():
    """Killed in a compile inside of init: what is known of both is the time until the next line."""
    events = [event("init", "start", 0.0), event("compile", "start", 2.0), event("init", "start", 10.0, 2)]
    events += [event("init", "end", 11.0, 2, 0), step(1, 12.0, 2)]
    assert spent(goodput(events)) == {"init": 3.0, "restart": 8.0, "steps that counted": 1.0}


def test_an_inner_part_is_taken_from_the_outer():
    events = [event("init", "start", 0.0), event("compile", "start", 1.0), event("compile", "end", 4.0)]
    assert spent(goodput([*events, event("init", "end", 6.0)])) == {"init": 3.0, "compile": 3.0}


def test_a_step_takes_no_more_than_there_is():
    """It says 9 seconds, of which an evaluation and the step before had some."""
    events = [step(1, 2.0, seconds=5.0), event("evaluation", "start", 3.0), event("evaluation", "end", 6.0)]
    found = goodput([event("run", "start", 0.0), *events, step(2, 8.0, seconds=9.0, wait=50.0)])
    assert spent(found) == {"steps that counted": 2.0, "evaluation": 3.0, "data wait": 3.0}


def test_a_step_that_was_not_timed_has_the_time_since_the_last():
    found = goodput([event("run", "start", 0.0), step(1, 1.0), step(2, 3.0, seconds=None), step(3, 9.0)])
    assert spent(found) == {"steps that counted": 4.0, "other": 5.0}


def test_a_clock_set_back_and_unknown_lines():
    events = [event("run", "start", 10.0), step(1, 11.0), event("holiday", "start", 5.0), step(2, 12.0), {"event": "x"}]
    events += [event(["list"], {}, 12.0), event("init", "start", float("nan")), event("init", "start", "noon")]
    assert spent(goodput(events)) == {"steps that counted": 2.0}


def test_nothing_to_tell():
    assert goodput([]) is None
    assert goodput([{"event": "run"}]) is None
    only = goodput([event("run", "start", 5.0)])
    assert (only.wall_seconds, only.share) == (0.0, 0.0)


def test_a_file_cut_short(tmp_path):
    path = tmp_path / "events.jsonl"
    text = "".join(json.dumps(e) + "\n" for e in STRAIGHT)
    whole = goodput(read_records(path)) if path.exists() else None
    assert whole is None
    for cut in (len(text) - 8, len(text) - 1, 700, 3):
        path.write_text(text[:cut])
        lines = [json.loads(line) for line in text[:cut].split("\n")[:-1]]
        expected = goodput(lines if cut != len(text) - 1 else STRAIGHT)
        assert goodput(read_records(path)) == expected
        if expected:
            spent(expected)


@pytest.mark.parametrize("seed", range(20))
def test_parts_sum_to_the_wall_whatever_the_events(seed):
    rng = random.Random(seed)
    time, events = 1e9, []
    for attempt in (1, 2, 3):
        for _ in range(rng.randrange(1, 40)):
            time += rng.random() * rng.choice([0, 1, 10])
            name = rng.choice(
                ["run", "init", "compile", "evaluation", "checkpoint", "data wait", "step", "step", "odd"]
            )
            if name == "step":
                events.append(step(rng.randrange(20), time, attempt, rng.random() * 12, rng.random()))
            else:
                events.append(event(name, rng.choice(["start", "end"]), time, attempt, rng.randrange(20)))
    found = goodput(events)
    assert sum(found.seconds.values()) == pytest.approx(found.wall_seconds, abs=1e-4)
    assert min(found.seconds.values()) >= 0


# --- runs that train on samples -------------------------------------------------------------------------------


def sampled(number, start, attempt=1, reference=0.0):
    """A round of 2 s and its rewards of .5 s before step `number`, which takes 1 s: as the trainer writes them."""
    spans = [("rollout", 2.0), ("reward", 0.5), *([("reference", reference)] if reference else [])]
    events, time = [], start
    for name, seconds in spans:
        events += [
            event(name, "start", time, attempt, number - 1),
            event(name, "end", time + seconds, attempt, number - 1),
        ]
        time += seconds
    return [*events, step(number, time + 1.25, attempt, wait=time - start + 0.25, seconds=1.25)], time + 1.25


def test_samples_and_their_rewards_are_parts_and_count():
    """The wait of a step holds its samples: only the rest of it (.25 s) is waiting for data."""
    first, end = sampled(1, 10.0, reference=1.0)
    waited = [event("data wait", "start", 9.5, step=0), *first[:-1], event("data wait", "end", 13.75, step=0)]
    second, last = sampled(2, end, reference=1.0)
    found = goodput([event("run", "start", 9.5), *waited, first[-1], *second])
    assert spent(found) == {
        "steps that counted": 2.0, "sampling": 4.0, "rewards": 1.0, "reference": 2.0, "data wait": 1.0
    }  # fmt: skip
    assert found.share == pytest.approx(9.0 / found.wall_seconds)
    assert found.samples
    assert found.wall_seconds == pytest.approx(last - 9.5)
    assert not goodput(STRAIGHT).samples


def test_samples_of_lost_steps_are_lost():
    """Step 2 is done and step 3 sampled when the run is killed; it goes on from step 1."""
    one, end = sampled(1, 0.0)
    two, end = sampled(2, end)
    three, _ = sampled(3, end)
    again, _ = sampled(2, 20.0, attempt=2)
    events = [*one, *two, *three[:-1], event("run", "start", 20.0, 2, 1), *again]
    found = goodput(events)
    assert (found.steps_counted, found.steps_lost) == (2, 1)
    assert spent(found)["sampling"] == 4.0
    assert spent(found)["lost steps"] == pytest.approx(2 * 2.5 + 1.25)
