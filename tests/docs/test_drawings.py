"""The course's drawings are in the repository as they are drawn, and its questions stand before what answers them."""

import re
import sys
from pathlib import Path

import matplotlib
import pytest

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import drawings  # noqa: E402
from run_chapter import RUNS, blocks  # noqa: E402

CHAPTERS = sorted((DOCS / "course").glob("[0-9]*.md"))
IMAGE = re.compile(r"!\[([^\]]*)\]\(drawings/([^)]*)\)")
TEXT = re.compile(rb"<text[^>]*>([^<]*)</text>")
QUESTION = "**Before you run it.**"


def test_every_drawing_is_shown_once_with_words_and_every_one_shown_is_there():
    found = [image for c in CHAPTERS for image in IMAGE.findall(c.read_text(encoding="utf-8"))]
    assert sorted(name for _, name in found) == sorted(f"{name}.svg" for name in drawings.DRAWINGS)
    assert {f"{name}.svg" for name in drawings.DRAWINGS} == {p.name for p in drawings.OUT.iterdir()}
    assert all(len(words) > 100 for words, _ in found)


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_drawn_again_it_is_the_same(name):
    drawn, kept = drawings.draw(name), (drawings.OUT / f"{name}.svg").read_bytes()
    if f"Matplotlib v{matplotlib.__version__}".encode() in kept:
        assert drawn == kept, "make figures"
    assert TEXT.findall(drawn) == TEXT.findall(kept), "make figures"  # by any version
    assert len(drawn) < 60_000
    assert b"<dc:date>" not in drawn


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.stem)
def test_questions_stand_before_a_block_that_runs_with_their_answer_folded(chapter):
    text = chapter.read_text(encoding="utf-8")
    assert text.count(QUESTION) in (2, 3)
    starts = {b.line - 2 for b in blocks(text) if b.language in RUNS}
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith(QUESTION):
            end = lines.index("</details>", number)
            assert "?" in "".join(lines[number:end]).partition("<details>")[0]
            assert "<details><summary>Answer</summary>" in lines[number:end]
            block = next(n for n in range(end + 1, len(lines)) if lines[n])
            assert block in starts, f"{chapter.name}:{number + 1}: no block follows the answer"
