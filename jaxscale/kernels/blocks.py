"""Attention by blocks: a pair of functions of one block of queries and keys, for each implementation.

`models.context` puts a row together from them.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxscale.kernels import cudnn, plain, splash

Documents = jax.Array | None  # [B, T] numbers of documents; None: one a row
Pair = tuple[jax.Array, jax.Array]
Gradients = tuple[jax.Array, jax.Array, jax.Array]
Block = tuple[int, int, int, int]  # queries from, to; keys from, to


@dataclass(frozen=True)
class Seen:
    """Which keys a query sees by its place: those up to its own, within the window.

    Attributes:
        places: [R, T]: the key at whose place each query stands, for each of R ranks.
        rank: of this device among them.
    """

    places: np.ndarray
    rank: jax.Array | int = 0


class Kernel(Protocol):
    """Attention of a block: q [B, T, N, H]; k, v [B, S, K, H]; documents of queries and of keys. Seen None: all keys.

    Attributes:
        name: as `step.attention` calls it.
    """

    @property
    def name(self) -> str: ...

    def forward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, q_docs: Documents, k_docs: Documents, seen: Seen | None
    ) -> tuple[jax.Array, jax.Array]:
        """Result [B, T, N, H] and log-sum-exp [B, T, N] in float32; of a query that sees nothing 0 and NEGATIVE."""
        ...

    def backward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, q_docs: Documents, k_docs: Documents, seen: Seen | None,
        out: jax.Array, lse: jax.Array, dout: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
        """Gradients of q, k and v by this block; `out` and `lse` are those of the whole row."""
        ...


def mask_of(
    block: Block, q_docs: Documents, k_docs: Documents, seen: Seen | None, window: int | None
) -> jax.Array | None:
    """[B or 1, queries, keys] of a block; None: all is seen."""
    first, last, start, stop = block
    mask = None
    if seen is not None:
        places = jnp.asarray(seen.places[:, first:last])[seen.rank]
        mask = plain.visible(places[:, None], np.arange(start, stop)[None, :], window)[None]
    if q_docs is not None and k_docs is not None:
        same = q_docs[:, first:last, None] == k_docs[:, None, start:stop]
        mask = same if mask is None else mask & same
    return mask


@dataclass(frozen=True)
class Plain:
    """Plain XLA, in blocks of queries, each with the keys that any rank's queries of that block see."""

    window: int | None
    softcap: float | None
    name: ClassVar[str] = "xla"

    def forward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, q_docs: Documents, k_docs: Documents, seen: Seen | None
    ) -> Pair:
        parts: list[Pair] = []
        for block in self.blocks(q, k, seen):
            first, last, start, stop = block
            q_block, mask = q[:, first:last], mask_of(block, q_docs, k_docs, seen, self.window)
            if parts:  # one block's scores are there at a time
                q_block, parts[-1] = jax.lax.optimization_barrier((q_block, parts[-1]))
            parts.append(plain.block_forward(q_block, k[:, start:stop], v[:, start:stop], mask, self.softcap))
        out, lse = (jnp.concatenate(x, axis=1) for x in zip(*parts, strict=True))
        return out, lse

    def backward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, q_docs: Documents, k_docs: Documents, seen: Seen | None,
        out: jax.Array, lse: jax.Array, dout: jax.Array,
    ) -> Gradients:  # fmt: skip
        dqs = []
        dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in (k, v))
        lse, delta = plain.row_sums(out, lse, dout)
        for block in self.blocks(q, k, seen):
            first, last, start, stop = block
            q_block, lse_block, delta_block, dout_block = (x[:, first:last] for x in (q, lse, delta, dout))
            q_block, dk, dv = jax.lax.optimization_barrier((q_block, dk, dv))  # as above
            keys, mask = (k[:, start:stop], v[:, start:stop]), mask_of(block, q_docs, k_docs, seen, self.window)
            dq, dk_block, dv_block = plain.block_backward(
                q_block, *keys, mask, lse_block, delta_block, dout_block, self.softcap
            )
            dqs.append(dq)
            dk, dv = dk.at[:, start:stop].add(dk_block), dv.at[:, start:stop].add(dv_block)
        return jnp.concatenate(dqs, axis=1), dk, dv

    def blocks(self, q: jax.Array, k: jax.Array, seen: Seen | None) -> list[Block]:
        """Each is its own piece of the program."""
        T, S = q.shape[1], k.shape[1]
        size, blocks = plain.block_of(T), []
        for first in range(0, T, size):
            last, start, stop = min(first + size, T), 0, S
            if seen is not None:
                here = seen.places[:, first:last]
                stop = int(here.max()) + 1
                start = max(0, int(here.min()) - self.window + 1) if self.window else 0
            blocks.append((first, last, start, stop))
        return blocks


@dataclass(frozen=True)
class Splash:
    """Splash on TPU: a query's place among the keys is part of the mask, for each rank another one."""

    window: int | None
    softcap: float | None
    interpret: bool = False
    name: ClassVar[str] = "splash"

    def forward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, q_docs: Documents, k_docs: Documents, seen: Seen | None
    ) -> Pair:
        return splash.forward(q, k, v, q_docs, k_docs, **self.options(q, k, seen))

    def backward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, q_docs: Documents, k_docs: Documents, seen: Seen | None,
        out: jax.Array, lse: jax.Array, dout: jax.Array,
    ) -> Gradients:  # fmt: skip
        return splash.backward(q, k, v, q_docs, k_docs, out, lse, dout, **self.options(q, k, seen))

    def options(self, q: jax.Array, k: jax.Array, seen: Seen | None) -> dict[str, Any]:
        """What both functions of a block are told beside its arrays."""
        positions, rank = self.places(q, k, seen)
        about = {"window": self.window, "softcap": self.softcap, "interpret": self.interpret}
        return {"positions": positions, "rank": rank, **about}

    def places(self, q: jax.Array, k: jax.Array, seen: Seen | None) -> tuple[np.ndarray, jax.Array | None]:
        if seen is None:
            return np.full(q.shape[1], k.shape[1] - 1, np.int32), None
        if isinstance(seen.rank, int):
            return seen.places[seen.rank], None
        return seen.places, seen.rank


@dataclass(frozen=True)
class Cudnn:
    """cuDNN on NVIDIA: it knows blocks that are causal or whole, and masks of documents, but no other places."""

    window: int | None
    softcap: float | None
    name: ClassVar[str] = "cudnn"

    def forward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, q_docs: Documents, k_docs: Documents, seen: Seen | None
    ) -> Pair:
        mask, causal = self.mask(q, k, q_docs, k_docs, seen)
        return cudnn.forward(q, k, v, mask, causal=causal)

    def backward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, q_docs: Documents, k_docs: Documents, seen: Seen | None,
        out: jax.Array, lse: jax.Array, dout: jax.Array,
    ) -> Gradients:  # fmt: skip
        mask, causal = self.mask(q, k, q_docs, k_docs, seen)
        return cudnn.backward(q, k, v, mask, out, lse, dout, causal=causal)

    def mask(
        self, q: jax.Array, k: jax.Array, q_docs: Documents, k_docs: Documents, seen: Seen | None
    ) -> tuple[jax.Array | None, bool]:
        """[B or 1, T, S] and whether the block is causal. Other places than a causal block's are written out."""
        T, S = q.shape[1], k.shape[1]
        causal = seen is not None and T == S and not self.window
        return mask_of((0, T, 0, S), q_docs, k_docs, None if causal else seen, self.window), causal


KERNELS = {"xla": Plain, "splash": Splash, "cudnn": Cudnn}
