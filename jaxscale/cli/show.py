"""`jaxscale show`."""

from typing import Annotated

import typer

from jaxscale.cli.options import CONFIG_HELP, Overrides

PLACE = 5
EXAMPLE = "jaxscale show llama3.1-8b --devices 64"


def verb(
    config: Annotated[str, typer.Argument(help=CONFIG_HELP)],
    overrides: Overrides = None,
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="Number of devices, if one axis of the mesh is -1. They need not exist here."),
    ] = None,
) -> None:
    """Show a config, its parameters and how each one is split. Nothing is allocated."""
    from jaxscale.config import PUBLISHED, load_config
    from jaxscale.console import show as console

    console.show_config(load_config(config, overrides or []), devices)
    if config.startswith(PUBLISHED):
        console.show_fields(config.removeprefix(PUBLISHED))
