"""Which rows a step trains on: a pure function of (seed, step, offset), computed without state or seeking.

The permutation is written out here, not taken from a library, because checkpoints rely on it: a run resumed
years later must see the same batches.
"""

import numpy as np

_ROUNDS = 8
_MASK64 = 2**64 - 1


def row_indices(
    seed: int,
    step: int,
    batch_size: int,
    num_windows: int,
    *,
    offset: int = 0,
    shuffle: bool = True,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """The windows that make up the global batch of ``step``.

    Row r of the batch is global sample ``s = step * batch_size + offset + r``. Sample s belongs to epoch
    ``s // num_windows``, in which every window comes once, in an order given by (seed, epoch); with
    ``shuffle=False`` in their own order. Nothing depends on the number of processes.

    Args:
        offset: how many samples more than ``step * batch_size`` were read before ``step``: those that a rollback has
            left out, and, below 0 or above, what steps of another batch size have read.
        rows: which rows of the global batch; None for all ``batch_size``.

    Returns:
        int64[rows] of window numbers.
    """
    first = step * batch_size + offset
    if batch_size < 1 or num_windows < 1 or step < 0 or first < 0:
        raise ValueError(
            f"step {step}, batch_size {batch_size}, num_windows {num_windows} and the first sample {first} must be at "
            "least 0, 1, 1 and 0"
        )
    rows = np.arange(batch_size, dtype=np.int64) if rows is None else np.asarray(rows, dtype=np.int64)
    if rows.size and (rows.min() < 0 or rows.max() >= batch_size):
        raise ValueError(f"rows {rows.min()}..{rows.max()} are not all within the global batch of {batch_size}")
    epoch, position = np.divmod(first + rows, num_windows)
    return permute(position, num_windows, seed=seed, epoch=epoch) if shuffle else position


def permute(position: np.ndarray, size: int, *, seed: int, epoch: np.ndarray) -> np.ndarray:
    """Where each ``position[n]`` in [0, size) goes in the permutation of its ``epoch[n]``; O(1) each.

    A Feistel network permutes [0, 4^h), the first such power that holds ``size``; a result beyond ``size``
    is fed through again (cycle walking) until it falls inside, fewer than 4 times on average.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    keys = [_mix(_mix(np.full_like(epoch, seed & _MASK64, dtype=np.uint64)) ^ epoch.astype(np.uint64))]
    for _ in range(_ROUNDS - 1):
        keys.append(_mix(keys[-1]))
    value = _feistel(position.astype(np.uint64), keys, half_bits)
    while (outside := np.flatnonzero(value >= size)).size:
        value[outside] = _feistel(value[outside], [key[outside] for key in keys], half_bits)
    return value.astype(np.int64)


def _feistel(value: np.ndarray, keys: list[np.ndarray], half_bits: np.uint64) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = value >> half_bits, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half_bits) | right


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's step (Steele, Lea, Flood 2014): uint64 arrays wrap around, as it wants."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
