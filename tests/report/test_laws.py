"""Laws on the page: the curve is the law's own, with its interval; held-out runs are hollow."""

import math

import numpy as np
import pytest

from jaxscale.report.inputs import read_inputs
from jaxscale.report.laws import budgets
from jaxscale.report.page import make_page
from jaxscale.report.report import report
from jaxscale.scaling.law import write_law
from jaxscale.scaling.laws import fit
from jaxscale.scaling.table import hold_out, read_table

E, A, ALPHA, B, BETA = 1.8, 480.0, 0.35, 2000.0, 0.37


def law_file(folder, form, rows, hold=None):
    """A law of runs (N, D) whose loss is Chinchilla's, with half a percent of noise."""
    rng = np.random.default_rng(0)
    lines = ["parameters,tokens,loss"]
    for N, D in rows:
        loss = (E + A / N**ALPHA + B / D**BETA) * math.exp(0.005 * rng.standard_normal())
        lines.append(f"{N:.8g},{D:.8g},{loss:.8g}")
    (folder / "runs.csv").write_text("\n".join(lines) + "\n")
    table = read_table(folder / "runs.csv")
    path = folder / f"{form}.json"
    write_law(fit(form, table if hold is None else hold_out(table, hold), draws=40), path)
    return path


LADDER = [(1e7 * 2**i, 2e8 * 2**i) for i in range(8)] + [(4e7, 2e9), (1.6e8, 8e8), (6e8, 3e9)]


def test_a_law_is_drawn_with_its_interval(tmp_path):
    page = make_page(read_inputs([law_file(tmp_path, "chinchilla", LADDER, "largest")]))
    (section,) = page.sections
    loss, size, left_out = section.plots
    by_name = {s.name: s for s in loss.series}
    assert by_name["held out"].hollow
    assert len(by_name["fitted"]) == 10
    best, low, high = (by_name[n].columns["loss"] for n in ("the law, at the best size", "5 %", "95 %"))
    assert all(a <= b <= c for a, b, c in zip(low, best, high, strict=True))
    law = read_inputs([tmp_path / "chinchilla.json"]).laws[0][1]
    p, C = law.parameters, by_name["5 %"].columns["flops"][7]
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    N = G * (C / 6) ** (p["beta"] / (p["alpha"] + p["beta"]))
    assert best[7] == pytest.approx(p["E"] + p["A"] / N ** p["alpha"] + p["B"] / (C / 6 / N) ** p["beta"], rel=1e-9)
    sizes = {s.name: s.columns for s in size.series}
    assert sizes["the law"]["parameters"][7] == pytest.approx(N, rel=1e-9)
    thumb = sizes["20 tokens a parameter"]
    assert thumb["tokens"][3] == pytest.approx(20 * thumb["parameters"][3])
    assert {s.name for s in left_out.series} == {"left out in turn", "held out", "equal"}
    assert "the largest rung, forecast from the others, is off by" in section.about[1]


def test_budgets_are_drawn_with_their_minima(tmp_path):
    rows = [
        (n, C / 6 / n)
        for C in (1e18, 3e18, 1e19, 3e19, 1e20)
        for n in np.geomspace(0.3, 3, 6) * 0.3 * (C / 6) ** 0.5 * 0.25
    ]
    page = make_page(read_inputs([law_file(tmp_path, "isoflop", rows)]))
    plot = next(p for p in page.plots if p.id == "law-budgets-1")
    assert len(plot.series) == 10
    assert all(len(s) == 6 for s in plot.series[::2])
    law = read_inputs([tmp_path / "isoflop.json"]).laws[0][1]
    assert [len(b) for b in budgets(law.fitted_rows)] == [6] * 5
    for one, best in zip(plot.series[::2], plot.series[1::2], strict=True):
        lowest = min(zip(one.columns["loss"], one.columns["parameters"], strict=True))[1]
        assert best.columns["parameters"][0] == pytest.approx(lowest, rel=1.0)


def test_a_law_is_written_as_pictures_and_two_have_their_names(tmp_path):
    one = law_file(tmp_path, "compute", LADDER)
    two = law_file(tmp_path, "chinchilla", LADDER)
    lines = report([one, two], tmp_path / "laws.html", tmp_path / "pictures")
    assert "2 laws" in lines[0]
    drawn = {p.stem for p in (tmp_path / "pictures").iterdir()}
    assert drawn == {"law-loss-1", "law-left-out-1", "law-loss-2", "law-size-2", "law-left-out-2"}
