"""Every chapter of the course runs, and the pages on models and the library: `make course`.

What they leave in build/course is what `make docs` shows.
"""

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
CHAPTERS = sorted((DOCS / "course").glob("[0-9]*.md"))
PAGES = [DOCS / f"{name}.md" for name in ("models", "library", "own-text")]


@pytest.mark.course
@pytest.mark.parametrize("chapter", [*CHAPTERS, *PAGES], ids=lambda c: c.stem)
def test_chapter(chapter):
    command = [sys.executable, str(DOCS / "run_chapter.py"), str(chapter)]
    ran = subprocess.run(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, timeout=1500, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "Involuntary full rematerialization" not in ran.stderr


def test_the_chapters_are_in_order_and_their_figures_are_in_the_repository():
    sys.path.insert(0, str(DOCS))
    from run_chapter import figures

    assert [c.name[:2] for c in CHAPTERS] == [f"{n:02}" for n in range(1, len(CHAPTERS) + 1)]
    shown = {name for c in CHAPTERS for name in figures(c.read_text())}
    assert {f"figures/{p.name}" for p in (DOCS / "course" / "figures").glob("*")} == shown
