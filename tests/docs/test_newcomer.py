"""What the newcomer's script takes from README, and how it compares outputs."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from newcomer import commands, missing  # noqa: E402


def test_readmes_commands_are_found_with_what_they_show():
    found = commands((ROOT / "README.md").read_text())
    assert found[0][0] == "make quickstart"
    typed = [command.split()[1] for command, _ in found if command.startswith("jaxscale ")]
    assert len(typed) >= 6
    assert all(shown for command, shown in found if command.startswith("jaxscale "))


def test_numbers_may_differ_and_words_may_not():
    printed = "row 1 of data: loss 1.25 nats\n│ fsdp=8 │ 95% │\n"
    assert missing(["row 7 of data: loss 2.5 nats", "│ fsdp=8 │ 11% │"], printed) == []
    assert missing(["row 1 of data: loss 1.25 bits"], printed) == ["row 1 of data: loss 1.25 bits"]


def test_a_comment_is_no_part_of_a_command():
    assert commands("```bash\nmake quickstart      # two minutes\n```\n") == [("make quickstart", [])]
