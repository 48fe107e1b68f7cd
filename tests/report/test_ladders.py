"""Ladders and abilities on the page: what is drawn of a record, and what a verdict says."""

import json

import pytest

from jaxscale.report.inputs import read_inputs
from jaxscale.report.page import make_page
from jaxscale.report.report import report

ACCURACY = {
    "copy": (0.0, 0.0, 0.0, 0.0, 1.0, 1.0),
    "coin": (0.5, 0.48, 0.52, 0.5, 0.49, 0.51),
    "swap": (0.57, 0.61, 0.59, 0.55, 0.45, 0.26),
    "count": (0.0, 0.0, 0.23, 0.18, 0.23, 0.89),
    "count_chain": (0.0, 0.0, 0.13, 0.12, 0.27, 1.0),
}
NLL = {"copy": (3.47, 3.34, 3.24, 3.27, 0.03, 0.0), "count_chain": (2.71, 1.49, 0.88, 0.8, 0.29, 0.02)}
FLOPS = (8.7e9, 4.5e10, 1.3e11, 3.1e11, 1e12, 3.6e12)


def measured(ability: str, i: int, shots: int = 0) -> dict:
    chance = 0.5 if ability in ("coin", "swap") else 0.0
    metrics = {"exact": {"value": ACCURACY[ability][i], "n": 256, "sharp": True}}
    if ability in NLL:
        metrics["nll"] = {"value": NLL[ability][i], "n": 256, "sharp": False, "std": 1.0}
    return {"ability": ability, "shots": shots, "chance": chance, "metrics": metrics}


@pytest.fixture
def ladder(tmp_path):
    """A record of six sizes, the largest held out, with two seeds of the fifth that disagree about copying."""
    rungs = []
    for i, flops in enumerate(FLOPS):
        for seed in range(2 if i == 4 else 1):
            abilities = [measured(name, i) for name in ACCURACY]
            if seed:
                abilities[0]["metrics"]["exact"]["value"] = 0.0
            rungs.append(
                {
                    "name": f"d{i}-s{seed}", "seed": seed, "held_out": i == 5, "run": f"runs/d{i}-s{seed}",
                    "parameters": flops / 6e6, "tokens": 1e6, "flops": flops, "loss": 3 - 0.2 * i, "seconds": 9.0,
                    "training_seconds": 6.0, "curve": [[5e5, 3.2 - 0.2 * i], [1e6, 3 - 0.2 * i]],
                    "abilities": abilities,
                }
            )  # fmt: skip
    path = tmp_path / "ladder.json"
    path.write_text(json.dumps({"kind": "ladder", "name": "small", "law": "compute", "rungs": rungs}))
    return path


def test_loss_over_compute_with_held_out_rungs_hollow(ladder):
    page = make_page(read_inputs([ladder]))
    assert [s.title for s in page.sections] == ["Ladder", "Abilities", "Abilities compared"]
    plot = page.sections[0].plots[0]
    by_name = {s.name: s for s in plot.series}
    assert (len(by_name["fitted"]), len(by_name["held out"])) == (6, 1)
    assert by_name["held out"].hollow
    assert not by_name["fitted"].hollow
    assert by_name["held out"].columns["loss"] == [2.0]
    assert "d0-s0 on its way" in by_name
    assert "7 runs took 63 s, and 42 s of that were steps" in page.sections[0].about[0]
    assert page.sources[0].kind == "ladder"


def test_each_ability_has_a_panel_with_its_kind(ladder):
    wall = make_page(read_inputs([ladder])).sections[1]
    assert wall.wall
    titles = {p.title.split(":")[0]: p.title.split(": ")[1] for p in wall.plots}
    kinds = {"coin": "flat", "swap": "inverse", "count": "emergent", "count_chain": "emergent", "copy": "emergent"}
    assert titles == {name: kinds[name] for name in ACCURACY}
    copy = wall.plots[0]
    assert [a.key for a in copy.y] == ["exact", "nll"]
    assert copy.series[0].columns["exact"] == [0, 0, 0, 0, 0.5, 1]
    assert copy.series[0].columns["nll"][0] == -3.47  # higher is better
    assert "seeds disagree at 1e+12 FLOPs (1.00, 0.00)." in copy.about
    assert any(line.startswith("log-likelihood a token: emergent") for line in copy.about)
    chain = next(p for p in wall.plots if p.title.startswith("count_chain"))
    assert any(line.startswith("log-likelihood a token: smooth") for line in chain.about)
    chance = next(s for s in copy.series if s.name == "chance")
    assert chance.columns["exact"] == [0.0, 0.0]


def test_chain_and_direct_stand_together_and_the_census_counts(ladder):
    compared = {p.id: p for p in make_page(read_inputs([ladder])).sections[2].plots}
    assert [s.name for s in compared["together-count"].series] == ["with steps", "at once"]
    ours, theirs = compared["census"].series
    shares = dict(zip(ours.labels, ours.columns["share"], strict=True))
    assert shares == {
        "smooth": 0, "flat": 0.2, "inverse": 0.2, "U-shaped": 0, "not correlated": 0, "emergent": 0.6,
    }  # fmt: skip
    assert theirs.columns["share"][ours.labels.index("U-shaped")] is None


def test_the_wall_is_one_picture(ladder, tmp_path):
    lines = report([ladder], tmp_path / "out.html", tmp_path / "pictures")
    assert "1 ladder" in lines[0]
    drawn = {p.stem for p in (tmp_path / "pictures").iterdir()}
    assert drawn == {"ladder-loss", "abilities", "together-count", "census"}


def test_a_directory_with_a_ladder_and_a_damaged_record(ladder, tmp_path):
    assert len(read_inputs([tmp_path]).ladders) == 1
    ladder.write_text(ladder.read_text().replace('"held_out": true', '"held_out": "maybe"'))
    with pytest.raises(ValueError, match=r"ladder.json is no ladder's record: rungs.6.held_out='maybe'"):
        read_inputs([ladder])
