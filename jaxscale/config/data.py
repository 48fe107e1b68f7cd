"""The section `data`: where tokens come from."""

import os
from typing import Literal

from pydantic import model_validator

from jaxscale.config.values import Above0, NonNegative, Positive, Section
from jaxscale.files.urls import is_url


class Data(Section):
    """Where tokens come from and how many make a step. All sizes are global."""

    kind: Literal["tokens", "llmc", "synthetic"] = "tokens"
    """What the data is: a dataset of `jaxscale data prepare`, llm.c's .bin files, or random tokens."""
    path: str | None = None
    """Folder that `jaxscale data prepare` wrote; llmc: a glob of .bin files; null: with mixture, or synthetic data."""
    mixture: dict[str, Above0] | None = None
    """Folders with their weights, in place of `path`, only with kind=tokens; null: one folder, `path`."""
    validation_path: str | None = None
    """Glob of .bin files of validation text, only with kind=llmc; null: the split of a dataset, or none."""
    vocab_size: Positive | None = None
    """Tokens in the vocabulary of llm.c's files; null: GPT-2's or Llama-3's, by the kind of file."""
    separator_id: NonNegative | None = None
    """Token that begins each document of llm.c's files; null: GPT-2's or Llama-3's."""
    batch_size: Positive = 8
    """Sequences per step, over all devices."""
    seq_len: Positive = 1024
    """Tokens per sequence."""
    mask_documents: bool = True
    """Documents packed into one sequence do not see each other, and each has positions from 0."""
    shuffle: bool = True
    """Read the sequences in a random order, a new one each epoch."""
    verify: Literal["always", "once", "size"] = "once"
    """When the checksums of the shards are read: always, once until a shard changes, or never (its size alone)."""
    prefetch: Positive = 4
    """Batches prepared ahead of the step."""

    @model_validator(mode="after")
    def _check(self) -> "Data":
        if self.mixture is not None:
            if self.kind != "tokens" or self.path or not self.mixture:
                raise ValueError("data.mixture takes {folder: weight, ...} in place of data.path, with kind=tokens")
            expanded = {os.path.expanduser(path): weight for path, weight in self.mixture.items()}
            object.__setattr__(self, "mixture", expanded)
        elif self.kind != "synthetic" and not self.path:
            raise ValueError(f"data.kind={self.kind} needs data.path; `jaxscale data prepare --help` makes a dataset")
        for name in ("validation_path", "vocab_size", "separator_id"):
            if self.kind != "llmc" and getattr(self, name) is not None:
                raise ValueError(f"data.{name} is only for kind=llmc; kind={self.kind} does not read it")
        if self.kind == "synthetic" and self.path:
            raise ValueError("data.path is not read with kind=synthetic; remove it or choose kind=tokens")
        for name in ("path", "validation_path"):
            if value := getattr(self, name):
                if is_url(value):
                    raise ValueError(
                        f"data.{name}={value}: training reads its data from a file system, not from an "
                        "object store; copy it to a directory that every process sees"
                    )
                object.__setattr__(self, name, os.path.expanduser(value))
        return self

    @property
    def places(self) -> list[str]:
        """What is read: folders of kind=tokens, a glob of llm.c's files, nothing."""
        return list(self.mixture or ([self.path] if self.path else []))
