"""`jaxscale generate`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from jaxscale.cli.options import Overrides

PLACE = 4


def verb(
    run: Annotated[Path, typer.Argument(help="The directory of a run, e.g. runs/quickstart.")],
    overrides: Overrides = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Text to continue; may be given several times.")] = None,
    max_new_tokens: int = 200,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    step: Annotated[int | None, typer.Option(help="Of this checkpoint; by default the newest.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="byte or a tokenizer.json, where the run has none.")] = None,
) -> None:
    """Sample from a checkpoint, on any mesh."""
    from jaxscale.serving.serve import continue_texts

    texts = continue_texts(
        run,
        prompt or [""],
        overrides or [],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        step=step,
        tokenizer=tokenizer,
        say=lambda line: print(line, file=sys.stderr),
    )
    for start, text in zip(prompt or [""], texts, strict=True):
        print(start + text)
        print()
