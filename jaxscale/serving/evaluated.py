"""What an evaluation came to, as values. No jax."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluated:
    """What one source came to.

    Attributes:
        tokens: that were predicted.
        nats: the sum of their losses.
        bytes: of the source's text in UTF-8; None where they are not known.
    """

    source: str
    tokens: int
    nats: float
    bytes: int | None

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < math.log(1e300) else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        return self.nats / math.log(2) / self.bytes if self.bytes else None


@dataclass(frozen=True)
class Evaluation:
    """The sources of an evaluation, in the order that they were given.

    Attributes:
        model: which parameters, in words.
        mesh: axis -> size.
        seq_len: tokens of a row.
        masked: documents of a row do not see each other.
    """

    model: str
    step: int | None
    averaged: bool
    mesh: dict[str, int]
    seq_len: int
    masked: bool
    sources: tuple[Evaluated, ...]

    @property
    def total(self) -> Evaluated:
        """All sources as one."""
        sizes = [one.bytes for one in self.sources]
        size = None if None in sizes else sum(size for size in sizes if size)
        return Evaluated(
            "total", sum(one.tokens for one in self.sources), math.fsum(one.nats for one in self.sources), size
        )

    @property
    def rows(self) -> tuple[Evaluated, ...]:
        """Each source, and the total of several."""
        return self.sources if len(self.sources) == 1 else (*self.sources, self.total)
