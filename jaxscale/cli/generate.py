"""`jaxscale generate`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jaxscale.cli.options import MaxNewTokens, Overrides, SampleSeed, TopK, TopP

PLACE = 12
EXAMPLE = "jaxscale generate runs/first --prompt 'class '"


def verb(
    run: Annotated[Path, typer.Argument(help="The directory of a run, e.g. runs/quickstart.")],
    overrides: Overrides = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Text to continue; repeatable.")] = None,
    max_new_tokens: MaxNewTokens = 200,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: SampleSeed = 0,
    step: Annotated[int | None, typer.Option(help="Step of the checkpoint; by default the newest.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="byte or a tokenizer.json, if the run has none.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Treat the prompt as a user's message, with the chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: the system message.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Each prompt and its sample, for programs.")] = False,
) -> None:
    """Sample from a checkpoint, on any mesh."""
    from jaxscale.serving.evaluate import first_process
    from jaxscale.serving.serve import continue_texts

    if chat and not prompt:
        raise ValueError("--chat has no message; give it with --prompt")
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
        chat=chat,
        system=system,
        say=lambda line: print(line, file=sys.stderr),
    )
    if not first_process():
        return
    samples = list(zip(prompt or [""], texts, strict=True))
    if as_json:
        print(json.dumps([{"prompt": start, "text": text} for start, text in samples], indent=1))
        return
    for start, text in samples:
        print(text if chat else start + text)
        print()
