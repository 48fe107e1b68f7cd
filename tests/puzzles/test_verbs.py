"""`jaxscale puzzle ...` as a person types it."""

import json
import sys
from pathlib import Path

import pytest
from puzzles.answers import SOLUTIONS, fill

from jaxscale import cli
from jaxscale.puzzles.catalogue import PUZZLES, find
from jaxscale.puzzles.hints import HINTS


@pytest.fixture
def run(capfd, monkeypatch, tmp_path):
    """`jaxscale puzzle ...` in this process, in an empty directory: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["jaxscale", "puzzle", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_the_list_has_all_in_order(run):
    code, out, err = run("list")
    assert (code, err) == (0, "")
    assert [p.name for p in PUZZLES] == sorted((p.name for p in PUZZLES), key=out.index)
    values = json.loads(run("list", "--json")[1])
    assert [v["number"] for v in values] == list(range(1, 11))
    assert values[2]["idea"] == "one reduce-scatter (case 3)"
    assert values[2]["chapter"] == 2


def test_get_writes_the_file_and_never_over_one(run, tmp_path):
    code, out, _ = run("get", "partial-sums")
    path = tmp_path / "03_partial_sums.py"
    assert code == 0
    assert "jaxscale puzzle check 03_partial_sums.py" in out
    assert path.read_text() == find("3").file.read_text()
    path.write_text("my work")
    code, out, err = run("get", "3")
    assert (code, out) == (2, "")
    assert err == "error: 03_partial_sums.py already exists and may be your work; write elsewhere with -o FILE\n"
    assert path.read_text() == "my work"
    assert run("get", "3", "-o", tmp_path / "again.py")[0] == 0
    assert (tmp_path / "again.py").read_text() == find("3").file.read_text()
    assert "no puzzle 'nope'; there are specs," in run("get", "nope")[2]
    assert "is no directory" in run("get", "3", "-o", tmp_path / "no" / "x.py")[2]


def test_hints_come_one_at_a_time(run):
    first, second, *_ = HINTS["fsdp"]
    plain = lambda text: " ".join(text.split())  # noqa: E731
    _, out, _ = run("hint", "fsdp")
    assert first in plain(out)
    assert second not in plain(out)
    assert "jaxscale puzzle hint fsdp 2" in out
    assert second in plain(run("hint", "fsdp", 2)[1])
    everything = plain(run("hint", "5", "--all")[1])
    assert all(hint in everything for hint in HINTS["fsdp"])
    assert run("hint", "fsdp", 9) == (2, "", f"error: fsdp has {len(HINTS['fsdp'])} hints, and no number 9\n")


def test_check_tells_a_row_a_check_and_the_next_puzzle(run, tmp_path):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(fill("specs", SOLUTIONS["specs"]))
    bad.write_text(fill("specs", ["return P(), P(), P()"]))
    code, out, err = run("check", "good.py", "--seconds", 120)
    assert (code, err) == (0, "")
    assert out.count("pass") == 3
    assert "solved; the next: jaxscale puzzle get operands" in out
    code, out, err = run("check", "bad.py", "good.py", "--seconds", 120)
    assert (code, err) == (1, "")
    assert out.count("FAIL") == 2
    assert "wanted: first out[i_data, k_tensor], float32[16,8] on each device" in out
    assert "think: Read the subscripts" in out
    assert "stuck? jaxscale puzzle hint specs" in out
    assert out.endswith("1 of 2 solved\n")


def test_check_for_programs(run, tmp_path):
    (tmp_path / "mine.py").write_text(fill("specs", []))
    code, out, err = run("check", "mine.py", "--seconds", 120, "--json")
    assert (code, err) == (1, "")
    (verdict,) = json.loads(out)
    assert verdict["not_yet"]
    assert not verdict["solved"]
    assert verdict["puzzle"] == "specs"


def test_a_file_that_is_not_there_is_refused_before_anything_runs(run):
    code, out, err = run("check", "nowhere.py")
    assert (code, out) == (2, "")
    assert err == "error: nowhere.py: no such file; `jaxscale puzzle get NAME` writes a puzzle's\n"


def test_the_page_has_the_same_ten():
    page = (Path(__file__).parent.parent.parent / "docs" / "course" / "puzzles.md").read_text(encoding="utf-8")
    for p in PUZZLES:
        assert f"| {p.number} | `{p.name}` | {p.line} | {p.idea} | {p.chapter}" in page
