"""Rows that count once each, however many a batch takes."""

from dataclasses import dataclass

import numpy as np

from jaxscale.data.columns import COUNTED
from jaxscale.data.tokens import RowSource


@dataclass(frozen=True)
class EachOnce:
    """The first `num_rows` rows of a source; those that it does not have weigh nothing, so that none counts twice."""

    source: RowSource
    num_rows: int

    @property
    def seq_len(self) -> int:
        return self.source.seq_len

    @property
    def vocab_size(self) -> int:
        return self.source.vocab_size

    @property
    def separator_id(self) -> int | None:
        return self.source.separator_id

    @property
    def fingerprint(self) -> str | None:
        return self.source.fingerprint

    @property
    def content(self) -> str | None:
        return self.source.content

    @property
    def columns(self) -> tuple[str, ...]:
        return self.source.columns

    def __len__(self) -> int:
        return self.num_rows

    def row(self, i: int) -> dict[str, np.ndarray]:
        if i < len(self.source):
            return self.source.row(i)
        first = self.source.row(0)
        return first | {name: np.zeros_like(first[name]) for name in COUNTED if name in first}
