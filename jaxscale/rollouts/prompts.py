"""The prompts of a run that trains on its own samples: as the trainer takes a source of data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxscale import config as cfg
from jaxscale.data.examples.prompts import Prompts, open_prompts
from jaxscale.data.index import read_index
from jaxscale.rollouts.choose import row_keys

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class PromptRows:
    """Prompts that leave room for an answer. As a source of data it has no rows of its own: each holds one sample."""

    prompts: Prompts
    seq_len: int
    kept: np.ndarray  # numbers in `prompts`
    columns: tuple[str, ...]
    separator_id: None = None  # a row is one document

    @property
    def vocab_size(self) -> int:
        return self.prompts.vocab_size

    @property
    def fingerprint(self) -> str | None:
        return self.prompts.fingerprint

    @property
    def content(self) -> str | None:
        return self.prompts.content

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.prompts.stop_ids

    def __len__(self) -> int:
        return len(self.kept)

    def tokens(self, i: int) -> list[int]:
        return self.prompts.tokens(int(self.kept[i]))

    def record(self, i: int) -> dict[str, Any]:
        return self.prompts.record(int(self.kept[i]))

    def row(self, i: int) -> dict[str, np.ndarray]:
        raise NotImplementedError("rows are sampled: see rollouts.feed")

    def keys(self, seed: int, number: int, rows: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Of the samples of a round: a prompt's own number, so that none depends on its neighbours."""
        prompts: Sequence[int] = self.kept[rows].tolist()
        return row_keys(seed, [number] * len(rows), prompts, samples.tolist())


def open_prompt_rows(config: cfg.Config, split: str, *, columns: tuple[str, ...], say: Say) -> PromptRows | None:
    """The prompts of `data.path`; None where there is no such validation split.

    Raises:
        ValueError: other data, a vocabulary beyond the model's, or no prompt that leaves room for `objective.max_new`.
    """
    data, objective = config.data, config.objective
    if data.kind != "tokens" or data.path is None:
        raise ValueError(
            f"objective.kind={objective.kind} samples answers to prompts: give data.path with a dataset of `jaxscale "
            "data prepare --prompts`"
        )
    if split == "validation" and not read_index(Path(data.path)).splits["validation"].tokens:
        say("no validation prompts: prepare the prompts with a validation split, to see rewards of held-out ones")
        return None
    prompts = open_prompts(data.path, split, verify=data.verify)  # type: ignore[arg-type]
    if prompts.vocab_size > config.model.vocab_size:
        raise ValueError(
            f"the prompts have vocab_size {prompts.vocab_size}, beyond the model's {config.model.vocab_size}; prepare "
            "them with the model's tokenizer"
        )
    room = data.seq_len - objective.max_new
    lengths = prompts.store.lengths
    kept = np.flatnonzero(lengths <= room)
    if not len(kept):
        raise ValueError(
            f"none of {len(lengths):,} prompts leaves room for objective.max_new={objective.max_new} tokens in rows of "
            f"data.seq_len={data.seq_len}; the shortest has {int(lengths.min()):,}"
        )
    if left := len(lengths) - len(kept):
        say(
            f"{left:,} of {len(lengths):,} prompts are longer than data.seq_len - objective.max_new = {room} tokens "
            f"and are left out; the longest has {int(lengths.max()):,}"
        )
    return PromptRows(prompts, data.seq_len, kept, columns)
