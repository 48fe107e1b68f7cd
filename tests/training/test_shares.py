"""An MFU that cannot be is withheld with its reason, and a CPU's peak measured again while no step runs."""

from types import SimpleNamespace

import pytest
from made_up import COMPILE, SAVE, STEP, Machine, run
from support import make_config

from jaxscale.console.train import TrainingConsole, summary_rows
from jaxscale.files.jsonl import read_records
from jaxscale.report.inputs import read_run
from jaxscale.report.runs import runs_section
from jaxscale.training import trainer
from jaxscale.training.metrics import Meter
from jaxscale.training.peak import Peak

TOO_LOW = Peak(1e9, "measured in a test", measured=True)
EACH = 3.0e9 * STEP / (8 * 32)  # FLOPs a token: a step does 3 GFLOP/s


def meter_of(peak):
    meter = Meter(make_config(), peak, EACH)
    meter.add(STEP, 0.0)
    return meter


def test_an_mfu_above_one_is_withheld():
    low, high = meter_of(TOO_LOW).speed(), meter_of(Peak(4e9, "a datasheet")).speed()
    assert (low.mfu, high.mfu, high.mfu_withheld) == (None, pytest.approx(0.75), None)
    assert low.mfu_withheld == (
        "withheld: 3 times the peak cannot be; the peak (measured in a test) was measured on a busy machine"
    )
    published = meter_of(Peak(2e9, "a datasheet")).speed()
    assert published.mfu_withheld.endswith("the peak (a datasheet) is not this chip's, or the clock is wrong")
    assert Meter(make_config(), None, EACH).speed() is None


def test_the_console_says_why(capsys, monkeypatch):
    speed = meter_of(TOO_LOW).speed()
    config = make_config(steps=1)
    TrainingConsole(config).step(1, {"loss": 2.0}, speed)
    assert "MFU withheld" in capsys.readouterr().out
    result = SimpleNamespace(speed=speed, peak=TOO_LOW, out="runs/x")
    assert ("MFU", speed.mfu_withheld) in summary_rows(config, result, [])


@pytest.mark.parametrize(("again", "times"), [(6e9, 1), (0.5e9, 3)], ids=["was too low", "still too low"])
def test_the_peak_is_measured_again_between_steps(monkeypatch, tmp_path, again, times):
    """Its time is no step's; the later figures are against the better peak; tried three times at most."""
    machine, calls = Machine(ahead=True), []

    def measure(peak, device, dtype):
        assert machine.free <= machine.now  # no step is running
        calls.append(dtype)
        machine.spend(2.0)
        return max(peak, Peak(again, "again", measured=True), key=lambda p: p.flops_per_second)

    monkeypatch.setattr(trainer, "measure_again", measure)
    monkeypatch.setattr(trainer.jax, "local_devices", lambda: [None])
    _, records, _, wall = run(
        monkeypatch, tmp_path, machine, peak=TOO_LOW, flops_per_token=EACH, checkpoint={"every": 2}
    )
    assert calls == ["float32"] * times
    seconds = [r["step_seconds"] for r in records]
    assert max(seconds) <= STEP * 1.01
    assert sum(seconds) + COMPILE + 6 * SAVE + 7.0 + 2.0 * times == pytest.approx(wall, rel=0.01)
    withheld = [r["step"] for r in records if "mfu_withheld" in r]
    assert withheld == ([2] if times == 1 else list(range(2, 13)))
    assert all(r["mfu"] == pytest.approx(0.5, rel=0.01) for r in records if "mfu" in r)
    peaks = [r for r in read_records(tmp_path / "metrics.jsonl") if r["kind"] == "peak"]
    assert len(peaks) == times


def report_of(folder):
    return runs_section([read_run(folder)], ["a run"])


def test_a_report_shows_no_mfu_above_one(tmp_path):
    """Also of a run that wrote it before it was withheld."""
    line = '{"kind": "train", "step": %d, "time": %d, "loss": 2.0, "mfu": %s}\n'
    (tmp_path / "metrics.jsonl").write_text(line % (1, 1, 22.2) + line % (2, 2, 0.25))
    section = report_of(tmp_path)
    (plot,) = [p for p in section.plots if p.id == "mfu"]
    assert plot.series[0].columns["mfu"] == [None, 0.25]
    assert plot.about[0].endswith("Withheld in 1 records: above 1, so the peak was measured too low.")
    (tmp_path / "metrics.jsonl").write_text(line % (1, 1, 22.2))
    section = report_of(tmp_path)
    assert not [p for p in section.plots if p.id == "mfu"]
    assert any("Withheld in 1 records" in text for text in section.about)
