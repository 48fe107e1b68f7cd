"""Attention whose sequences are split over the mesh: local code of one device, inside the shard_map of `attention`.

Tokens lie as `blueprint.sequence` orders them. There are three ways:

- gather: every device gathers all keys and values, forward and again backward, and scatters their gradients.
- ring: keys and values go round, and no device ever holds them all (Ring Attention, arXiv:2310.01889).
- halo: under a sliding window the last keys of the devices before are enough.

Each works with any kernel: two functions of a block of queries and keys. Backward they take the result and the
log-sum-exp of the whole row, so that the gradients of a row's blocks add up (FlashAttention-2, arXiv:2307.08691).
A head's sink is one more key of each row, whose value is zero: it is added to that sum, and no kernel knows of it.

Dims: B batch, T tokens of a device, S keys, N query heads, K kv heads, H head dim; C devices along the sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jaxscale.blueprint.sequence import halo, order
from jaxscale.kernels.blocks import Documents, Kernel, Seen
from jaxscale.kernels.plain import merge

Axes = tuple[str, ...]
Arrays = tuple[jax.Array, ...]


@dataclass(frozen=True)
class Split:
    """How a sequence is split: the mesh axes along it, their number of devices C, a device's tokens T, their order."""

    axes: Axes
    shards: int
    tokens: int
    zigzag: bool

    @property
    def rank(self) -> jax.Array:
        return jax.lax.axis_index(self.axes)

    def seen(self) -> Seen:
        """For queries of each device and the keys of the whole sequence in reading order."""
        places = order(self.tokens * self.shards, self.shards, zigzag=self.zigzag)
        return Seen(places.reshape(self.shards, self.tokens), self.rank)

    def whole(self, x: jax.Array) -> jax.Array:
        """All devices' tokens in reading order: [B, T, ...] -> [B, S, ...].

        # x[B, T_context, ...] -> x[B, T, ...]   all-gather over context
        """
        x = jax.lax.all_gather(x, self.axes, axis=1, tiled=True)
        if not self.zigzag:
            return x
        pairs = x.reshape(x.shape[0], self.shards, 2, -1, *x.shape[2:])
        return jnp.concatenate([pairs[:, :, 0], pairs[:, ::-1, 1]], axis=1).reshape(x.shape)

    def summed(self, x: jax.Array) -> jax.Array:
        """The other way for gradients: each device's tokens, summed over all devices."""
        if self.zigzag:
            halves = x.reshape(x.shape[0], 2, self.shards, -1, *x.shape[2:])
            x = jnp.stack([halves[:, 0], halves[:, 1, ::-1]], axis=2).reshape(x.shape)
        summed: jax.Array = jax.lax.psum_scatter(x, self.axes, scatter_dimension=1, tiled=True)
        return summed

    def turned(self, x: Any) -> Any:
        """Every device hands its arrays to the next one of the ring."""
        return jax.lax.ppermute(x, self.axes, [(i, (i + 1) % self.shards) for i in range(self.shards)])


def named(out: jax.Array, lse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both by the name that `step.remat` knows: with them kept, the forward pass does not run again."""
    return checkpoint_name(out, "attended"), checkpoint_name(lse, "attended")


Sinks = jax.Array | None  # [N]: a score of each head for no token; None: there are none


def drained(out: jax.Array, lse: jax.Array, sinks: Sinks) -> tuple[jax.Array, jax.Array]:
    """Result and log-sum-exp [B, T, N] of rows with the sinks among their keys."""
    if sinks is None:
        return out, lse
    total = jnp.logaddexp(lse, sinks.astype(lse.dtype))
    return (out.astype(jnp.float32) * jnp.exp(lse - total)[..., None]).astype(out.dtype), total


def of_sinks(sinks: Sinks, out: jax.Array, lse: jax.Array, dout: jax.Array) -> Sinks:
    """Their gradient: of a key whose value is zero, given result and log-sum-exp of the whole rows."""
    if sinks is None:
        return None
    delta = (out.astype(jnp.float32) * dout.astype(jnp.float32)).sum(-1)
    gradient: jax.Array = -(jnp.exp(sinks.astype(lse.dtype) - lse) * delta).sum((0, 1))
    return gradient.astype(sinks.dtype)


def with_documents(x: Documents, like: jax.Array) -> jax.Array:
    return jnp.ones(like.shape[:2], jnp.int32) if x is None else x


# --- gather ---------------------------------------------------------------------------------------------------


def gather_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, documents: Documents, sinks: Sinks, kernel: Kernel, at: Split
) -> Any:
    """Keys and values are gathered, and gathered again in the backward pass; only the device's own are kept between."""

    def keys(k: jax.Array, v: jax.Array, documents: Documents) -> tuple[jax.Array, jax.Array, Documents]:
        return at.whole(k), at.whole(v), None if documents is None else at.whole(documents)

    def forward(q: jax.Array, k: jax.Array, v: jax.Array, documents: Documents, sinks: Sinks) -> tuple[jax.Array, Any]:
        every_k, every_v, every = keys(k, v, documents)
        out, lse = kernel.forward(q, every_k, every_v, documents, every, at.seen())
        out, lse = named(*drained(out, lse, sinks))
        return out, (q, k, v, documents, sinks, out, lse)

    def backward(saved: Any, dout: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None, Sinks]:
        q, k, v, documents, sinks, out, lse = saved
        every_k, every_v, every = keys(k, v, documents)
        dq, dk, dv = kernel.backward(q, every_k, every_v, documents, every, at.seen(), out, lse, dout)
        dk, dv = at.summed(dk.astype(k.dtype)), at.summed(dv.astype(v.dtype))
        return dq.astype(q.dtype), dk, dv, None, of_sinks(sinks, out, lse, dout)

    run = jax.custom_vjp(lambda *arrays: forward(*arrays)[0])
    run.defvjp(forward, backward)
    return run(q, k, v, documents, sinks)


# --- halo -----------------------------------------------------------------------------------------------------


def halo_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, documents: Documents, sinks: Sinks, kernel: Kernel, at: Split, window: int
) -> Any:
    """A sliding window in reading order: the last window - 1 keys before a device's own come from its neighbours."""
    documents = with_documents(documents, q)
    # zeros before the first token: no document
    before = [neighbours(x, at, window, kernel.name) for x in (k, v, documents)]
    k, v, other = (jnp.concatenate([*parts, x], axis=1) for parts, x in zip(before, (k, v, documents), strict=True))
    more = k.shape[1] - at.tokens
    seen = Seen(more + np.arange(at.tokens, dtype=np.int32)[None])
    return block_attention(kernel, seen)(q, k, v, documents, other, sinks)


def neighbours(x: jax.Array, at: Split, window: int, kernel: str) -> list[jax.Array]:
    """The window - 1 tokens before a device's first one, or a few more, from as many devices as hold them."""
    parts: list[jax.Array] = []
    for hop, wanted in enumerate(halo(at.tokens, at.shards, window, kernel), 1):
        pairs = [(i, i + hop) for i in range(at.shards - hop)]
        parts.insert(0, jax.lax.ppermute(x[:, at.tokens - wanted :], at.axes, pairs))
    return parts


def block_attention(kernel: Kernel, seen: Seen) -> Callable[..., jax.Array]:
    """A kernel's pair as one differentiable function of local arrays."""

    def forward(
        q: jax.Array, k: jax.Array, v: jax.Array, q_docs: Documents, k_docs: Documents, sinks: Sinks
    ) -> tuple[jax.Array, Any]:
        out, lse = named(*drained(*kernel.forward(q, k, v, q_docs, k_docs, seen), sinks))
        return out, (q, k, v, q_docs, k_docs, sinks, out, lse)

    def backward(saved: Any, dout: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None, None, Sinks]:
        q, k, v, q_docs, k_docs, sinks, out, lse = saved
        dq, dk, dv = kernel.backward(q, k, v, q_docs, k_docs, seen, out, lse, dout)
        gradient = of_sinks(sinks, out, lse, dout)
        return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None, gradient

    run = jax.custom_vjp(lambda *arrays: forward(*arrays)[0])
    run.defvjp(forward, backward)
    attended: Callable[..., jax.Array] = run
    return attended


# --- ring -----------------------------------------------------------------------------------------------------


def ring_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, documents: Documents, sinks: Sinks, kernel: Kernel, at: Split
) -> Any:
    """Zigzag ring: keys go round while each device multiplies with those that it has.

    The own block is causal in local order, as chunk r lies before chunk 2C - 1 - r. In each other step two of the four
    pairs of chunks are seen, whole: (late, early) always, and (early, early) if the keys come from a lower rank, else
    (late, late). So no mask by place, no branch, and the same work on every device.
    """
    ring = Ring(kernel, at)
    run = jax.custom_vjp(lambda *arrays: ring.forward(*arrays)[0])
    run.defvjp(ring.forward, ring.backward)
    return run(q, k, v, documents, sinks)


def chunks(x: Any) -> tuple[Any, Any]:
    """The early and the late chunk of each array's tokens."""
    half = jax.tree.leaves(x)[0].shape[1] // 2
    return jax.tree.map(lambda a: a[:, :half], x), jax.tree.map(lambda a: a[:, half:], x)


def pick(condition: jax.Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def both(early: jax.Array, late: jax.Array) -> jax.Array:
    return jnp.concatenate([early, late], axis=1)


@dataclass(frozen=True)
class Ring:
    kernel: Kernel
    at: Split

    @property
    def causal(self) -> Seen:
        return Seen(np.arange(self.at.tokens, dtype=np.int32)[None])

    def around(self, step: Callable[[Any, Any, jax.Array | int], Any], carry: Any, keys: Any) -> Any:
        """step(carry, keys, j), j = 1 .. C - 1, with the keys of the device j before.

        The next keys travel while a step multiplies with these: in one buffer, a TPU could hide nothing.
        """

        def body(state: tuple[Any, Any], j: jax.Array) -> tuple[tuple[Any, Any], None]:
            carry, keys = state
            return (step(carry, keys, j), self.at.turned(keys)), None

        last = self.at.shards - 1
        (carry, keys), _ = jax.lax.scan(body, (carry, self.at.turned(keys)), jnp.arange(1, last))
        return step(carry, keys, last)

    def lower(self, j: jax.Array | int) -> jax.Array:
        """Do the keys of step j come from a lower rank?"""
        lower: jax.Array = (self.at.rank - j) % self.at.shards < self.at.rank
        return lower

    def forward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, documents: Documents, sinks: Sinks
    ) -> tuple[jax.Array, Any]:
        early, late = chunks((q, documents))

        def meet(so_far: Arrays, queries: Any, keys: Any) -> Arrays:
            (q, q_docs), (k, v, k_docs) = queries, keys
            out, lse = self.kernel.forward(q, k, v, q_docs, k_docs, None)
            return merge(so_far[0], so_far[1], out, lse)

        def step(carry: tuple[Arrays, Arrays], keys: Any, j: jax.Array | int) -> tuple[Arrays, Arrays]:
            (of_early, of_late), (first, second), lower = carry, chunks(keys), self.lower(j)
            of_late = meet(of_late, late, first)
            updated = meet(pick(lower, of_early, of_late), pick(lower, early, late), pick(lower, first, second))
            return pick(lower, updated, of_early), pick(lower, of_late, updated)

        out, lse = self.kernel.forward(q, k, v, documents, documents, self.causal)
        carry = chunks((out.astype(jnp.float32), lse))
        (early_out, early_lse), (late_out, late_lse) = self.around(step, carry, (k, v, documents))
        out, lse = drained(both(early_out, late_out), both(early_lse, late_lse), sinks)
        out, lse = named(out.astype(q.dtype), lse)
        return out, (q, k, v, documents, sinks, out, lse)

    def backward(self, saved: Any, dout: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None, Sinks]:
        """Gradients of keys travel with their keys, in float32, and come home with the last turn."""
        q, k, v, documents, sinks, out, lse = saved
        early, late = chunks((q, documents, out, lse, dout))

        def of(queries: Any, keys: Any) -> Arrays:
            (q, q_docs, out, lse, dout), (k, v, k_docs) = queries, keys
            grads = self.kernel.backward(q, k, v, q_docs, k_docs, None, out, lse, dout)
            return tuple(x.astype(jnp.float32) for x in grads)

        def step(carry: Arrays, keys: Any, j: jax.Array | int) -> Arrays:
            dq, dk, dv = carry
            dk, dv = self.at.turned((dk, dv))  # nobody waits for them before this step's end
            (first, second), lower = chunks(keys), self.lower(j)
            dq_late, dk_first, dv_first = of(late, first)
            dq_2, dk_2, dv_2 = of(pick(lower, early, late), pick(lower, first, second))
            nothing = jnp.zeros_like
            dq = dq + both(pick(lower, dq_2, nothing(dq_2)), dq_late + pick(lower, nothing(dq_2), dq_2))
            dk = dk + both(dk_first + pick(lower, dk_2, nothing(dk_2)), pick(lower, nothing(dk_2), dk_2))
            dv = dv + both(dv_first + pick(lower, dv_2, nothing(dv_2)), pick(lower, nothing(dv_2), dv_2))
            return dq, dk, dv

        dqkv = self.kernel.backward(q, k, v, documents, documents, self.causal, out, lse, dout)
        dq, dk, dv = self.around(step, tuple(x.astype(jnp.float32) for x in dqkv), (k, v, documents))
        dk, dv = self.at.turned((dk, dv))  # home
        return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, of_sinks(sinks, out, lse, dout)
