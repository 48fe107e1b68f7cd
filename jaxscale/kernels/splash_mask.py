"""The masks of splash attention by arithmetic on the queries' positions, in numpy.

A MaskInfo tells a kernel which blocks it computes, and which block to read next. JAX makes it of a mask of T^2
elements, which takes half a minute and more at 131,072 tokens. Within a block the kernel itself hides the keys that a
query does not see.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo


def mask_info(positions_T: np.ndarray, S: int, window: int | None, block_q: int, block_kv: int) -> "MaskInfo":
    """The MaskInfo of forward and dq, equal to JAX's `process_mask`: for each block of queries, its blocks of keys.

    Args:
        positions_T: where each query stands among the keys 0..S-1.
        window: a query sees itself and the window - 1 keys before it; None: all before it.

    Returns:
        data_next and block_mask are [1, T / block_q, width], width the most blocks of keys that any row has.
    """
    kinds = block_kinds(positions_T, S, window, block_q, block_kv)
    return packed(*shrunk(kinds, next_block(kinds), at_end=False), positions_T)


def mask_info_dkv(
    positions_T: np.ndarray, S: int, window: int | None, block_q: int, block_kv: int, *, shrink: bool
) -> "MaskInfo":
    """The MaskInfo of dk and dv, equal to JAX's `process_mask_dkv`: for each block of keys, its blocks of queries.

    Returns:
        data_next and block_mask are [1, height, S / block_kv]; height is T / block_q without `shrink`.
    """
    kinds = block_kinds(positions_T, S, window, block_q, block_kv).T
    data = next_block(kinds)
    if shrink:
        kinds, data = shrunk(kinds, data, at_end=True)
    return packed(kinds.T, data.T, positions_T)


def block_kinds(positions_T: np.ndarray, S: int, window: int | None, block_q: int, block_kv: int) -> np.ndarray:
    """[T / block_q, S / block_kv]: 0 where no query of a block sees a key of the other, 2 where all see all, else 1."""
    rows = np.sort(positions_T.reshape(-1, block_q).astype(np.int64), axis=1)
    first = np.arange(0, S, block_kv)
    last = first + block_kv - 1
    reach = np.iinfo(np.int32).max if window is None else window - 1
    # a query at p sees a key of a block if first <= p <= last + reach
    count = [np.searchsorted(row, last + reach, "right") - np.searchsorted(row, first, "left") for row in rows]
    every = (rows[:, :1] >= last) & (rows[:, -1:] <= first + reach)
    return (np.stack(count) > 0).astype(np.int32) + every


def next_block(kinds: np.ndarray) -> np.ndarray:
    """For each place, row by row: the column of the next block to compute, of this place or after it, cyclic."""
    wanted = np.flatnonzero(kinds)
    if not len(wanted):
        return np.zeros_like(kinds)
    place = np.searchsorted(wanted, np.arange(kinds.size)) % len(wanted)
    columns: np.ndarray = (wanted[place] % kinds.shape[1]).astype(np.int32)
    return columns.reshape(kinds.shape)


def shrunk(kinds: np.ndarray, data: np.ndarray, *, at_end: bool) -> tuple[np.ndarray, np.ndarray]:
    """Each row's blocks to compute side by side, in as many columns as the longest has; zeros fill the others."""
    wanted = kinds > 0
    width = max(1, wanted.sum(axis=1).max())
    order = np.argsort(wanted if at_end else ~wanted, axis=1, kind="stable")
    order = order[:, -width:] if at_end else order[:, :width]
    kept = np.take_along_axis(wanted, order, axis=1)
    kinds, data = (np.where(kept, np.take_along_axis(x, order, axis=1), 0) for x in (kinds, data))
    return kinds, data


def packed(kinds: np.ndarray, data: np.ndarray, positions_T: np.ndarray) -> "MaskInfo":
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo

    return MaskInfo(
        data_next=small(data)[None],
        mask_next=None,
        block_mask=small(kinds)[None],
        partial_mask_blocks=None,
        q_sequence=positions_T.astype(np.int32),
    )


def small(array: np.ndarray) -> np.ndarray:
    """In the smallest integers that hold it: a TPU's scalar memory is small."""
    most = array.max(initial=0)
    return array.astype(next(d for d in (np.int8, np.int16, np.int32) if most <= np.iinfo(d).max))


def stack(infos: list[Any], *, axis: int) -> Any:
    """MaskInfos of several ranks as one, [C, ...], as long along `axis` as the longest; no block is computed there."""
    length = max(info.block_mask.shape[axis] for info in infos)

    def pad(array: np.ndarray, mode: Any) -> np.ndarray:
        widths = [(0, 0)] * 3
        widths[axis] = (0, length - array.shape[axis])
        return np.pad(array, widths, mode)

    return infos[0]._replace(
        data_next=np.stack([pad(info.data_next, "edge") for info in infos]),  # the same block again: nothing is read
        block_mask=np.stack([pad(info.block_mask, "constant") for info in infos]),
        q_sequence=np.stack([info.q_sequence for info in infos]),
    )
