"""The keys of a run file in a terminal: stacked, as a description does not fit beside a key."""

import textwrap
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from jaxscale.config.keys import Key

NARROW, WIDE = 80, 120  # columns where no terminal says how many, and the most of a line that is read
INDENT = "    "


def show_keys(keys: Iterable[Key]) -> None:
    console = Console(highlight=False)
    width = min(console.width if console.is_terminal else NARROW, WIDE)
    for key in keys:
        head = Text(textwrap.fill(f"{key.name}  {facts(key)}", width, subsequent_indent=INDENT))
        head.stylize("bold", 0, len(key.name))
        console.print(head, soft_wrap=True)
        indented = textwrap.fill(key.description, width, initial_indent=INDENT, subsequent_indent=INDENT)
        console.print(Text(indented), soft_wrap=True)


def facts(key: Key) -> str:
    """`integer > 0, default 8`."""
    if key.default == "required":
        return f"{key.values}, required"
    return f"{key.values}, default {key.default}" if key.default else key.values
