"""Several sources of rows as one, by weights: row s of the mixture is a pure function of (seed, s).

Samples come in blocks. In each block a source has its share of the places, at places that (seed, block) decides; its
n-th place of all blocks takes its n-th row, in an order that is new in each of the source's epochs. So every row of
a source comes once in its epoch, whatever the others do, and nothing depends on processes or on where a run resumed.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from jaxscale.data.order import permute
from jaxscale.data.rows import RowSource

BLOCK = 2**16  # samples: a weight is kept to within 1 / BLOCK of the sum
CHUNK = 1024  # rows of a source whose order is computed at once, as one alone costs nearly as much
FOREVER = 2**40  # rows: more than any run reads


class Mixture:
    """Rows of ``sources`` in proportion to ``weights``; each source by the name that messages give it.

    ``forever``, as training wants, it goes from epoch to epoch of each source; else it ends before any row comes twice.
    Without ``shuffle`` each source's rows come in their own order.
    """

    in_order = True  # the order of rows is decided here

    def __init__(
        self,
        sources: Mapping[str, RowSource],
        weights: Mapping[str, float],
        *,
        seed: int,
        shuffle: bool = True,
        forever: bool = True,
    ):
        self.names, self._rows = list(sources), list(sources.values())
        first = self._rows[0]
        for name, rows in sources.items():
            if rows.fingerprint != first.fingerprint:
                raise ValueError(
                    f"{name} and {self.names[0]} were made by different tokenizers; prepare all of data.mixture by one"
                )
        self.seq_len, self.separator_id = first.seq_len, first.separator_id
        self.columns = tuple(name for name in first.columns if all(name in rows.columns for rows in self._rows))
        self.vocab_size = max(rows.vocab_size for rows in self._rows)
        self.seed, self.shuffle = seed, shuffle
        self.counts = shares([weights[name] for name in self.names], self.names)
        self.fingerprint, self.content = first.fingerprint, self._content()
        self._places = lru_cache(maxsize=4)(self._place)
        self._orders = lru_cache(maxsize=8 * len(self._rows))(self._order)
        self._length = FOREVER if forever else self._count()

    def __len__(self) -> int:
        return self._length

    def _count(self) -> int:
        """Samples before the first that would be a row's second."""
        blocks = min(len(rows) / count for rows, count in zip(self._rows, self.counts, strict=True))
        length = int(blocks * BLOCK)
        while not self._within(length):  # places are at random: some of a source's come early
            length -= 1
        return max(1, length)

    def _within(self, length: int) -> bool:
        block, place = divmod(length, BLOCK)
        taken = np.bincount(self._places(block)[0][:place], minlength=len(self._rows))
        return all(block * c + t <= len(r) for c, t, r in zip(self.counts, taken, self._rows, strict=True))

    def locate(self, s: int) -> tuple[int, int]:
        """(source, row of it) of sample ``s``."""
        block, place = divmod(s, BLOCK)
        source_of, rank = self._places(block)
        k = int(source_of[place])
        epoch, position = divmod(block * self.counts[k] + int(rank[place]), len(self._rows[k]))
        if not self.shuffle:
            return k, position
        chunk, within = divmod(position, CHUNK)
        return k, int(self._orders(k, epoch, chunk)[within])

    def row(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} is not within 0..{len(self)}")
        k, position = self.locate(i)
        return self._rows[k].row(position)

    def _place(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each place of a block: its source, and how many places of that source come before it."""
        order = permute(np.arange(BLOCK), BLOCK, seed=self.seed ^ 0x5EED, epoch=np.full(BLOCK, block))
        source_of = np.repeat(np.arange(len(self.counts)), self.counts)[order]
        rank = np.empty(BLOCK, np.int64)
        for k, count in enumerate(self.counts):
            rank[source_of == k] = np.arange(count)
        return source_of, rank

    def _order(self, k: int, epoch: int, chunk: int) -> np.ndarray:
        """Rows of source k at positions ``chunk * CHUNK`` and after, in this epoch."""
        size = len(self._rows[k])
        positions = np.arange(chunk * CHUNK, min(size, (chunk + 1) * CHUNK))
        return permute(positions, size, seed=self.seed, epoch=np.full_like(positions, epoch))

    def _content(self) -> str:
        """A hash of the sources' tokens, in their order, and of the share that each has."""
        parts = [[rows.content, len(rows), count] for rows, count in zip(self._rows, self.counts, strict=True)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def shares(weights: list[float], names: list[str]) -> list[int]:
    """Places of a block for each weight: whole numbers that sum to ``BLOCK``, by largest remainders."""
    exact = [weight / sum(weights) * BLOCK for weight in weights]
    counts = [int(value) for value in exact]
    left = BLOCK - sum(counts)
    for k in sorted(range(len(exact)), key=lambda k: counts[k] - exact[k])[:left]:
        counts[k] += 1
    for name, count in zip(names, counts, strict=True):
        if not count:
            raise ValueError(f"the weight of {name} is below 1/{BLOCK} of all; raise it or leave the source out")
    return counts
