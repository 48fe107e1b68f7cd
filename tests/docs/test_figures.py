"""What the pages say of recorded figures is what the tables of benchmarks/README.md have."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = "| config | topology, mesh | HBM predicted"


def memory_errors():
    """Percent, of every compiled program in the table."""
    text = (ROOT / "benchmarks" / "README.md").read_text()
    rows = text[text.index(TABLE) :].split("\n\n")[0].splitlines()[2:]
    return [float(re.search(r"([+-][\d.]+) % \|$", row)[1]) for row in rows]


@pytest.mark.parametrize("page", ["README.md", "docs/mesh.md"])
def test_memory_is_as_far_off_as_the_table_says(page):
    errors, text = memory_errors(), " ".join((ROOT / page).read_text().split())
    large = sorted(abs(e) for e in errors if abs(e) > 5)
    assert f"memory of {len(errors) - len(large)} of {len(errors)} compiled programs" in text
    assert f"{', '.join(f'{e} %' for e in large[:-1])} and {large[-1]} % too low" in text
    assert all(e < 5 for e in errors)
