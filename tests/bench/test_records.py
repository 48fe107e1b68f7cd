"""Records and their comparison: whole, refused in one line, honest about noise."""

import json

import numpy as np
import pytest

from jaxscale.bench.compare import compare, differences, interval
from jaxscale.bench.record import (
    SCHEMA_VERSION,
    BenchRecord,
    Clock,
    Device,
    Figure,
    Peak,
    Row,
    measured,
    quantile,
    read_record,
    require_writable,
    told_if_not_finite,
    write_record,
)


def record(seconds, *, kind="step", device="Some CPU", labels=None) -> BenchRecord:
    return BenchRecord(
        kind=kind, name="test", time="2026-11-21T10:00:00+00:00", device=Device(platform="cpu", kind=device, count=1),
        clock=Clock(source="a test"), rows=[Row(labels=labels or {}, figures={"seconds": measured(seconds, "s")})],
    )  # fmt: skip


def test_a_record_comes_back_as_it_was_and_none_is_written_over(tmp_path):
    made = record([0.1, 0.3, 0.2])
    paths = [write_record(made, tmp_path) for _ in range(3)]
    assert len(set(paths)) == 3
    assert all(read_record(p) == made for p in paths)
    assert made.rows[0].figures["seconds"].value == 0.2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)  # nothing half-written is left


def test_p95_is_numpys():
    values = list(np.random.default_rng(0).random(37))
    assert quantile(values, 0.95) == pytest.approx(np.percentile(values, 95))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v | {"schema_version": SCHEMA_VERSION + 1}, r"has schema 2 and this jaxscale reads 1"),
        (lambda v: {k: x for k, x in v.items() if k != "schema_version"}, r"it has no schema_version"),
        (lambda v: v | {"rows": [{"labels": {}, "figures": {"a": {"unit": "s"}}}]}, r"rows\.0\.figures\.a\.value"),
        (lambda v: v | {"surprise": 1}, r"surprise"),
        (lambda v: [v], r"is not a record"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, change, said):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(change(json.loads(record([1.0]).model_dump_json()))))
    with pytest.raises(ValueError, match=said):
        read_record(path)


def test_half_a_record_is_refused(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(record([1.0]).model_dump_json()[:40])
    with pytest.raises(ValueError, match="is not a record"):
        read_record(path)


def test_where_nothing_can_be_written_is_known_before(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*file"):
        require_writable(tmp_path / "file" / "inside")
    assert require_writable(tmp_path / "new" / "r.json") == tmp_path / "new" / "r.json"


def test_a_difference_is_told_from_noise():
    chance = np.random.default_rng(1)
    a, b, twice = (list(chance.normal(mean, 0.1, 30)) for mean in (1.0, 1.0, 2.0))
    (same,) = compare(record(a), record(b))
    assert same.verdict == "inside the noise"
    assert same.low < 1 < same.high
    (slower,) = compare(record(a), record(twice))
    assert slower.verdict == "higher"
    assert slower.low < 2 < slower.high
    assert slower.low > 1.8
    (faster,) = compare(record(twice), record(a))
    assert faster.verdict == "lower"


def test_two_samples_tell_no_spread():
    assert interval([1.0, 1.1], [2.0, 2.1, 2.2]) == (None, None)
    (only,) = compare(record([1.0, 1.1]), record([2.0, 2.1]))
    assert only.verdict == "no spread known"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (record([1.0], kind="matmul"), "a step record and a matmul record"),
        (record([1.0], device="Another"), "--across-devices"),
        (record([1.0], labels={"m": 1}), "no figure in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(other, said):
    with pytest.raises(ValueError, match=said):
        compare(record([1.0]), other)


def test_across_devices_when_asked():
    (ratio,) = compare(record([1.0]), record([3.0], device="Another"), across_devices=True)
    assert ratio.value == 3.0


def test_a_figure_without_samples_has_its_value_as_bounds():
    figure = Figure(value=2.0, unit="s")
    assert (figure.low, figure.high, figure.p95) == (2.0, 2.0, 2.0)


def test_a_share_of_another_peak_is_no_difference():
    """Of a CPU the peak is measured: what moved may be the denominator."""

    def with_mfu(peak, samples):
        made = record([1.0] * 5)
        figures = {"mfu_causal": measured(samples, "share")}
        peak = Peak(flops_per_second=peak, source="measured")
        return made.model_copy(update={"peak": peak, "rows": [Row(figures=figures)]})

    (moved,) = compare(with_mfu(2e11, [0.5] * 5), with_mfu(4e11, [0.25] * 5))
    assert moved.verdict == "the peaks differ"
    (same,) = compare(with_mfu(2e11, [0.5] * 5), with_mfu(2e11, [0.25] * 5))
    assert same.verdict == "lower"


def test_what_differs_between_two_records_is_told():
    a = record([1.0]).model_copy(update={"config": {"model": {"embed_dim": 64}, "steps": 1}, "commit": "abc"})
    b = record([1.0], labels={"m": 1}).model_copy(update={"config": {"model": {"embed_dim": 128}, "steps": 1}})
    told = differences(a, b)
    assert told == ["config.model.embed_dim: 64 : 128", "commit: abc : None", "rows in one alone: 1 : 1"]
    assert differences(a, a) == []


def test_zero_and_nan_are_told():
    zero, one, bad = (record([v]) for v in (0.0, 1.0, float("nan")))
    assert [compare(zero, zero)[0].value, compare(zero, one)[0].verdict] == [1.0, "not a number"]
    assert compare(one, bad)[0].verdict == "not a number"


def test_a_figure_that_is_no_number_is_an_error_of_its_row(tmp_path):
    figures = {"max_error": Figure(value=float("nan"), unit="absolute"), "seconds": Figure(value=1.0, unit="s")}
    row = told_if_not_finite(Row(labels={"kernel": "x"}, figures=figures))
    assert row.error == "max_error is nan"
    assert set(row.figures) == {"seconds"}


def test_a_record_that_cannot_be_written_is_kept_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spare"))
    (tmp_path / "spare").mkdir()
    folder = tmp_path / "r.json"
    folder.mkdir()  # what stands there cannot be replaced by a file
    (folder / "x").write_text("")
    monkeypatch.setattr("pathlib.Path.is_dir", lambda self: False)
    with pytest.raises(ValueError, match=r"cannot write .*r\.json: .*; the record is in .*spare"):
        write_record(record([1.0]), folder)
    monkeypatch.undo()
    assert read_record(tmp_path / "spare" / "r.json") == record([1.0])
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_a_record_that_is_nested_too_deep(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 5000)
    with pytest.raises(ValueError, match=r"deep.json is not a record: nested deeper"):
        read_record(tmp_path / "deep.json")


def test_samples_that_have_no_finite_ratio_have_no_interval():
    assert interval([1e-320, 1e-320, 1e-320], [1e308, 1e308, 1e308]) == (None, None)
    assert interval([1.0, 2.0, 3.0], [float("inf")] * 3) == (None, None)
