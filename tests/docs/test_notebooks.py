"""The chapters as notebooks: every block in order, drawings inside, and each runs in a kernel."""

import base64
import re
import sys
from pathlib import Path

import nbformat
import pytest

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import notebooks  # noqa: E402
from run_chapter import RUNS, blocks  # noqa: E402

CHAPTERS = sorted((DOCS / "course").glob("[0-9]*.md"))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.stem)
def test_a_notebook_has_every_block_in_order_and_its_drawings(chapter, tmp_path):
    made = nbformat.read(notebooks.write(chapter, tmp_path), as_version=4)
    nbformat.validate(made)
    markdown = chapter.read_text(encoding="utf-8")
    code = [cell.source for cell in made.cells if cell.cell_type == "code"]
    wanted = [
        (notebooks.BASH * (b.language == "bash")) + b.text.rstrip("\n") for b in blocks(markdown) if b.language in RUNS
    ]
    assert code == [notebooks.SETUP, *wanted]
    prose = [cell for cell in made.cells if cell.cell_type == "markdown"]
    shown = [name for cell in prose for name in re.findall(r"\]\(attachment:([^)]*)\)", cell.source)]
    attached = {name: files["image/png"] for cell in prose for name, files in cell.get("attachments", {}).items()}
    assert shown == [f"{name}.png" for name in re.findall(r"\]\(drawings/([^)]*)\.svg\)", markdown)] == list(attached)
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for data in attached.values())
    assert not any("](drawings/" in cell.source or "](figures/" in cell.source for cell in prose)


PRINTED = {
    "01": ["compiled  2,147,483,648 FLOPs"],
    "02": ["each device sent 114,688, compiled", "\ndown x4   h[B_fsdp, T, F_tensor]"],
}


@pytest.mark.course
@pytest.mark.turns
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda c: c.stem[:2])
def test_the_notebook_runs_in_a_kernel(chapter, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(DOCS.parent))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    made = nbformat.read(notebooks.write(chapter, tmp_path), as_version=4)
    NotebookClient(made, timeout=900, kernel_name="python3").execute()
    outputs = [output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    text = "".join(o.get("text", "") for o in outputs)
    assert all(words in text for words in PRINTED.get(chapter.stem[:2], []))
    assert any("image/png" in o.get("data", {}) for o in outputs)
