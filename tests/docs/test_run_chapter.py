"""The runner of the course fails where it should, and says where."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).parents[2] / "docs" / "run_chapter.py"


@pytest.fixture
def run(tmp_path):
    """Runs markdown as a chapter: the finished process, and the directory that it wrote."""

    def runs(markdown: str):
        (tmp_path / "01-x.md").write_text(markdown)
        command = [sys.executable, str(RUNNER), "--out", str(tmp_path / "out"), str(tmp_path / "01-x.md")]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return ran, tmp_path / "out" / "01-x"

    return runs


GOOD = """# A chapter

```python
import jax, matplotlib.pyplot as plt
x = jax.device_count()
print("devices", x)
```

```bash
pwd > place
echo "$(python -c 'print(1 + 1)')"
jaxscale --help > help.txt
```

```text
never run
```

```python
from pathlib import Path
assert Path("place").read_text().strip() == str(Path.cwd()) and "jaxscale" in Path("help.txt").read_text()
plt.plot([x, 1])
plt.savefig("figures/01-line.svg")
```

![a line](figures/01-line.svg)
"""


def test_blocks_share_a_namespace_a_directory_and_eight_devices(run):
    ran, out = run(GOOD)
    assert ran.returncode == 0, ran.stderr
    found = json.loads((out / "outputs.json").read_text())["blocks"]
    assert [(b["line"], b["output"]) for b in found] == [(4, "devices 8\n"), (10, "2\n"), (20, "")]
    first = (out / "figures" / "01-line.svg").read_text()
    assert run(GOOD)[0].returncode == 0
    assert (out / "figures" / "01-line.svg").read_text() == first  # no date, no random ids


@pytest.mark.parametrize(
    ("markdown", "message"),
    [
        ("```python\nx = 1\n\nassert x == 2\n```", "01-x.md:4: AssertionError: assert x == 2"),
        (
            "```python\ndef f():\n    assert False\n```\n\n```python\nf()\n```",
            "01-x.md:3: AssertionError: assert False",
        ),
        ("```python\nx = (\n```", "01-x.md:2: SyntaxError"),
        ("```python\nimport sys\nsys.exit()\n```", "01-x.md:3: SystemExit"),
        ("```python\nimport warnings\nwarnings.warn('old')\n```", "01-x.md:3: UserWarning: old"),
        ("```bash\necho before\nfalse\necho after\n```", "01-x.md:3: exit code 1\n\nbefore"),
        ("text\n\n![two\nlines](figures/01-f.svg)", "01-x.md:4: figures/01-f.svg was not made by this chapter's code"),
        ("```python\nopen('figures/01-g.svg', 'w').close()\n```", "01-x.md:1: made but not shown: figures/01-g.svg"),
        ("```python\nopen('figures/02-g.svg', 'w').close()\n```\n![g](figures/02-g.svg)", "begin its name with 01-"),
        ("\n```python\nx = 1", "line 2: this block is never closed"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(run, markdown, message):
    ran, out = run(markdown + "\n")
    assert ran.returncode == 1
    assert message in ran.stderr
    assert not (out / "outputs.json").exists()
