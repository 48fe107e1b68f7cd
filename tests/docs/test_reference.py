"""Every key, verb, option and public name says what it does, and stands in the pages of the reference."""

import importlib.util
import inspect
import re
from pathlib import Path
from typing import Annotated

import pytest
import typer

import jaxscale
from jaxscale import config as cfg
from jaxscale.cli.app import app
from jaxscale.config import overrides
from jaxscale.config.keys import Key, all_keys
from jaxscale.config.values import docstrings

DOCS = Path(__file__).parents[2] / "docs"
KEYS = all_keys()
UNITS = (
    "activations batches biases centers checkpoints columns copies decay devices divisor examples experts "
    "factor groups heads units far layers rate multiple norm number numbers parts prompts ratio rollbacks rows "
    "samples seconds sequences share size slices stages deviation deviations steps step tokens token turns "
    "value wavelengths weight weights width"
)
FILLING = {"a", "an", "the", "of", "in", "its", "is", "are", "and", "or", "whether", "which"}


def load_pages():
    spec = importlib.util.spec_from_file_location("reference_pages", DOCS / "reference_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = load_pages()


def problems(key: Key) -> list[str]:
    """What a description lacks."""
    words = re.findall(r"[a-z]+", key.description.lower())
    own = set(re.findall(r"[a-z]+", key.name.lower()))
    stems = {word.rstrip("s") for word in {*words} - FILLING} - {word.rstrip("s") for word in own}
    found = [] if key.description.endswith(".") else ["no full stop"]
    if not stems:
        found.append("it only repeats the name")
    if "null" in key.values and "null" not in words and key.default == "null":
        found.append("it does not say what null means")
    if key.default == "0" and key.values.startswith("integer >=") and key.name != "seed":
        found += (
            [] if "0: " in key.description or "0 or null: " in key.description else ["it does not say what 0 means"]
        )
    if re.match(r"integer|number", key.values) and not {*UNITS.split()} & {*words}:
        found.append("it names no unit")
    return found


def without_help(group) -> list[str]:
    """Verbs and options that do not say what they do."""
    found = []
    for name, command in group.commands.items():
        below = without_help(command) if hasattr(command, "commands") else []
        wrong = [p.name for p in command.params if p.name != "help" and not p.help]
        found += [f"{name} {word}" for word in [*below, *wrong, *([] if command.help else ["itself"])]]
    return found


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_a_key_says_what_it_does_in_which_unit(key):
    assert problems(key) == []


def test_a_description_that_says_nothing_is_seen():
    assert problems(Key("data.batch_size", "integer > 0", "8", "The batch size.")) == ["it only repeats the name"]
    assert problems(Key("x.every", "integer > 0 | null", "null", "How often")) == [
        "no full stop", "it does not say what null means", "it names no unit",
    ]  # fmt: skip
    assert problems(Key("x.every", "integer >= 0", "0", "Steps between two.")) == ["it does not say what 0 means"]


def test_every_key_is_among_the_keys():
    """As the fields of pydantic's models have them, which the list is not made of."""
    names = {key.name for key in KEYS}
    assert set(overrides.keys_of(cfg.Config)) <= names
    assert {f"model.pattern[].{name}" for name in cfg.LayerKind.model_fields} <= names
    assert len(names) == len(KEYS)


def test_the_docstring_under_a_key_is_its_description():
    class Example(cfg.Section):
        first: int = 1
        """The first.
        Of two."""
        second: int = 2  # nothing below
        third: int = 3
        """The third."""

    assert docstrings(cfg.Mesh)["dcn"].startswith("How many slices")
    assert docstrings(Example) == {"first": "The first.\nOf two.", "third": "The third."}
    assert Example.model_json_schema()["properties"]["third"]["description"] == "The third."


def test_every_verb_and_option_has_help():
    assert without_help(typer.main.get_command(app)) == []


def test_an_option_without_help_is_seen():
    small = typer.Typer()

    @small.command()
    def first(there: Annotated[int, typer.Option(help="It is.")] = 1, missing: int = 2) -> None:
        """A verb."""

    @small.command()
    def second() -> None: ...

    assert without_help(typer.main.get_command(small)) == ["first missing", "second itself"]


@pytest.mark.parametrize("name", jaxscale.__all__)
def test_every_public_name_has_a_docstring(name):
    there = PAGES.public(name)
    assert inspect.getdoc(there), name
    assert there.__doc__ != getattr(type(there), "__doc__", None)


def test_the_page_of_keys_has_every_key():
    page = PAGES.config_page()
    for key in KEYS:
        assert f"`{key.name}`" in page
        assert PAGES.cell(key.description) in page


def test_the_page_of_verbs_has_every_option():
    page = PAGES.verbs_page()

    def check(group, path):
        for name, command in group.commands.items():
            assert f"\n## {path} {name}\n" in page
            if hasattr(command, "commands"):
                check(command, f"{path} {name}")
                continue
            section = page.split(f"\n## {path} {name}\n")[1].split("\n## ")[0]
            for parameter in command.params:
                assert PAGES.cell(parameter.help) in section, (name, parameter.name)

    check(typer.main.get_command(app), "jaxscale")


def test_the_page_of_names_has_every_name():
    page = PAGES.api_page()
    for name in jaxscale.__all__:
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert f"\n{name}(" in section
        first = inspect.getdoc(PAGES.public(name)).splitlines()[0]
        assert PAGES.text_of(first) in section


def test_a_signature_is_read_without_modules():
    def one(path: Path, *rest: int, key: cfg.Config | None = None, more=object()) -> Path: ...  # noqa: B008

    assert PAGES.signature("one", one) == "one(path: Path, *rest: int, key: Config | None = None, more=...) -> Path"
    assert PAGES.signature("load", jaxscale.load).splitlines()[:4] == [
        "load(", "    source: str | Path,", "    step: int | None = None,", "    *,",
    ]  # fmt: skip


def test_a_docstring_becomes_markdown():
    text = "A sum [B] of `a | b`.\n\n# x -> y\n\nArgs:\n    x, y: one.\n        More.\n\nReturns:\n    It: all."
    assert [line for line in PAGES.paragraphs(text) if line] == [
        r"A sum \[B\] of `a | b`.", "```text", "# x -> y", "```",
        "**Args**", "- `x, y`: one.", "  More.", "**Returns**", "- It: all.",
    ]  # fmt: skip


def test_the_site_has_the_pages():
    toctree = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in PAGES.PAGES:
        assert f"\n{page}\n" in toctree
        assert (DOCS / f"{page}.md").is_file()
