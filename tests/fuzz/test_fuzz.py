"""A few cases of every kind of input; `benchmarks/fuzz.py` runs the same by thousands."""

import pytest

from fuzz.campaign import ALL, run_target

CASES = {"checkpoint": 20, "process": 6}


@pytest.mark.parametrize("target", ALL, ids=lambda target: target.name)
def test_any_input_is_read_or_refused_in_one_line_and_nothing_else_is_touched(target, tmp_path):
    found = run_target(target, tmp_path, cases=CASES.get(target.name, 150), seed=0)
    assert not found.defects, "\n".join(map(str, found.defects))
    assert found.refused
    assert found.accepted + found.refused == found.cases == CASES.get(target.name, 150)
