"""The chapters of the course as notebooks, made from the same markdown: build/notebooks/NN-name.ipynb.

    python docs/notebooks.py                                 # all of them; also `make notebooks`
    python docs/notebooks.py docs/course/01-matmul.md        # one

```python blocks become cells, ```bash blocks become `%%bash` cells, and the text between stays markdown. The first
cell makes a directory of its own for what the chapter writes, and eight simulated devices. Drawings are attached to
their cells, as PNG: Jupyter shows no SVG that is attached. So a notebook is one file, wherever it is opened.
"""

import base64
import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))
from drawings import draw  # noqa: E402
from run_chapter import RUNS, blocks  # noqa: E402

OUT = DOCS.parent / "build" / "notebooks"
FIGURE = re.compile(r"!\[([^\]]*)\]\(figures/[^)]*\)")
DRAWING = re.compile(r"\]\(drawings/([a-z-]+)\.svg\)")
LINK = re.compile(r"\]\((?!https?:|#|attachment:)([^)]*)\)")
BASH = "%%bash\nset -eo pipefail\n"  # an error ends the cell
SETUP = """\
# Where jaxscale is missing (Colab, say): upload its wheel, and %pip install jaxscale-0.1.0-py3-none-any.whl
import os, sys, tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100"}
for colors in ("FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR"):  # a kernel's, which files would get too
    os.environ.pop(colors, None)
os.chdir(tempfile.mkdtemp())
os.makedirs("figures")

import jax

jax.config.update("jax_num_cpu_devices", 8)"""


def notebook(markdown: str) -> nbformat.NotebookNode:
    """A chapter's cells in order."""
    lines, cells, at = markdown.splitlines(), [], 0
    for block in (b for b in blocks(markdown) if b.language in RUNS):
        cells += prose(lines[at : block.line - 2])
        code = block.text.rstrip("\n")
        cells.append(new_code_cell(BASH + code if block.language == "bash" else code))
        at = block.end
    cells += prose(lines[at:])
    cells.insert(1, new_code_cell(SETUP))
    found = new_notebook(cells=cells)
    found.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for number, cell in enumerate(found.cells):
        cell.id = f"cell-{number}"  # the same file from the same chapter
    return found


def prose(lines: list[str]) -> list[nbformat.NotebookNode]:
    """A markdown cell with its drawings, without figures, which the cells draw, and without links between pages."""
    text = FIGURE.sub(r"*\1*", "\n".join(lines)).strip()
    if not text:
        return []
    names = DRAWING.findall(text)
    text = DRAWING.sub(r"](attachment:\1.png)", text)
    cell = new_markdown_cell(re.sub(r"\[([^\]]*)" + LINK.pattern, r"\1", text))
    if names:
        images = {name: base64.b64encode(draw(name, "png")).decode() for name in names}
        cell["attachments"] = {f"{name}.png": {"image/png": image} for name, image in images.items()}
    return [cell]


def write(chapter: Path, out: Path = OUT) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{chapter.stem}.ipynb"
    found = notebook(chapter.read_text(encoding="utf-8"))
    nbformat.validate(found)
    nbformat.write(found, path)
    return path


def main() -> None:
    chapters = [Path(p) for p in sys.argv[1:]] or sorted(DOCS.glob("course/[0-9]*.md"))
    for chapter in chapters:
        print(write(chapter))


if __name__ == "__main__":
    main()
