"""`jaxscale chips`."""

from typing import Annotated

import typer

PLACE = 21
EXAMPLE = "jaxscale chips h100 v5p"


def verb(
    names: Annotated[list[str] | None, typer.Argument(help="Only these, e.g. t4 l4.", metavar="[CHIP ...]")] = None,
) -> None:
    """Show the chip table. It has peaks, memory and links, with the source of every figure."""
    from jaxscale.console.plan import show_chips

    show_chips(names or [])
