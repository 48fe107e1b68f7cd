"""A step's time is the step's, whatever is read when; the parts of a run add up to the wall."""

import pytest
from made_up import COMPILE, DISPATCH, EVALUATION, OUTER, SAVE, STEP, Machine, run

from jaxscale.report.goodput import goodput

OFTEN = {
    "nothing else": {},
    "evaluation.every=2": {"evaluation": {"every": 2, "batches": 1}},
    "evaluation.every=1": {"evaluation": {"every": 1, "batches": 1}},
    "checkpoint.every=1": {"checkpoint": {"every": 1}},
    "checkpoint.every=3": {"checkpoint": {"every": 3}},
    "recompute_every=2": {"guard": {"recompute_every": 2}},
    "outer.every=4": {"mesh": {"replica": 2}, "outer": {"every": 4}},
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

    spans = dict.fromkeys(("evaluation", "checkpoint", "recompute", "compile", "data wait", "outer step"), 0.0)
    for e in events:
        if e["event"] in spans:
            spans[e["event"]] += e["time"] if e["phase"] == "end" else -e["time"]
    counts = {n: sum((e["event"], e["phase"]) == (n, "end") for e in events) for n in spans}
    assert spans["evaluation"] == pytest.approx((EVALUATION + wait) * counts["evaluation"], abs=1e-4)
    assert spans["outer step"] == pytest.approx(OUTER * counts["outer step"], abs=1e-4)
    assert counts["outer step"] == (3 if often == "outer.every=4" else 0)
    assert spans["checkpoint"] == pytest.approx(SAVE * counts["checkpoint"], abs=1e-4)
    assert sum(seconds) + sum(spans.values()) == pytest.approx(wall, rel=0.001)

    spent = goodput(events)
    assert spent.wall_seconds == pytest.approx(wall, abs=1e-4)
    assert sum(spent.seconds.values()) == pytest.approx(wall, abs=1e-4)
    assert spent.seconds["other"] == pytest.approx(spans["recompute"], abs=0.001 * wall)
    assert spent.seconds["outer steps"] == pytest.approx(spans["outer step"], abs=1e-4)
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
    assert one.position.skipped == 2  # step 8 read batch 7; back to step 6, past batches 6 and 7
    assert [r["step"] for r in records] == list(range(1, 13))
    done = [e for e in events if e["event"] == "step"]
    assert [e["step"] for e in done] == [1, 2, 3, 4, 5, 6, 7, 8, 7, 8, 9, 10, 11, 12]
    assert min(e["seconds"] for e in done) >= STEP * 0.999
    spent = goodput(events)
    assert (spent.steps_counted, spent.steps_lost) == (12, 2)
    assert sum(spent.seconds.values()) == pytest.approx(wall, abs=1e-4)
