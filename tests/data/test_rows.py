"""Every token but the first is a target once, and documents keep apart."""

import numpy as np
import pytest

from jaxscale.data.columns import DTYPES, TEXT
from jaxscale.data.rows import Synthetic, load_rows, make_row, windows
from jaxscale.data.store import TokenStore

S = 99


def store_of(tokens, *, vocab_size=100, cuts=()):
    return TokenStore("x", tuple(np.split(np.asarray(tokens, np.uint32), cuts)), vocab_size, S)


def test_make_row():
    row = make_row(np.array([5, 6, S, 7, 8, S, S, 9]), S)
    assert row["tokens"].tolist() == [5, 6, S, 7, 8, S, S]
    assert row["targets"].tolist() == [6, S, 7, 8, S, S, 9]
    assert row["segments"].tolist() == [1, 1, 2, 2, 2, 3, 4]
    assert row["positions"].tolist() == [0, 1, 0, 1, 2, 0, 0]
    assert row["weights"].tolist() == [1.0] * 7
    assert {name: values.dtype for name, values in row.items()} == {name: DTYPES[name] for name in TEXT}


def test_make_row_starting_with_a_separator():
    row = make_row(np.array([S, 6, S, 7]), S)
    assert row["segments"].tolist() == [1, 1, 2]
    assert row["positions"].tolist() == [0, 1, 0]


@pytest.mark.parametrize(("separator_id", "mask"), [(None, True), (S, False)])
def test_make_row_of_one_document(separator_id, mask):
    row = make_row(np.array([5, S, 6, 7]), separator_id, mask_documents=mask)
    assert row["segments"].tolist() == [1, 1, 1]
    assert row["positions"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_tokens", [9, 10, 12, 13, 31])
def test_windows_cover_the_store(num_tokens):
    tokens = np.arange(num_tokens)
    source = windows(store_of(tokens, cuts=[2, 5, 8]), 4)
    assert len(source) == (num_tokens - 1) // 4
    rows = load_rows(source, range(len(source)))
    assert rows["tokens"].shape == (len(source), 4)
    assert rows["tokens"].ravel().tolist() == tokens[: 4 * len(source)].tolist()
    assert rows["targets"].ravel().tolist() == tokens[1 : 4 * len(source) + 1].tolist()
    with pytest.raises(IndexError):
        source.row(len(source))


def test_too_few_tokens():
    with pytest.raises(ValueError, match=r"has 4 tokens, one window needs .* 5; try seq_len 3"):
        windows(store_of(range(4)), 4)
    assert len(windows(store_of(range(5)), 4)) == 1
    with pytest.raises(ValueError, match="seq_len 0"):
        windows(store_of(range(5)), 0)


def test_vocabulary_is_checked():
    with pytest.raises(ValueError, match="vocab_size 100, beyond the model's vocab_size 64"):
        windows(store_of(range(30)), 4, model_vocab_size=64)
    store = store_of([*range(11), 120, 12, 13, 2**31 + 5, 1, 1])
    with pytest.raises(ValueError, match="token id 120 at window 2 is beyond the tokenizer's vocab_size 100"):
        windows(store, 4).row(2)
    assert windows(store, 4, model_vocab_size=128).row(2)
    with pytest.raises(ValueError, match="token id 2147483653 at window 3 is beyond the model's vocab_size 128"):
        windows(store, 4, model_vocab_size=128).row(3)


def test_load_no_rows():
    assert load_rows(windows(store_of(range(9)), 4), [])["weights"].shape == (0, 4)


def test_synthetic():
    source = Synthetic(vocab_size=50, seq_len=6, seed=1)
    row = source.row(3)
    assert row["tokens"].tolist() == [13, 15, 47, 7, 49, 3]  # pinned: the same on every machine and version
    np.testing.assert_array_equal(row["tokens"][1:], row["targets"][:-1])
    assert source.row(4)["tokens"].tolist() != row["tokens"].tolist()
    assert Synthetic(50, 6, seed=2).row(3)["tokens"].tolist() != row["tokens"].tolist()
    assert row["segments"].tolist() == [1] * 6
    assert len(source) > 1e9
