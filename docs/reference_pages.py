"""The generated part of the pages in `docs/reference/`: keys from the schema, verbs from typer, names from Python.

`conf.py` puts it below what stands in those pages, each time that the site is made.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import typer

import jaxscale
from jaxscale.cli.app import app
from jaxscale.config.keys import Key, all_keys
from jaxscale.library import predictions

LONGEST_DEFAULT = 40  # characters of a default in a signature


def config_page() -> str:
    """Every key of a run file, section by section."""
    keys = all_keys()
    lines = of_section("The run itself", "", [key for key in keys if not key.section])
    for section in (key for key in keys if key.is_section):
        own = [key for key in keys if key.section.removesuffix("[]") == section.name]
        lines += of_section(section.name, section.description, own)
    return "\n".join(lines) + "\n"


def of_section(title: str, description: str, keys: list[Key]) -> list[str]:
    head = ["", f"## {title}", "", text_of(description), "", "| key | what it does | values | default |", "|-|-|-|-|"]
    return [*head, *map(key_row, keys)]


def key_row(key: Key) -> str:
    name = f"`{key.name}`" if not key.is_section else f"[`{key.name}`](#{anchor(key)})"
    default = key.default if key.default in ("required", "") else code(key.default)
    values = re.sub(r" ([<>]=?) ", "\u00a0\\1\u00a0", key.values)  # a line ends between alternatives, not within one
    return f"| {name} | {cell(key.description)} | {code(values)} | {default} |"


def anchor(key: Key) -> str:
    """Of the heading of a section, as MyST makes it."""
    return re.sub(r"[^\w]", "", key.name)


def verbs_page() -> str:
    """Every verb, each group before its own."""
    return "\n".join(of_group(typer.main.get_command(app), "jaxscale")) + "\n"


def of_group(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        full = f"{path} {name}"
        yield from ("", f"## {full}", "", text_of(command.help))
        if hasattr(command, "commands"):
            yield from of_group(command, full)
        else:
            yield from of_verb(command, full)


def of_verb(command: Any, path: str) -> Iterator[str]:
    context = command.make_context(path, [], resilient_parsing=True)
    yield from ("", "```text", context.get_usage().removeprefix("Usage: "), "```")
    records = [p.get_help_record(context) for p in command.params if not getattr(p, "hidden", False)]
    if records:
        yield from ("", "| argument or option | what it does |", "|-|-|")
        yield from (f"| {code(left)} | {cell(text)} |" for left, text in records)


def api_page() -> str:
    """Every public name with its signature and docstring: functions first, then classes."""
    names = sorted(jaxscale.__all__, key=lambda name: inspect.isclass(public(name)))
    return "\n".join(line for name in names for line in of_name(name)) + "\n"


def public(name: str) -> Any:
    """What a name stands for; the room `explain` is the function that it calls."""
    there = getattr(jaxscale, name)
    return getattr(predictions, name) if inspect.ismodule(there) else there


def of_name(name: str) -> Iterator[str]:
    there = public(name)
    yield from ("", f"## {name}", "")
    if name == "Config":
        yield from ("```python", "Config(**sections)", "```", "", "Its fields are the [config keys](config.md).")
    else:
        yield from ("```python", signature(name, there.__init__ if inspect.isclass(there) else there), "```")
    yield from ("", *paragraphs(inspect.getdoc(there) or ""))
    for method, body in vars(there).items() if inspect.isclass(there) and name != "Config" else ():
        if inspect.isfunction(body) and method[0] != "_" and body.__doc__:
            yield from ("", "```python", signature(f"{name}.{method}", body), "```", "")
            yield from paragraphs(inspect.getdoc(body) or "")


def signature(name: str, there: Callable[..., Any]) -> str:
    """`name(...) -> X`, an argument a line where one line is too long. Types are without their modules."""
    found = inspect.signature(there)
    shown = [p.replace(default=Shown(p.default)) if p.default is not p.empty else p for p in found.parameters.values()]
    shown = [p for p in shown if p.name != "self"]
    returned = found.return_annotation if found.return_annotation is not None else found.empty
    found = found.replace(parameters=shown, return_annotation=returned)
    line = name + without_modules(str(found))
    if len(line) <= 100:
        return line
    marks, before, parts = {"VAR_POSITIONAL"}, [], []
    for p in shown:
        if p.kind.name == "KEYWORD_ONLY" and not marks & set(before):
            parts.append("*")
        parts.append(without_modules(str(p)))
        before += [p.kind.name] if p.kind.name != "KEYWORD_ONLY" else [*marks]
    result = f" -> {without_modules(inspect.formatannotation(returned))}" if returned is not found.empty else ""
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"


class Shown:
    """A default in a signature: as Python writes it, or three dots."""

    def __init__(self, value: Any):
        self.text = repr(value)

    def __repr__(self) -> str:
        return self.text if len(self.text) <= LONGEST_DEFAULT and "<" not in self.text else "..."


def without_modules(text: str) -> str:
    """`jaxscale.config.sections.Config` -> Config."""
    return re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", text)


HEADINGS = re.compile(r"(Args|Attributes|Raises|Returns|Yields):")
ENTRY = re.compile(r"(?P<names>\w[\w, *]*): (?P<text>.*)")


def paragraphs(docstring: str) -> Iterator[str]:
    """A docstring as Markdown: its lists of arguments as lists, its lines with a `#` as code."""
    heading = ""
    for block in re.split(r"\n\s*\n", docstring):
        lines = block.splitlines()
        if found := HEADINGS.fullmatch(lines[0]):
            heading = found[1]
            yield from (f"**{heading}**", "")
            yield from entries(lines[1:], heading)
        elif lines[0].startswith("# "):
            yield from ("```text", *lines, "```")
        else:
            yield text_of(block)
        yield ""


def entries(lines: list[str], heading: str) -> Iterator[str]:
    for line in lines:
        found = ENTRY.fullmatch(line.strip())
        if line.startswith("     "):
            yield f"  {text_of(line.strip())}"
        elif found and heading in ("Args", "Attributes", "Raises"):
            yield f"- `{found['names']}`: {text_of(found['text'])}"
        else:
            yield f"- {text_of(line.strip())}"


def text_of(text: str | None) -> str:
    """Text of a docstring or a help in which Markdown sees nothing but its `code`."""
    parts = re.split(r"(``?[^`]+``?)", (text or "").strip())
    return "".join(part if part.startswith("`") else re.sub(r"([*<>\[\]|$])", r"\\\1", part) for part in parts)


def cell(text: str) -> str:
    """Such text in a table, where also a `|` in code ends a cell."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text_of(text).split()))


def code(text: str) -> str:
    """Code in a table."""
    return "`" + text.replace("|", "\\|") + "`"


PAGES: dict[str, Callable[[], str]] = {
    "reference/config": config_page,
    "reference/verbs": verbs_page,
    "reference/api": api_page,
}
