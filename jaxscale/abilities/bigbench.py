"""Tasks of BIG-bench (arXiv:2206.04615), read from a JSON file.

Each of its `examples` has `input`, and `target` or `target_scores`. The fields and their defaults are those of
BIG-bench's docs/doc.md. Nothing of a task is run as code.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jaxscale.abilities.draw import Draw
from jaxscale.abilities.example import OF_ANSWERS, OF_CHOICES, Example, Task
from jaxscale.files.reading import parse_json

# BIG-bench's metric -> ours
KNOWN = {
    "exact_str_match": OF_ANSWERS,
    "log_likelihood": ("nll", "exact", "p_exact"),
    "multiple_choice_grade": OF_CHOICES,
    "multiple_choice_brier_score": ("brier", "choice", "log_odds"),
}
SHOTS = 64  # solved examples in a prompt, at most
Score = Annotated[float, Field(ge=0, le=1, strict=True)]
Say = Callable[[str], None]


class OneExample(BaseModel):
    """A question: with `target` one or several right answers, with `target_scores` choices and what each is worth."""

    model_config = ConfigDict(allow_inf_nan=False)

    input: str
    target: str | list[str] | None = None
    target_scores: dict[str, Score] | None = None


class File(BaseModel):
    """A task's file. Authors, keywords and the like are of no use here; what would change the prompt is all read."""

    model_config = ConfigDict(allow_inf_nan=False)

    examples: list[OneExample]
    metrics: list[str]
    name: str = ""
    preferred_score: str | None = None
    task_prefix: str = ""
    example_input_prefix: str = "\nQ: "
    example_output_prefix: str = "\nA: "
    choice_prefix: str = "\n  choice: "
    append_choices_to_input: bool = True
    few_shot_example_separator: str = "\n"
    output_regex: str | None = None
    stop_string: str | None = None


def read_task(path: Path, *, shots: int, seed: int, count: int, say: Say) -> Task:
    """The task of a file: all of its examples, or `count` that are drawn.

    Args:
        shots: how many of its other examples stand solved before each question.
        say: told of metrics that are not measured, and of examples that are left out.

    Raises:
        ValueError: a file that cannot be read or is no such task, or none of whose metrics are known.
    """
    file = read_file(path)
    metrics = metrics_of(file, path, say)
    if (file.output_regex or file.stop_string) and "exact" in metrics:
        say(f"{path}: stop_string and output_regex are not used; an answer is exact if the greedy text begins with it")
    if not 0 <= shots <= min(SHOTS, len(file.examples) - 1):
        raise ValueError(
            f"{path} has {len(file.examples)} examples, too few for {shots} solved ones in the prompt; give "
            f"{min(SHOTS, len(file.examples) - 1)} or fewer"
        )
    order = Draw("bigbench", seed).shuffled(range(len(file.examples)))
    if len(order) > count:
        say(f"{path}: {count} of its {len(order)} examples are drawn")
    examples = [asked(file, i, shots, seed, path, metrics) for i in sorted(order[:count])]
    main = set(OF_CHOICES) & {metrics[0]}
    worth = [sum(one.scores) / len(one.scores) for one in examples if one.scores]
    chance = sum(worth) / len(worth) if main and worth else 0.0
    return Task(file.name or path.stem, tuple(examples), chance, metrics, shots, str(path))


def read_file(path: Path) -> File:
    try:
        values = parse_json(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no task of BIG-bench: it holds a {type(values).__name__}, not an object")
    if "examples" not in values and "subtasks" in values:
        raise ValueError(f"{path} names subtasks and has no examples; give the task.json of a subtask")
    try:
        file = File.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"])
        raise ValueError(f"{path} is no task of BIG-bench: {where!r}: {' '.join(first['msg'].split())}") from None
    if not file.examples:
        raise ValueError(f"{path} has no examples")
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{path} holds half of a surrogate pair, which is no text; write the whole character"
        ) from None
    return file


def metrics_of(file: File, path: Path, say: Say) -> tuple[str, ...]:
    """Our metrics of a file, the preferred score's first."""
    order = sorted(dict.fromkeys(file.metrics), key=lambda name: name != file.preferred_score)
    if not (known := [name for name in order if name in KNOWN]):
        raise ValueError(
            f"{path}: of its metrics, {', '.join(order) or 'none'}, none is known; known are {', '.join(KNOWN)}"
        )
    if unknown := [name for name in order if name not in KNOWN]:
        say(f"{path}: not measured: {', '.join(unknown)}")
    return tuple(dict.fromkeys(metric for name in known for metric in KNOWN[name]))


def asked(file: File, i: int, shots: int, seed: int, path: Path, metrics: tuple[str, ...]) -> Example:
    """Example i as a prompt with its answers and its choices, these in an order that is drawn."""
    r = Draw("bigbench", seed, i)
    others = r.shuffled([j for j in range(len(file.examples)) if j != i])[:shots] if shots else []
    solved = []
    for j in others:
        answers, _ = answers_of(file.examples[j], j, path)
        solved.append(question(file, file.examples[j], r) + answers[0])
    one = file.examples[i]
    answers, scores = answers_of(one, i, path)
    if set(metrics) & set(OF_CHOICES) and len(scores) < 2:
        raise ValueError(f"{path}: example {i + 1} has {len(scores)} target_scores; choosing needs two or more")
    prompt = file.task_prefix + file.few_shot_example_separator.join([*solved, question(file, one, r)])
    choices = tuple(r.shuffled(list(scores)))
    return Example(prompt, answers, choices, tuple(scores[choice] for choice in choices))


def answers_of(one: OneExample, i: int, path: Path) -> tuple[tuple[str, ...], dict[str, float]]:
    """The right answers of an example, and its choices."""
    scores = one.target_scores or {}
    targets = [one.target] if isinstance(one.target, str) else one.target
    if targets is None:
        targets = [choice for choice, score in scores.items() if score == max(scores.values())]
    if not targets:
        raise ValueError(f"{path}: example {i + 1} has neither target nor target_scores")
    return tuple(dict.fromkeys(targets)), scores


def question(file: File, one: OneExample, r: Draw) -> str:
    choices = ""
    if one.target_scores and file.append_choices_to_input:
        choices = "".join(file.choice_prefix + choice for choice in r.shuffled(list(one.target_scores)))
    return file.example_input_prefix + one.input + choices + file.example_output_prefix
