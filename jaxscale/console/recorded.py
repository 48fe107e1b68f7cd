"""What a verb prints, as HTML or as text in its place."""

import contextlib
import io
from collections.abc import Callable, Iterator

from rich.console import Console

from jaxscale.console.tables import RECORDER, WIDE

HTML = '<pre style="white-space:pre;overflow-x:auto;line-height:normal;font-family:monospace">{code}</pre>'


def as_html(show: Callable[[], None]) -> str:
    """What `show` prints, with its styles."""
    with recorded() as console:
        show()
    return console.export_html(inline_styles=True, code_format=HTML)


def as_text(show: Callable[[], None]) -> str:
    """What `show` prints, without styles."""
    with recorded() as console:
        show()
    return console.export_text().rstrip()


@contextlib.contextmanager
def recorded() -> Iterator[Console]:
    """Inside, `make_console` gives this console, which prints nowhere."""
    console = Console(highlight=False, width=WIDE, record=True, file=io.StringIO())
    token = RECORDER.set(console)
    try:
        yield console
    finally:
        RECORDER.reset(token)
