"""`jaxscale reward`: what a reward model says of each text of a file, with the program that scores in training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxscale import config as cfg
from jaxscale.cluster.signals import Stopped
from jaxscale.data.examples.masks import encode_examples
from jaxscale.data.examples.records import Kind, to_example
from jaxscale.data.examples.templates import Template
from jaxscale.files.whole import require_file, write_whole
from jaxscale.parallel.mesh import make_mesh, start_devices
from jaxscale.rollouts.estimates import mean
from jaxscale.rollouts.scorer import Scorer, require_scores, template_of_run
from jaxscale.serving.prompts import read_lines
from jaxscale.serving.rollout import interruptible, lines
from jaxscale.serving.serve import Say, run_config, run_tokenizer, together

NAMES: dict[Kind, tuple[str, ...]] = {"conversations": ("score",), "pairs": ("chosen_score", "rejected_score")}


@dataclass(frozen=True)
class Texts:
    """The records of a file and their texts, as the template of the pairs writes them.

    Attributes:
        tokens: of all texts; those of one record stand together.
    """

    kind: Kind
    records: list[dict[str, Any]]
    tokens: list[list[int]]


def score_file(
    run: Path, file: Path, out: Path, overrides: Sequence[str] = (), *, step: int | None = None, say: Say
) -> dict[str, Any] | None:
    """Score the texts of a JSONL file and write its records with their scores; the summary, on the first process.

    Raises:
        ValueError: no reward model, or a text that it does not read: then nothing is written; Stopped: after a signal,
            of several processes.
    """
    if file.resolve() == out.resolve():
        raise ValueError(f"-o {out} is the file that is read; give another one")
    require_file(out)
    config = run_config(run, overrides)
    require_scores(str(run), score=config.model.score)
    if config.mesh.replicas > 1:
        raise ValueError("mesh.replica: texts are scored by one model; set mesh.replica=1, outer.every=null")
    codec = run_tokenizer(run, None)
    texts = read_texts(file, template_of_run(str(run), codec), config)
    with together(config) as (place, monitor):
        first = place.processes == 1 or place.process_id == 0
        mesh = make_mesh(config.mesh, start_devices(config.runtime, place.processes))
        rows, seq_len = config.data.batch_size, config.data.seq_len
        scorer = Scorer(str(run), mesh, rows=rows, seq_len=seq_len, like=config, config=config, step=step)
        if first:
            say(f"{len(texts.tokens):,} texts by step {scorer.step} of {run}")
        scores = all_scores(scorer, texts.tokens, monitor)
        if not first:
            return None
    write_whole(out, lines(scored(texts, scores)))
    return summary_of(f"step {scorer.step} of {run}", texts.kind, scores)


def read_texts(file: Path, template: Template, config: cfg.Config) -> Texts:
    """The texts of a file. ValueError, with its line, for a record that is none, and for texts longer than a row."""
    numbered = read_lines(file, "FILE", '{"prompt", "completion"} or {"prompt", "chosen", "rejected"}')
    records = [record for _, record in numbered]
    kind: Kind = "pairs" if "chosen" in records[0] else "conversations"
    examples = []
    for number, record in numbered:
        if taken := [name for name in NAMES[kind] if name in record]:
            raise ValueError(f"{file}, line {number}: the column {taken[0]} is taken; give it another name")
        examples.append(to_example(kind, record, str(number), f"{file}, line {number}"))
    tokens = []
    for made in encode_examples(template, examples):
        if isinstance(made, ValueError):
            raise made
        tokens += [document.ids.tolist() for document in made]
    most, longest = config.data.seq_len, max(map(len, tokens))
    if long := sum(len(text) > most for text in tokens):
        raise ValueError(
            f"{long:,} of {len(tokens):,} texts of {file} are longer than data.seq_len {most} tokens, the longest "
            f"{longest:,}; leave them out, or give data.seq_len={longest} or more"
        )
    return Texts(kind, records, tokens)


def all_scores(scorer: Scorer, texts: list[list[int]], monitor: Any) -> list[float]:
    """The scores of all texts, some rows at one time."""
    scores: list[float] = []
    for part, begin in enumerate(range(0, len(texts), scorer.rows), 1):
        if monitor is not None:
            if not monitor.may_start(part):
                raise Stopped("stopped; nothing is written", monitor.signal or "SIGTERM")
            monitor.follow("evaluation", "start", part)
        scores += interruptible(partial(scorer, texts[begin : begin + scorer.rows])).astype(float).tolist()
    return scores


def scored(texts: Texts, scores: list[float]) -> list[dict[str, Any]]:
    """Each record with what its texts came to."""
    names = NAMES[texts.kind]
    each = [scores[i : i + len(names)] for i in range(0, len(scores), len(names))]
    return [r | dict(zip(names, values, strict=True)) for r, values in zip(texts.records, each, strict=True)]


def summary_of(model: str, kind: Kind, scores: list[float]) -> dict[str, Any]:
    """What all scores came to; of pairs also how often, and by how much, the chosen text is above the rejected one."""
    middle = math.fsum(scores) / len(scores)
    spread = math.sqrt(math.fsum((x - middle) ** 2 for x in scores) / len(scores))
    summary = {"model": model, "texts": len(scores), "mean": middle, "std": spread}
    if kind == "conversations":
        return summary
    chosen, rejected = scores[::2], scores[1::2]
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    return summary | {
        "pairs": len(margins),
        "accuracy": mean(x > 0 for x in margins),
        "margin": mean(margins),
        "chosen": mean(chosen),
        "rejected": mean(rejected),
    }
