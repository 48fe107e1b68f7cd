"""Every puzzle: as shipped it is not solved, its solution passes, and what people would try fails for what it is."""

import pytest
from puzzles.answers import ALSO_RIGHT, SOLUTIONS, WRONG, fill

from jaxscale.puzzles.catalogue import CHAPTERS, PUZZLES, find
from jaxscale.puzzles.grade import grade
from jaxscale.puzzles.hints import HINTS

NAMES = [p.name for p in PUZZLES]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory) -> dict:
    """All of them, by one child process."""
    folder = tmp_path_factory.mktemp("answers")
    texts = {f"shipped {name}": (name, fill(name, [])) for name in NAMES}
    texts |= {f"solution {name}": (name, fill(name, lines)) for name, lines in SOLUTIONS.items()}
    texts |= {key: (name, fill(name, lines, more)) for key, (name, lines, more) in ALSO_RIGHT.items()}
    texts |= {key: (name, fill(name, lines, more)) for key, (name, lines, more, _) in WRONG.items()}
    files = []
    for i, (name, text) in enumerate(texts.values()):
        path = folder / f"answer{i}.py"
        path.write_text(text, encoding="utf-8")
        files.append((path, find(name)))
    return dict(zip(texts, grade(files, 120), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_as_shipped_it_says_which_line_is_missing(name, verdicts):
    lines = find(name).file.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines, 1) if "raise NotImplementedError" in line)
    verdict = verdicts[f"shipped {name}"]
    assert verdict.not_yet
    assert verdict.problem == f"not yet: line {first} is still to be replaced"
    assert not verdict.solved


@pytest.mark.parametrize("name", [*(f"solution {n}" for n in NAMES), *ALSO_RIGHT])
def test_a_right_answer_passes(name, verdicts):
    verdict = verdicts[name]
    assert verdict.solved, (verdict.problem, [c for c in verdict.checks if not c.passed])
    assert {"numbers", "layout", "communication"} <= {c.name for c in verdict.checks}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_fails_for_what_is_wrong_with_it(name, verdicts):
    wanted, verdict = WRONG[name][3], verdicts[name]
    assert not verdict.solved
    if isinstance(wanted, str):
        assert wanted in verdict.problem
        assert "\n" not in verdict.problem
        return
    assert not verdict.problem
    assert {c.name for c in verdict.checks if not c.passed} == wanted
    assert all(c.think for c in verdict.checks if not c.passed)


def test_every_puzzle_has_wrong_answers_of_its_own():
    assert {wrong[0] for wrong in WRONG.values()} == set(NAMES) == set(SOLUTIONS) == set(HINTS)
    assert [p.number for p in PUZZLES] == list(range(1, 11))
    assert {p.chapter for p in PUZZLES} <= set(CHAPTERS)


@pytest.mark.parametrize(
    ("answer", "name", "spent", "suffices"),
    [  # budgets by hand: n=8, float32
        ("partial-sums: all-reduce", "communication", "all-reduce over tensor of 3 KiB: each device sends 5.25 KiB",
         "reduce-scatter over tensor of 3 KiB: each device sends 2.625 KiB"),
        ("all-reduce: whole arrays", "communication",
         "collective-permute over data of 768 bytes, 7 times: each device sends 5.25 KiB",
         "collective-permute over data of 96 bytes, 14 times: each device sends 1.312 KiB"),
        ("accumulation: each time", "communication", "36 KiB, 8 times: each device sends 504 KiB",
         "all-reduce over data of 36 KiB: each device sends 63 KiB"),
        ("collective-matmul: once too often", "communication", "8 KiB, 8 times: each device sends 64 KiB",
         "8 KiB, 7 times: each device sends 56 KiB"),
        ("specs: dims exchanged", "layout", "first out[i_tensor, k_data], float32[8,16] on each device",
         "first out[i_data, k_tensor], float32[16,8] on each device"),
        ("fsdp: mean", "numbers", "each element is 0.125 times what it should be", ""),
        ("cross-entropy: overflows", "numbers", "is inf", ""),
    ],
)  # fmt: skip
def test_a_fail_says_what_was_seen_and_what_suffices(answer, name, spent, suffices, verdicts):
    check = next(c for c in verdicts[answer].checks if c.name == name)
    assert spent in check.seen
    assert suffices in check.suffices
