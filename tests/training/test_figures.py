"""Every figure of a step is of what was applied, whatever was skipped, thrown away or done again."""

import math

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_up import Machine, run

from jaxscale.files.jsonl import read_records

STEPS = 12
NAN = float("nan")


def wait(number):
    """Seconds until batch `number` is there."""
    return 0.01 * (number % 7)


def same(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


def last_of_each(records, key="step"):
    return {r[key]: r for r in records}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    policy=st.sampled_from(["skip", "rollback"]),
    ahead=st.booleans(),
    bad=st.sets(st.integers(0, STEPS + 6), max_size=4),
    saves=st.integers(1, 5),
    evaluations=st.integers(0, 4),
    every=st.integers(1, 3),
)
@example(policy="rollback", ahead=True, bad={3, 4, 5, 9}, saves=3, evaluations=2, every=1)
@example(policy="skip", ahead=False, bad={0, 1, 11}, saves=2, evaluations=0, every=2)
def test_what_is_written_is_what_was_applied(
    monkeypatch, tmp_path_factory, policy, ahead, bad, saves, evaluations, every
):
    """The state that comes out holds its history; Result.losses, metrics.jsonl and events.jsonl agree with it."""
    if policy == "rollback":
        bad = {n for n in bad if n >= saves}  # before the first checkpoint there is nothing to go back to
    machine = Machine(ahead=ahead, bad=dict.fromkeys(bad, 10))
    with monkeypatch.context() as patched:
        folder = tmp_path_factory.mktemp("run")
        one, records, events, _ = run(
            patched, folder, machine, wait=wait, steps=STEPS, on_nonfinite=policy, checkpoint={"every": saves},
            evaluation={"every": evaluations, "batches": 1}, metrics={"every": every}, guard={"max_rollbacks": 10},
        )  # fmt: skip
    assert one.final.step == STEPS == len(one.final.applied)
    history = dict(enumerate(one.final.applied, 1))
    batches = [number for number, _ in history.values()]
    assert batches == sorted(set(batches))  # none twice
    if policy == "rollback":
        assert not bad & set(batches)

    assert list(one.losses) == list(history)
    for step, (number, loss) in history.items():
        assert same(one.losses[step], loss), f"step {step} read batch {number}"
        assert math.isnan(loss) == (number in bad)

    assert [r["step"] for r in records] == [s for s in history if s % every == 0 or s == STEPS]
    done = last_of_each(e for e in events if e["event"] == "step")
    assert sorted(done) == list(history)
    for r in records:
        number, loss = history[r["step"]]
        assert same(float(r["loss"]), loss)
        assert r["tokens"] == 100 + number
        assert r["data_wait_seconds"] == wait(number) == done[r["step"]]["data_wait_seconds"]
        assert r["step_seconds"] == done[r["step"]]["seconds"]

    written = read_records(folder / "metrics.jsonl")
    skipped = [r for r in written if r["kind"] == "nonfinite"]
    if policy == "skip":
        assert [r["step"] for r in skipped] == [s for s, (number, _) in history.items() if number in bad]
        assert one.guard.skipped == len(skipped)
    assert one.position.skipped == history[STEPS][0] - (STEPS - 1)
    saved = [r["step"] for r in written if r["kind"] == "checkpoint"]
    assert saved == [s for s in history if s % saves == 0 or s == STEPS]
    validated = [r["step"] for r in written if r["kind"] == "validation"]
    due = [s for s in history if (evaluations and s % evaluations == 0) or s == STEPS]
    assert [s for s in validated if s] == due


def test_a_step_that_stays_bad_stops_the_run(monkeypatch, tmp_path):
    machine = Machine(ahead=True, bad=dict.fromkeys(range(4, 40), 10))
    with pytest.raises(ValueError, match="at step 5: stopped after 2 rollbacks"):
        run(
            monkeypatch, tmp_path, machine, on_nonfinite="rollback", checkpoint={"every": 2}, guard={"max_rollbacks": 2}
        )
    steps = [r["step"] for r in read_records(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    assert steps == [1, 2, 3, 4]
