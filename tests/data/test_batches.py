"""The global batch is a pure function of (seed, step), whoever loads it and wherever it starts."""

import itertools
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.data.order import row_indices
from jaxscale.data.tokens import Synthetic, TokenStore, batches, windows

sizes = st.integers(1, 200)
seeds = st.integers(-(2**63), 2**70)


@given(seed=seeds, num_windows=sizes, batch_size=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_every_window_once_an_epoch(seed, num_windows, batch_size):
    steps = -(-3 * num_windows // batch_size)
    order = np.concatenate([row_indices(seed, step, batch_size, num_windows) for step in range(steps)])
    for epoch in order[: 3 * num_windows].reshape(3, num_windows):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_windows))


@given(seed=seeds, step=st.integers(0, 10**9), num_windows=st.integers(1, 10**12))
@settings(max_examples=60, deadline=None)
def test_processes_split_the_same_batch(seed, step, num_windows):
    whole = row_indices(seed, step, 8, num_windows)
    assert whole.dtype == np.int64
    assert (whole < num_windows).all()
    for processes in (1, 2, 4):
        shares = [row_indices(seed, step, 8, num_windows, rows=rows) for rows in np.split(np.arange(8), processes)]
        np.testing.assert_array_equal(np.concatenate(shares), whole)


def test_epochs_and_seeds_differ():
    epochs = [tuple(row_indices(seed, step, 1000, 1000)) for seed in (0, 1, -1) for step in (0, 1, 2)]
    assert len(set(epochs)) == len(epochs)
    # About one fixed point a permutation is what chance gives; a weak network would leave far more.
    assert sum(int(np.sum(np.arange(1000) == epoch)) for epoch in epochs) < 30


def test_order_is_pinned():
    """Checkpoints rely on this order: it must never change."""
    assert row_indices(0, 0, 10, 10).tolist() == [6, 3, 4, 9, 5, 1, 7, 2, 8, 0]
    assert row_indices(1234, 5, 4, 10**9).tolist() == [353773142, 465297735, 808775588, 994882195]


def test_unshuffled():
    assert row_indices(0, 1, 4, 6, shuffle=False).tolist() == [4, 5, 0, 1]


def test_row_indices_refuses():
    for arguments in ((0, -1, 4, 4), (0, 0, 0, 4), (0, 0, 4, 0)):
        with pytest.raises(ValueError, match="must be at least"):
            row_indices(*arguments)
    with pytest.raises(ValueError, match="not all within the global batch of 4"):
        row_indices(0, 0, 4, 9, rows=np.array([4]))


def source_of(num_tokens=103, seq_len=4):
    tokens = np.arange(num_tokens, dtype=np.uint16)
    return windows(TokenStore("x", (tokens[:50], tokens[50:]), 500, 499), seq_len)


def take(count, source, **keywords):
    with closing(batches(source, seed=3, batch_size=4, **keywords)) as iterator:
        return list(itertools.islice(iterator, count))


def assert_same(got, wanted):
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("prefetch", [0, 3])
def test_resume_gives_the_tail(prefetch):
    whole = take(10, source_of())
    assert whole[0]["tokens"].shape == (4, 4)
    assert_same(take(6, source_of(), start_step=4, prefetch=prefetch), whole[4:])
    assert_same(take(99, source_of(), start_step=4, stop_step=10, prefetch=prefetch), whole[4:])


def test_processes_load_only_their_rows():
    whole = take(3, source_of())
    for rows in (np.array([2, 3]), np.array([1]), np.array([3, 0])):
        assert_same(take(3, source_of(), rows=rows), [{k: v[rows] for k, v in batch.items()} for batch in whole])


def test_unshuffled_batches():
    first = take(1, source_of(), shuffle=False)[0]
    assert first["tokens"].ravel().tolist() == list(range(16))


def test_synthetic_batches():
    a, b = (take(2, Synthetic(11, 5, seed=s)) for s in (0, 0))
    assert_same(a, b)
    assert not np.array_equal(a[0]["tokens"], a[1]["tokens"])


def test_errors_reach_the_caller():
    source = windows(TokenStore("x", (np.full(40, 600, np.uint16),), 500, 499), 4)
    with pytest.raises(ValueError, match="token id 600 at window 0 is beyond"):
        take(1, source, shuffle=False)
    for keywords in ({"start_step": -1}, {"prefetch": -1}, {"start_step": 3, "stop_step": 2}, {"rows": np.array([4])}):
        with pytest.raises(ValueError, match=r"-1|before|rows"):
            batches(source_of(), seed=0, batch_size=4, **keywords)


def test_closing_stops_the_threads():
    before = set(threading.enumerate())
    iterator = batches(source_of(), seed=0, batch_size=4, prefetch=8, num_threads=4)
    next(iterator)
    iterator.close()
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before
    with pytest.raises(StopIteration):
        next(iterator)
