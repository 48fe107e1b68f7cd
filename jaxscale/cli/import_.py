"""`jaxscale import`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from jaxscale.cli.options import Overrides

PLACE = 3
EXAMPLE = "jaxscale import models/llama-3.2-1b --out runs/llama"


def verb(
    source: Annotated[
        str, typer.Argument(metavar="DIR", help="A directory with config.json and safetensors; hf:DIR is the same.")
    ],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The directory of the new run.")] = ...,  # type: ignore[assignment]
) -> None:
    """Turn a published model into a run. The run has a checkpoint at step 0, the config and the tokenizer."""
    from jaxscale.config import PUBLISHED, load_config
    from jaxscale.serving.bring import bring_in

    name = source if source.startswith(PUBLISHED) else f"{PUBLISHED}{source}"
    config = load_config(name, [f"out={out}", *(overrides or [])])
    bring_in(config, say=lambda line: print(line, file=sys.stderr))
    print(f"{out}: {config.model.name}, at step 0. Next:")
    print(f"  jaxscale generate {out} --prompt ...")
    print(f"  jaxscale train {out}/config.yaml data.kind=tokens data.path=DATA steps=N")
