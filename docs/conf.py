"""The site: Sphinx with MyST's markdown and the theme furo. `make docs` runs the chapters first.

Offline: no page asks for anything that is not beside it, and search works from the file system.
"""

import json
import shutil
import sys
from importlib import metadata
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))
from reference_pages import PAGES  # noqa: E402
from run_chapter import BUILD, RUNS, blocks  # noqa: E402

project = "jaxscale"
copyright = "the authors of jaxscale"
release = metadata.version("jaxscale")
extensions = ["myst_parser"]
exclude_patterns = ["_static"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "jaxscale"
html_static_path = ["_static"]
html_show_search_summary = False  # it would fetch the pages, which a browser refuses to a page from a file
html_css_files = ["course.css"]
html_copy_source = html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
RUN_PAGES = ("models", "library", "own-text")
# a line of a page -> the file that stands there, up to a line of it
FILES = {
    "<!-- README.md -->": ("README.md", "## Where to go"),
    "<!-- benchmarks/README.md -->": ("benchmarks/README.md", ""),
}
pygments_style, pygments_dark_style = "friendly", "github-dark"


def show_outputs(app, name, source):
    """Under each block of a chapter what it printed when it ran; a chapter that did not run is a warning."""
    markdown = source[0]
    ran = [b for b in blocks(markdown) if b.language in RUNS] if runs(name) else []
    if not ran:
        return
    found = BUILD / Path(name).name / "outputs.json"
    if not found.exists():
        return warn(name, "it has not been run: make docs, or python docs/run_chapter.py")
    outputs = {block["line"]: block["output"] for block in json.loads(found.read_text())["blocks"]}
    if set(outputs) != {b.line for b in ran}:
        return warn(name, "it has changed since it was run: make docs, or python docs/run_chapter.py")
    lines = markdown.splitlines()
    for block in reversed(ran):
        if outputs[block.line].strip():
            text = ["", "````{code-block} text", ":class: output", "", *outputs[block.line].splitlines(), "````"]
            lines[block.end : block.end] = text
    source[0] = "\n".join(lines) + "\n"


def add_files(app, name, source):
    """README's beginning is the site's, and the record of benchmarks is a page. Links lead to pages of the site."""
    for marker, (file, end) in FILES.items():
        if marker in source[0]:
            text = (DOCS.parent / file).read_text(encoding="utf-8")
            text = text.partition(end)[0] if end else text
            source[0] = source[0].replace(marker, site_links(text))


def site_links(markdown):
    """Links of README and benchmarks/README.md, as the site has those pages."""
    markdown = markdown.replace("](docs/", "](").replace("](../docs/", "](")
    return markdown.replace("](benchmarks/README.md)", "](benchmarks.md)")


def add_reference(app, name, source):
    """What the program says of its keys, verbs and names, below what a page of the reference says."""
    if name in PAGES:
        source[0] += "\n" + PAGES[name]()


def runs(name):
    """Whether a page's blocks are run: the course's chapters, and these pages."""
    return name.startswith("course/") or name in RUN_PAGES


def warn(name, why):
    from sphinx.util import logging

    logging.getLogger(__name__).warning("%s: %s", name, why)


def take_figures(app, error):
    """The figures of this run in place of those in the repository."""
    for figure in BUILD.glob("*/figures/*") if error is None else ():
        if (shown := Path(app.outdir) / "_images" / figure.name).exists():
            shutil.copy(figure, shown)
    for page in (BUILD / "own-text" / "pages").glob("*.html") if error is None else ():
        (Path(app.outdir) / "_static" / "live").mkdir(exist_ok=True)
        shutil.copy(page, Path(app.outdir) / "_static" / "live" / page.name)


def generated(app, env, added, changed, removed):
    """Pages to read again, though their markdown is as it was: what they printed, or what they list, may be new."""
    return [name for name in env.found_docs if runs(name) or name in PAGES or name in ("index", "benchmarks")]


def setup(app):
    app.connect("env-get-outdated", generated)
    app.connect("source-read", show_outputs)
    app.connect("source-read", add_reference)
    app.connect("source-read", add_files)
    app.connect("build-finished", take_figures)
