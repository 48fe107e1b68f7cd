"""A share of a peak above 1 cannot be: a measured peak is measured again, and what is still above is withheld."""

import json

import jax
import numpy as np
import pytest

from jaxscale.bench import header, load, peaks
from jaxscale.bench.compare import compare, differences
from jaxscale.bench.header import Header
from jaxscale.bench.load import Load, read_load
from jaxscale.bench.record import BenchRecord, Clock, Device, Row, measured, read_record, write_record
from jaxscale.console.bench import provenance
from jaxscale.training.peak import Peak


def around(value, unit):
    return measured([0.9 * value, value, 1.1 * value], unit)


def matmul(n, rate, peak, dtype="float32"):
    figures = {"flops_per_second": around(rate, "FLOP/s"), "share_of_peak": around(rate / peak, "share")}
    return Row(labels={"m": n, "k": n, "n": n, "dtype": dtype}, figures=figures)


def step(share):
    return Row(figures={"mfu_causal": around(share, "share"), "hfu_causal": around(1.3 * share, "share")})


@pytest.fixture
def measure(monkeypatch):
    """What measuring the peak again gives, and how often that was done."""
    calls = []

    def give(rate):
        monkeypatch.setattr(
            peaks, "measure_peak", lambda device, dtype: calls.append(dtype) or Peak(rate, "again", True)
        )
        return calls

    monkeypatch.setattr(header, "read_load", Load)
    return give


def made(rows, peak):
    return Header("step", "test", jax.devices()[:1], peak=peak, load=Load()).record(rows)


def test_a_peak_measured_too_low_is_measured_again(measure):
    calls = measure(40e9)
    record = made([step(1.6)], Peak(10e9, "first", measured=True))
    assert calls == ["float32"]
    figures = record.rows[0].figures
    assert figures["mfu_causal"].value == pytest.approx(0.4)
    np.testing.assert_allclose(figures["mfu_causal"].samples, [0.36, 0.4, 0.44])
    assert figures["hfu_causal"].value == pytest.approx(0.52)
    assert record.peak.flops_per_second == 40e9
    assert record.peak.source == "again; the first measurement gave 0.01 TFLOP/s"
    assert record.notes == []


def test_what_is_still_above_one_is_withheld(measure):
    measure(9e9)  # lower than before: the first one stays
    record = made([step(0.9)], Peak(10e9, "first", measured=True))
    assert set(record.rows[0].figures) == {"mfu_causal"}
    assert record.peak.source == "first"
    assert [n.split(":")[0] for n in record.notes] == ["hfu_causal withheld in 1 of 1 rows"]
    assert "1.17 times the peak" in record.notes[0]


def test_a_published_peak_is_not_measured(measure):
    calls = measure(1.0)
    record = made([step(2.0)], Peak(10e9, "a datasheet"))
    assert not calls
    assert record.rows[0].figures == {}
    assert len(record.notes) == 2


def test_a_possible_share_stays_as_it_is(measure):
    calls = measure(1.0)
    rows = [step(0.5), matmul(8, 5e9, 10e9)]
    record = made(rows, Peak(10e9, "first", measured=True))
    assert (record.rows, record.notes, calls) == (rows, [], [])


def test_the_best_matmul_of_a_record_is_a_peak_too(measure):
    measure(11e9)
    rows = [matmul(8, 12e9, 10e9), matmul(16, 5e9, 10e9), matmul(8, 4e9, 20e9, "bfloat16")]
    record = made(rows, Peak(10e9, "first", measured=True))
    shares = [row.figures["share_of_peak"].value for row in record.rows]
    assert shares == pytest.approx([1.0, 5 / 12, 0.2])  # the other dtype has a peak of its own
    assert record.peak.flops_per_second == 12e9
    assert record.notes == []


# --- records on disk ------------------------------------------------------------------------------------------


def old_record(rows, **clock) -> BenchRecord:
    return BenchRecord(
        kind="step", name="test", time="2026-11-21T10:00:00+00:00", device=Device(platform="cpu", kind="CPU", count=1),
        clock=Clock(source="a test", **clock), rows=rows, peak={"flops_per_second": 1e10, "source": "first"},
    )  # fmt: skip


def test_an_older_record_with_an_impossible_share_is_read_without_it(tmp_path):
    rows = [step(22.2).model_copy(update={"figures": step(22.2).figures | {"seconds": around(1.0, "s")}})]
    values = json.loads(old_record(rows).model_dump_json())
    del values["clock"]["others"], values["clock"]["busy_with"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(values))
    record = read_record(path)
    assert set(record.rows[0].figures) == {"seconds"}
    assert record.notes[0].startswith("mfu_causal withheld in 1 of 1 rows: 22.2 times the peak cannot be")
    assert record.under_load is None
    assert [r.figure for r in compare(record, record)] == ["seconds"]
    assert record.notes[0] in provenance(record)


def test_a_record_made_under_load_is_marked(tmp_path):
    quiet = old_record([step(0.5)], load=(0.1, 1.0), others=(0.02, 0.1))
    busy = old_record([step(0.5)], load=(2.1, 3.0), others=(1.7, 0.1), busy_with=["cc1plus", "python"])
    said = "made under load: other processes kept 1.7 cores busy before and 0.1 after (cc1plus, python)"
    assert (quiet.under_load, busy.under_load) == (None, said)
    assert read_record(write_record(busy, tmp_path)) == busy
    assert said in provenance(busy)
    assert differences(quiet, busy) == [f"b was {said}"]
    assert differences(busy, quiet) == [f"a was {said}"]


# --- the load -------------------------------------------------------------------------------------------------


def test_cores_that_others_keep_busy(tmp_path, monkeypatch):
    """From two looks at /proc: this process and its children do not count, nor do idle time and waiting for disks."""

    def look(user, ticks):
        (tmp_path / "stat").write_text(f"cpu  {user} 0 0 9000 400 0 0 0 0 0\ncpu0 1 2 3\n")
        for pid, (name, used) in ticks.items():
            (tmp_path / str(pid)).mkdir(exist_ok=True)
            (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) R 1 1 1 0 -1 4 1 0 0 0 {used} 0 0 0 20 0 1 0\n")

    mine, clock = load.os.getpid(), [0.0]
    look(1000, {mine: ("me", 10), 2**22 + 5: ("my child", 0), 7: ("a (b) c", 100), 8: ("idle", 5)})
    (tmp_path / str(mine) / "task" / str(mine)).mkdir(parents=True)
    (tmp_path / str(mine) / "task" / str(mine) / "children").write_text(f"{2**22 + 5} ")

    def sleep(seconds):
        clock[0] += 1.0
        look(1000 + 250, {mine: ("me", 30), 2**22 + 5: ("my child", 40), 7: ("a (b) c", 250), 8: ("idle", 5)})

    monkeypatch.setattr(load, "PROC", tmp_path)
    monkeypatch.setattr(load.time, "sleep", sleep)
    monkeypatch.setattr(load.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    found = read_load()
    assert found.others == pytest.approx((250 - 20 - 40) / 100)
    assert found.names == ["a (b) c"]


def test_a_system_that_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "PROC", tmp_path)
    assert read_load(0.0).others is None
