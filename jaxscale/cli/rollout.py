"""`jaxscale rollout`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxscale.cli.options import MaxNewTokens, Overrides, SampleSeed, TopK, TopP
from jaxscale.cli.refusal import ended_at_once

PLACE = 14
EXAMPLE = "jaxscale rollout runs/first --prompts prompts.jsonl -o samples.jsonl"


def verb(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The directory of a run, or hf:DIR for a published model.")],
    prompts: Annotated[Path, typer.Option(help='JSONL file: {"prompt": text, ...columns for the reward}.')],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSONL file to write: each prompt with its samples.")],
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("-n", help="Samples per prompt.")] = 1,
    reward: Annotated[
        str | None,
        typer.Option(help="module:function or file.py:function to run, called with (prompts, completions, ...)."),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Time limit in seconds for the rewards of up to 64 completions.")
    ] = 60.0,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    max_new_tokens: MaxNewTokens = 200,
    seed: SampleSeed = 0,
    best: Annotated[
        Path | None, typer.Option(help='JSONL file to write: {"prompt", "completion"}, the best sample of each prompt.')
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help='JSONL file to write: {"prompt", "chosen", "rejected"}, best and worst.')
    ] = None,
    rows: Annotated[int, typer.Option(help="Samples generated at one time.")] = 64,
    step: Annotated[int | None, typer.Option(help="Step of the checkpoint; by default the newest.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="byte or a tokenizer.json, if the run has none.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Treat prompts as users' messages, with the chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="With --chat: a system message before each.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The summary, for programs.")] = False,
) -> None:
    """Sample each prompt of a file several times. Rewards come from your function or from a reward model."""
    from jaxscale.console.rollout import lines
    from jaxscale.serving.rollout import Ask, roll_out

    ask = Ask(prompts, n, out, best, pairs, reward, timeout, rows, seed)
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given: dict[str, Any] = {"step": step, "tokenizer": tokenizer, "chat": chat, "system": system} | sampling
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    with ended_at_once():
        summary = roll_out(run, ask, overrides or [], max_new_tokens=max_new_tokens, say=say, **given)
    if summary is not None:
        print(json.dumps(summary, indent=1) if as_json else "\n".join(lines(summary)))
