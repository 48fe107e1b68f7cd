"""`jaxscale config ...`: what a run file can hold, for people and for editors."""

import json
from pathlib import Path
from typing import Annotated

import typer

PLACE = 4
EXAMPLE = "jaxscale config keys learning"
app = typer.Typer(
    no_args_is_help=True,
    suggest_commands=False,
    help="Look up the keys of a run file, or write their JSON Schema.",
    rich_markup_mode=None,
)


@app.command()
def keys(
    word: Annotated[
        str | None, typer.Argument(metavar="[WORD]", help="Part of a key or of its description, e.g. warmup, memory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
) -> None:
    """List keys of a run file: values, default, and what each does."""
    from jaxscale.config.keys import all_keys, matching
    from jaxscale.console.config import show_keys

    selected = all_keys() if word is None else matching(word)
    if as_json:
        print(json.dumps([key._asdict() for key in selected], indent=2))
    else:
        show_keys(selected)


@app.command()
def schema(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file to write; by default standard output.")
    ] = None,
    model: Annotated[bool, typer.Option("--model", help="The schema of a model file, as in configs/models.")] = False,
) -> None:
    """Write the JSON Schema of a run file, for editors."""
    from jaxscale.config.schema import comment, model_schema, run_schema, schema_text

    text = schema_text(model_schema() if model else run_schema())
    if out is None:
        print(text, end="")
        return
    out.write_text(text, encoding="utf-8")
    print(f"{out}: begin a {'model' if model else 'run'} file in its folder with the line\n{comment(out.name)}")
