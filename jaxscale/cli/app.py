"""The verbs, a file each beside this one. Each imports its room when it runs, so that `--help` answers at once.

A file with `verb` is a verb of that file's name; one with `app` is a group of verbs. `PLACE` is its place in `--help`,
which is the order of use; `EXAMPLE` ends its own help.
"""

import os
import pkgutil
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jaxscale import cli
from jaxscale.cli.refusal import fail
from jaxscale.process.quiet import quiet_logs

PLACES: dict[str, float] = {}  # of verbs


class InOrder(TyperGroup):
    """Verbs in the order of use; typer itself lists groups last."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(self.commands, key=lambda name: PLACES[name])


app = typer.Typer(
    cls=InOrder,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    suggest_commands=False,
    help="Train transformers across meshes of TPUs, GPUs or simulated devices.",
)
USAGE_ERROR: Any = typer.BadParameter.__base__  # click's, wherever typer keeps it


def add_verbs() -> list[str]:
    """Add every file of this folder that has a place. Returns the names of groups."""
    names = [m.name for m in pkgutil.iter_modules(cli.__path__) if m.name not in ("app", "__main__")]
    modules = {name: import_module(f"jaxscale.cli.{name}") for name in names}
    there = {name: module for name, module in modules.items() if hasattr(module, "PLACE")}
    groups = []
    for name, module in sorted(there.items(), key=lambda item: item[1].PLACE):
        PLACES[name.rstrip("_")] = module.PLACE
        example = f"Example: {module.EXAMPLE}"
        if hasattr(module, "verb"):
            app.command(name.rstrip("_"), epilog=example)(module.verb)  # import_: Python's own words are no file's name
        else:
            app.add_typer(module.app, name=name, epilog=example)
            groups.append(name)
    return groups


def version(show: bool) -> None:
    if not show:
        return
    from importlib import metadata

    import jax

    from jaxscale.process.quiet import quiet_plugins

    with quiet_plugins():
        devices = jax.devices()
    print(f"jaxscale {metadata.version('jaxscale')}, jax {jax.__version__}, {len(devices)} x {devices[0].device_kind}")
    raise typer.Exit()


@app.callback()
def root(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=version, is_eager=True, help="Show the versions of jaxscale and JAX, and the devices."
        ),
    ] = False,
) -> None:
    pass


GROUPS = add_verbs()


def main() -> None:
    """Run a verb; what a user can mend is one line on stderr and exit code 2, Ctrl-C is 130."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # XLA's INFO lines; its warnings stay
    quiet_logs()
    try:
        if any("://" in word for word in sys.argv):
            from jaxscale.cli.usage import refuse_urls

            refuse_urls(sys.argv[1:])
        code = app(standalone_mode=False)
    except USAGE_ERROR as error:
        if sys.argv[1:] in ([], *([group] for group in GROUPS)):  # the help, as no verb was given
            print(error.format_message())
            sys.exit(2)
        from jaxscale.cli.usage import usage_message

        sys.exit(fail(usage_message(error), 2))
    except ValueError as error:
        sys.exit(fail(str(error), getattr(error, "code", 2)))  # silent data corruption has its own
    except OSError as error:  # a full disk, a file that may not be read
        sys.exit(fail(f"{error.filename or 'the operating system'}: {error.strerror or error}", 2))
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        from jaxscale.blame import SHOW, library_message

        message = None if os.environ.get(SHOW) == "1" else library_message(error)
        if message is None:
            raise  # a bug of ours: with all that helps to mend it
        sys.exit(fail(message, 1))
    sys.exit(fail("stopped", code) if code == 130 else code)
