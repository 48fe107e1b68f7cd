"""Examples as rows of tokens: a separator, the prompt, an answer. No jax."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxscale.abilities.example import OF_CHOICES, Example, Task
from jaxscale.data.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Row:
    """Tokens that a model reads, of which those from `start` on are scored."""

    tokens: np.ndarray
    start: int


@dataclass(frozen=True, eq=False)
class Prepared:
    """A task as rows: `rows[i][text]` is example i with one of its answers or choices."""

    task: Task
    rows: tuple[dict[str, Row], ...]

    @property
    def longest(self) -> int:
        """Tokens that a model reads of the longest row, the last answer's not among them."""
        return max(len(row.tokens) - 1 for every in self.rows for row in every.values())


def prepare(tasks: Sequence[Task], codec: Tokenizer, *, seq_len: int) -> list[Prepared]:
    """Each task as rows, by a model's tokenizer.

    Raises:
        ValueError: an example longer than the context, without an answer, or with an answer whose tokens depend on
            where the prompt ends.
    """
    return [one_task(task, codec, seq_len) for task in tasks]


def one_task(task: Task, codec: Tokenizer, seq_len: int) -> Prepared:
    if not task.examples:
        raise ValueError(f"{task.source or task.name} has no examples")
    every = list(wanted(task))
    prompts = codec.encode_batch([example.prompt for example, _ in every])
    texts = [(i, text) for i, (_, texts) in enumerate(every) for text in texts]
    whole = codec.encode_batch([every[i][0].prompt + text for i, text in texts])
    rows: list[dict[str, Row]] = [{} for _ in every]
    for (i, text), tokens in zip(texts, whole, strict=True):
        prompt, where = every[i][0].prompt, f"example {i + 1} of {task.source or task.name}"
        begins = prompts[i] if follows(prompts[i], tokens) else codec.encode(prompt.rstrip())
        if not follows(begins, tokens):
            raise ValueError(
                f"{where}: the tokens of its prompt, ...{prompt[-20:]!r}, change if the answer {text[:20]!r} follows, "
                "so the answer has no score of its own; end the prompt between two tokens, or measure a model of bytes"
            )
        if len(tokens) == len(begins):
            raise ValueError(f"{where}: the answer {text[:20]!r} has no tokens; leave the example out")
        if len(tokens) > seq_len:
            raise ValueError(
                f"{where} has {len(tokens) + 1} tokens, and the model reads {seq_len} (data.seq_len); leave the "
                f"example out, or give data.seq_len={len(tokens)} or more"
            )
        rows[i][text] = Row(np.concatenate([[codec.separator_id], tokens]).astype(np.int32), 1 + len(begins))
    return Prepared(task, tuple(rows))


def follows(prompt: np.ndarray, tokens: np.ndarray) -> bool:
    """Do the tokens begin with those of the prompt?"""
    return np.array_equal(tokens[: len(prompt)], prompt)


def wanted(task: Task) -> Iterator[tuple[Example, list[str]]]:
    """Each example with the texts whose scores the metrics need, none twice."""
    choices = any(metric in OF_CHOICES for metric in task.metrics)
    answers = any(metric not in OF_CHOICES for metric in task.metrics)
    for example in task.examples:
        texts = (*(example.answers if answers else ()), *(example.choices if choices else ()))
        yield example, list(dict.fromkeys(texts))
