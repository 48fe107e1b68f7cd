"""The kernels of `models.context`: a pair of functions of one block of queries and keys, for each implementation."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.models import plain
from jaxscale.models.context import Documents, Seen

Block = tuple[int, int, int, int]  # queries from, to; keys from, to


@dataclass(frozen=True)
class Plain:
    """Plain XLA, in blocks of queries, each with the keys that any rank's queries of that block see."""

    sliding_window: int | None
    softcap: float | None
    name: ClassVar[str] = "xla"

    def forward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, own: Documents, other: Documents, seen: Seen | None
    ) -> tuple[jax.Array, jax.Array]:
        parts = []
        for block in self.blocks(q, k, seen):
            first, last, start, stop = block
            keys = k[:, start:stop], v[:, start:stop]
            parts.append(
                plain.forward(q[:, first:last], *keys, self.mask(block, own, other, seen), softcap=self.softcap)
            )
        out, lse = (jnp.concatenate(x, axis=1) for x in zip(*parts, strict=True))
        return out, lse

    def backward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, own: Documents, other: Documents, seen: Seen | None,
        out: jax.Array, lse: jax.Array, dout: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
        dqs = []
        dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in (k, v))
        for block in self.blocks(q, k, seen):
            first, last, start, stop = block
            keys, mask = (k[:, start:stop], v[:, start:stop]), self.mask(block, own, other, seen)
            row = out[:, first:last], lse[:, first:last], dout[:, first:last]
            dq, dk_block, dv_block = plain.backward(q[:, first:last], *keys, mask, *row, softcap=self.softcap)
            dqs.append(dq)
            dk, dv = dk.at[:, start:stop].add(dk_block), dv.at[:, start:stop].add(dv_block)
        return jnp.concatenate(dqs, axis=1), dk, dv

    def blocks(self, q: jax.Array, k: jax.Array, seen: Seen | None) -> list[Block]:
        """At most 16, as each is its own piece of the program."""
        T, S = q.shape[1], k.shape[1]
        size = max(64, -(-T // 16))
        found = []
        for first in range(0, T, size):
            last = min(first + size, T)
            start, stop = 0, S
            if seen is not None:
                here = seen.places[:, first:last]
                stop = int(here.max()) + 1
                start = max(0, int(here.min()) - self.sliding_window + 1) if self.sliding_window else 0
            found.append((first, last, start, stop))
        return found

    def mask(self, block: Block, own: Documents, other: Documents, seen: Seen | None) -> jax.Array | None:
        """[B or 1, queries, keys] of a block; None: all is seen."""
        first, last, start, stop = block
        mask = None
        if seen is not None:
            places = jnp.asarray(seen.places[:, first:last])[seen.rank]
            mask = visible(places[:, None], np.arange(start, stop)[None, :], self.sliding_window)[None]
        if own is not None and other is not None:
            same = own[:, first:last, None] == other[:, None, start:stop]
            mask = same if mask is None else mask & same
        return mask


def visible(query: jax.Array, key: np.ndarray, sliding_window: int | None) -> jax.Array:
    """True where a query at index `query` may see a key at index `key`."""
    mask = key <= query
    return mask if sliding_window is None else mask & (query - key < sliding_window)
