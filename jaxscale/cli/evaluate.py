"""`jaxscale evaluate`."""

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from jaxscale.cli.options import Overrides
from jaxscale.cli.refusal import fail

PLACE = 13
EXAMPLE = "jaxscale evaluate runs/first"


def verb(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The directory of a run, or hf:DIR for a published model.")],
    overrides: Overrides = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="A prepared dataset, or a file or directory of text; repeatable. By default the run's data."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of text: abilities (copy,rule:4), a BIG-bench FILE.json, or lm_eval:NAME; repeatable."
        ),
    ] = None,
    tasks_from: Annotated[str | None, typer.Option(help="A folder of YAML files with lm_eval tasks.")] = None,
    examples: Annotated[
        int | None, typer.Option(min=1, help="With --tasks: maximum examples of each; by default 256, for lm_eval all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="With --tasks: seed of the examples; by default 0.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of prepared datasets: validation (default) or train.")
    ] = None,
    step: Annotated[
        str | None, typer.Option(help="Step of the checkpoint; by default the newest. With --tasks also `all`.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="byte or a tokenizer.json, if the run has none.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, for programs.")] = False,
) -> None:
    """Measure a model on text or on tasks, on any mesh. On text: loss, perplexity and bits per byte.

    Nothing is trained.
    """
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    if tasks is None:
        if examples is not None or seed is not None or tasks_from is not None:
            raise ValueError("--examples, --seed and --tasks-from are of tasks; give --tasks too")
        ask = lambda: on_text(run, overrides, data, split, step_number(step), tokenizer, as_json, say)  # noqa: E731
    else:
        if data or split:
            raise ValueError("--tasks makes or reads its own examples; leave out --data and --split")
        names = [name.strip() for word in tasks for name in word.split(",")]
        drawn = {"examples": examples, "seed": seed or 0, "folder": tasks_from}
        at = "all" if step == "all" else step_number(step)
        ask = lambda: on_tasks(run, overrides, names, at, tokenizer, as_json, say, drawn)  # noqa: E731
    try:
        ask()
    except KeyboardInterrupt as error:
        sys.exit(fail(str(error) or "stopped", getattr(error, "code", 130)))


def step_number(step: str | None) -> int | None:
    """Raises ValueError for what is no step."""
    if step is None:
        return None
    if not (step.isascii() and step.isdecimal()):
        also = "; `all` is for --tasks" if step == "all" else ", or with --tasks `all`"
        raise ValueError(f"--step {step}: give the number of a checkpoint's step{also}")
    return int(step)


def on_text(
    run: str,
    overrides: list[str] | None,
    data: list[str] | None,
    split: str | None,
    step: int | None,
    tokenizer: str | None,
    as_json: bool,
    say: Callable[[str], None],
) -> None:
    from jaxscale.console import evaluate as console
    from jaxscale.serving.evaluate import evaluate_places, first_process

    options: dict[str, Any] = {"split": split or "validation", "step": step, "tokenizer": tokenizer, "say": say}
    evaluation = evaluate_places(run, data or [], overrides or [], **options)
    if not first_process():
        return
    if as_json:
        print(json.dumps(console.as_json(evaluation), indent=1))
    else:
        console.show(evaluation)


def on_tasks(
    run: str,
    overrides: list[str] | None,
    names: list[str],
    step: Any,
    tokenizer: str | None,
    as_json: bool,
    say: Callable[[str], None],
    drawn: dict[str, Any],
) -> None:
    from jaxscale.console import abilities as console
    from jaxscale.serving.evaluate import first_process
    from jaxscale.serving.tasks import evaluate_tasks

    records = evaluate_tasks(run, names, overrides or [], step=step, tokenizer=tokenizer, say=say, **drawn)
    if not first_process():
        return
    if as_json:
        print(json.dumps({"records": records} if step == "all" else records[0], indent=1))
    else:
        console.show(records)
