"""Files and modules that the documentation and the docstrings name are there."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "jaxscale"
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks" / "README.md"]
PAGES.remove(ROOT / "CHANGELOG.md")  # which speaks of what was there
SOURCES = [p for pattern in ("jaxscale/**/*.py", "jaxscale/**/*.js", "benchmarks/*.py") for p in ROOT.glob(pattern)]
SOURCES.remove(ROOT / "benchmarks" / "published_runs.py")  # which names other projects' files
FOLDERS = ("jaxscale", "tests", "benchmarks", "docs")
NAMES = {p.name for folder in FOLDERS for p in (ROOT / folder).rglob("*.*")}
ROOMS = {p.name for p in PACKAGE.iterdir() if p.is_dir()} - {"config", "data", "checkpoint"}  # `config.data.seq_len`

PATH = re.compile(r"(?<![\w./{}-])((?:[\w-]+/)+[\w.-]+\.(?:py|js))\b")
FILE = re.compile(r"`([\w-]+\.(?:py|js))`")  # without its folder
MODULE = re.compile(r"(?<![\w./])(jaxscale(?:\.[A-Za-z_]\w*)+)(?![\w/-])")
IMPORTED = re.compile(r"^\s*from (jaxscale[\w.]*) import (?:\(([^)]*)\)|(.*))$", re.MULTILINE)
IN_A_ROOM = re.compile(rf"`((?:{'|'.join(sorted(ROOMS))})(?:\.[A-Za-z_]\w*)+)`")
PLACEHOLDER = re.compile(r"NAME|NN")
OTHERS = ("dev/data/data_common.py", "jaxscale.tokens")  # llm.c's file; the name of a format
ENDINGS = (".yaml", ".html", ".css", ".py", ".js")


def missing_paths(text: str) -> list[str]:
    paths = [p for p in PATH.findall(text) if not PLACEHOLDER.search(p) and p not in OTHERS]
    return [p for p in paths if not any((folder / p).exists() for folder in (ROOT, PACKAGE, ROOT / "docs"))]


def missing_modules(text: str) -> list[str]:
    modules = MODULE.findall(text) + [f"jaxscale.{m}" for m in IN_A_ROOM.findall(text)] + imported(text)
    return [m for m in modules if m not in OTHERS and not m.endswith(ENDINGS) and not is_there(m)]


def imported(text: str) -> list[str]:
    """Each name of `from jaxscale.room import a, b as c`, dotted."""
    found = []
    for module, in_brackets, on_the_line in IMPORTED.findall(text):
        names = re.sub(r"#.*", "", in_brackets or on_the_line).split(",")
        found += [f"{module}.{name.split()[0]}" for name in names if name.strip()]
    return found


def is_there(dotted: str) -> bool:
    """A module, or a name in one."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        try:
            there = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for name in parts[n:]:
            if not hasattr(there, name) and name not in getattr(there, "__annotations__", {}):
                return False
            there = getattr(there, name, None)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_page_names_what_is_there(page):
    text = page.read_text(encoding="utf-8")
    assert missing_paths(text) == []
    assert [f for f in FILE.findall(text) if f not in NAMES] == []
    assert missing_modules(text) == []


def test_sources_name_what_is_there():
    texts = {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in SOURCES}
    wrong = {name: missing_paths(t) + missing_modules(t) for name, t in texts.items()}
    assert {name: names for name, names in wrong.items() if names} == {}


def test_a_name_that_is_gone_is_seen():
    assert missing_paths("`nowhere/rules.py` and `blueprint/rules.py`, objectives/NAME.py") == ["nowhere/rules.py"]
    assert missing_modules("jaxscale.nowhere.costs, jaxscale.predict.costs and `predict.costs.nothing`") == [
        "jaxscale.nowhere.costs", "jaxscale.predict.costs.nothing",
    ]  # fmt: skip
