"""The global batch of every step, loaded ahead by Grain's threads. Knows nothing of meshes: only of row numbers."""

import sys
from collections.abc import Generator

import numpy as np

from jaxscale.data.order import row_indices
from jaxscale.data.rows import RowSource, load_rows


def batches(
    source: RowSource,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    stop_step: int | None = None,
    offset: int = 0,
    rows: np.ndarray | None = None,
    shuffle: bool = True,
    prefetch: int = 2,
    num_threads: int = 2,
) -> Generator[dict[str, np.ndarray], None, None]:
    """The batches of steps ``start_step``, ``start_step + 1``, ...: the step alone decides what is in each.

    Starting at step k gives the tail of what starting at 0 gives; there is no state to save.

    Args:
        source: where rows come from.
        seed: decides the order of rows; see ``order.row_indices``.
        batch_size: rows of the global batch, over all processes.
        stop_step: the first step not to give; None goes on forever.
        offset: rows of the order that lie between the steps and their rows; see ``order.row_indices``.
        rows: the rows of the global batch that this process needs, in the order it wants them; None for all.
        shuffle: False gives the windows in their own order, as validation wants.
        prefetch: how many batches to load ahead; 0 loads each when it is asked for, in the caller's thread.
        num_threads: how many threads load them.

    Returns:
        An iterator of dicts of arrays [len(rows), T] (see ``rows``); ``close()`` stops its threads.

    Raises:
        ValueError: on the call, impossible arguments; while iterating, a token id beyond the vocabulary.
    """
    shuffle = shuffle and not getattr(source, "in_order", False)  # a mixture decides its order itself
    if prefetch < 0 or num_threads < 0:
        raise ValueError(f"prefetch {prefetch} and num_threads {num_threads} must not be negative; try 2 and 2")
    if stop_step is not None and stop_step < start_step:
        raise ValueError(f"stop_step {stop_step} is before start_step {start_step}; try {start_step + 1}")
    row_indices(
        seed, start_step, batch_size, len(source), offset=offset, rows=rows
    )  # its checks, before any thread starts

    def load(step: int) -> dict[str, np.ndarray]:
        chosen = row_indices(seed, step, batch_size, len(source), offset=offset, shuffle=shuffle, rows=rows)
        return load_rows(source, chosen)

    import grain  # here, as it brings jax along: a second, and preparing or inspecting data needs neither

    steps = grain.MapDataset.range(start_step, sys.maxsize if stop_step is None else stop_step)
    threads = min(num_threads, prefetch)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch if threads else 0)
    return _drain(steps.map(load).to_iter_dataset(options))


def _drain(dataset) -> Generator[dict[str, np.ndarray], None, None]:
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()
