"""The page: one HTML file with its data, its style and its script inside, which opens with no network. No jax."""

import base64
import hashlib
import html
import json
import math
from dataclasses import asdict, dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jaxscale.bench.record import now
from jaxscale.files.whole import write_whole
from jaxscale.report.benchmarks import benchmark_sections, records_section
from jaxscale.report.headline import headline
from jaxscale.report.inputs import Inputs, ladder_source, law_source, record_source, run_source, tell_apart
from jaxscale.report.ladders import ladder_sections
from jaxscale.report.laws import laws_sections
from jaxscale.report.learned import learned_sections
from jaxscale.report.plots import Plot, Section, Source, Tile
from jaxscale.report.runs import runs_section
from jaxscale.report.samples import samples_sections

MOST_NAMES = 6  # in the title
SCRIPTS = ("numbers.js", "draw.js", "copies.js", "figure.js", "tables.js", "page.js")


@dataclass
class Page:
    """What is shown; `skipped` are files that were passed over."""

    title: str
    made: str
    sources: list[Source]
    sections: list[Section]
    tiles: list[Tile]
    skipped: list[str]

    @property
    def plots(self) -> list[Plot]:
        return [plot for section in self.sections for plot in section.plots]


def make_page(inputs: Inputs) -> Page:
    """Everything that is shown. Sources are the runs, then the records, the ladders, the laws."""
    sources = [run_source(run) for run in inputs.runs] + [record_source(*item) for item in inputs.records]
    sources += [ladder_source(*item) for item in inputs.ladders]
    sources += [law_source(*item) for item in inputs.laws]
    tell_apart(sources)
    names = [source.name for source in sources]
    first = len(inputs.runs)
    items = [(first + i, names[first + i], record) for i, (_, record) in enumerate(inputs.records)]
    sections = [runs_section(inputs.runs, names[:first])] if inputs.runs else []
    sections += samples_sections(inputs.runs, names[:first])
    sections += learned_sections(inputs.runs, names[:first]) + benchmark_sections(items)
    after = first + len(items)
    sections += ladder_sections([(after + i, names[after + i], ladder) for i, (_, ladder) in enumerate(inputs.ladders)])
    after += len(inputs.ladders)
    sections += laws_sections([(after + i, names[after + i], law) for i, (_, law) in enumerate(inputs.laws)])
    sections += [records_section(items)] if items else []
    tiles = headline(inputs.runs, names[:first])
    different = list(dict.fromkeys(names))
    title = ", ".join(different[:MOST_NAMES]) + (
        f" and {len(different) - MOST_NAMES} more" * (len(different) > MOST_NAMES)
    )
    return Page(title, now(), sources, sections, tiles, list(map(str, inputs.skipped)))


def write_page(page: Page, path: Path) -> Path:
    return write_whole(path, page_text(page))


def page_text(page: Page) -> str:
    """The file's text. Whatever came from files is JSON in a script that no browser runs, and text in the page."""
    return assembled("jaxscale.report", page.title, page_values(page), package_texts("jaxscale.report", SCRIPTS))


def page_values(page: Page) -> dict[str, Any]:
    """What the page's script reads."""
    return rounded(asdict(page) | {"version": metadata.version("jaxscale")})


def package_texts(package: str, names: tuple[str, ...]) -> list[str]:
    return [(resources.files(package) / name).read_text(encoding="utf-8") for name in names]


def assembled(package: str, title: str, values: Any, scripts: list[str], *, more: str = "") -> str:
    """`page.html` of a package with its `page.css`, the scripts and the data inside; nothing else may be loaded.

    Args:
        more: what else the page's policy allows.
    """
    template, style = package_texts(package, ("page.html", "page.css"))
    script = "\n".join(scripts)
    parts = {
        "TITLE": html.escape(title.encode("utf-8", "replace").decode()),  # a name may hold half a character
        "POLICY": f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; img-src data:{more}",
        "STYLE": style,
        "SCRIPT": script,
        "DATA": embedded(values),
    }
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(template.split("@@")))


def digest(text: str) -> str:
    """What a content security policy knows an inline style or script by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def embedded(values: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever strings it holds."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def rounded(values: Any) -> Any:
    """Floats to 7 digits: more are not seen, and the files are there. None of them is seconds since 1970.

    A sum or a ratio of figures that are finite may be infinite: it is left out, as JSON has no such number.
    """
    if isinstance(values, float):
        return float(f"{values:.7g}") if math.isfinite(values) else None
    if isinstance(values, dict):
        return {k: rounded(v) for k, v in values.items()}
    return [rounded(v) for v in values] if isinstance(values, list) else values
