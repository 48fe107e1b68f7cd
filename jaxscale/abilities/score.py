"""From the scores of tokens to metrics, sharp and continuous. No jax."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxscale.abilities.example import METRICS, OF_CHOICES, OF_POSITIONS, Example, Task

Values = dict[str, float]  # metric -> value of one example


@dataclass(frozen=True, eq=False)
class Scored:
    """The tokens of one answer: their log-probabilities in nats, and whether each is the model's greedy choice."""

    log_p: np.ndarray
    right: np.ndarray

    @property
    def total(self) -> float:
        return float(self.log_p.sum())


def measured(task: Task, scored: Sequence[Mapping[str, Scored]]) -> dict[str, Any]:
    """A record of one task at one checkpoint: each metric's mean over the examples.

    Args:
        scored: of each example, by the text of the answer or choice.

    Returns:
        `ability`, `shots`, `examples`, `chance`, `main`, `metrics` (each with `value`, `n`, `sharp`, `partner`; of a
        continuous one also `std` over the examples), `commonest` (the share of the commonest answer: what always
        giving it would get), `bits_per_byte` of the right answer, and for metrics by position `curve`, the mean nats of
        each token.
    """
    every = [values(one, texts, task.metrics) for one, texts in zip(task.examples, scored, strict=True)]
    record: dict[str, Any] = {
        "ability": task.name,
        "shots": task.shots,
        "examples": len(task.examples),
        "chance": task.chance,
        "commonest": commonest(task.examples),
        "main": task.metrics[0],
        "bits_per_byte": math.fsum(map(bits_per_byte, task.examples, scored)) / len(task.examples),
        "metrics": {name: summary(name, [one[name] for one in every]) for name in task.metrics},
    }
    if set(task.metrics) & set(OF_POSITIONS):
        record["curve"] = curve([texts[one.answers[0]] for one, texts in zip(task.examples, scored, strict=True)])
    return record


def summary(name: str, numbers: Sequence[float]) -> dict[str, Any]:
    sharp, partner = METRICS[name]
    mean = math.fsum(numbers) / len(numbers)
    metric = {"value": mean, "n": len(numbers), "sharp": sharp, "partner": partner}
    return metric if sharp else metric | {"std": math.sqrt(math.fsum((x - mean) ** 2 for x in numbers) / len(numbers))}


def bits_per_byte(example: Example, scored: Mapping[str, Scored]) -> float:
    """Bits of the likeliest right answer, or of the best choice, over the bytes of its text (arXiv:2412.04403)."""
    best = max(example.scores, default=0.0)
    right = [text for text in example.answers if text in scored] or [
        text for text, worth in zip(example.choices, example.scores, strict=True) if worth == best
    ]
    text = max(right, key=lambda text: scored[text].total)
    return -scored[text].total / math.log(2) / len(text.encode())


def commonest(examples: Sequence[Example]) -> float:
    """The share of examples for which the commonest answer is right."""
    counts: dict[str, int] = {}
    for one in examples:
        for answer in dict.fromkeys(one.answers):
            counts[answer] = counts.get(answer, 0) + 1
    return max(counts.values()) / len(examples)


def values(example: Example, scored: Mapping[str, Scored], metrics: Sequence[str]) -> Values:
    """All metrics of one example that its scores allow; see docs/abilities.md."""
    computed: Values = {}
    if any(name not in OF_CHOICES for name in metrics):
        computed |= of_answers([scored[text] for text in dict.fromkeys(example.answers)])
    if any(name in OF_CHOICES for name in metrics):
        computed |= of_choices([scored[text] for text in example.choices], example.scores)
    if set(metrics) & set(OF_POSITIONS):
        computed |= of_positions(scored[example.answers[0]])
    return computed


def of_answers(answers: Sequence[Scored]) -> Values:
    """Exact match and its partners; where several answers are right, the likeliest counts, and probabilities add up.

    Greedy decoding writes an answer exactly where each of its tokens is the greedy choice after those before it. So one
    pass over prompt and answer tells what token by token would be generated. `final` is the last token alone, after
    the right ones.
    """
    likeliest = max(answers, key=lambda one: one.total)
    return {
        "exact": float(any(bool(one.right.all()) for one in answers)),
        "nll": -likeliest.total / len(likeliest.log_p),
        "p_exact": min(1.0, math.fsum(math.exp(one.total) for one in answers)),
        "final": float(any(bool(one.right[-1]) for one in answers)),
        "final_nll": -float(likeliest.log_p[-1]),
    }


def of_choices(choices: Sequence[Scored], scores: Sequence[float]) -> Values:
    """The score of the likeliest choice, by all its tokens together, a tie counted by 1/n; log-odds and Brier's score.

    `log_odds` is log p(best) - log p(others) in nats, where best are the choices of the highest score, and `brier` the
    sum over choices of (p - score)^2 (Brier, 1950), p among the choices alone.
    """
    totals, worth = np.array([one.total for one in choices]), np.array(scores, float)
    ties = totals == totals.max()
    best = worth == worth.max()
    p = np.exp(totals - totals.max())
    p /= p.sum()
    odds = log_sum(totals[best]) - log_sum(totals[~best]) if not best.all() else 0.0
    return {
        "choice": float(worth[ties].mean()),
        "log_odds": float(odds),
        "brier": float(((p - worth) ** 2).sum()),
    }


def log_sum(x: np.ndarray) -> float:
    return float(x.max() + np.log(np.exp(x - x.max()).sum()))


def of_positions(text: Scored) -> Values:
    """The loss at a tenth of a text and at its end; the gain is their difference (arXiv:2209.11895).

    `late_right` is the share of greedy choices in the second half that are right.
    """
    n = len(text.log_p)
    early, late = -float(text.log_p[max(0, n // 10 - 1)]), -float(text.log_p[-1])
    return {
        "early_nll": early,
        "late_nll": late,
        "gain": early - late,
        "late_right": float(text.right[n // 2 :].mean()),
    }


def curve(texts: Sequence[Scored]) -> list[list[float]]:
    """[[position from 1, mean nats there], ...], as far as all texts go."""
    length = min(len(one.log_p) for one in texts)
    means = -np.mean([one.log_p[:length] for one in texts], axis=0)
    return [[i + 1, float(x)] for i, x in enumerate(means)]
