"""A mixture keeps its weights and its sources' epochs, and a sample does not depend on who asks for it."""

import numpy as np
import pytest

from jaxscale.config import Data
from jaxscale.data import mixture as mix
from jaxscale.data.batches import batches
from jaxscale.data.columns import TEXT
from jaxscale.data.mixture import Mixture, shares
from jaxscale.data.opening import open_rows
from jaxscale.data.prepare import prepare
from jaxscale.data.rows import make_row
from jaxscale.data.sources import text_source


class Rows:
    """Row i is the number i, of source k."""

    seq_len, vocab_size, separator_id, content = 4, 2**30, None, "tokens"
    columns = TEXT

    def __init__(self, k, length, fingerprint="one"):
        self.k, self.length, self.fingerprint = k, length, fingerprint

    def __len__(self):
        return self.length

    def row(self, i):
        return make_row(np.full(5, self.k * 10**6 + i, np.int32), None)


def mixture(weights=(0.7, 0.2, 0.1), lengths=(1000, 50, 7), **keywords):
    sources = {f"s{k}": Rows(k, length) for k, length in enumerate(lengths)}
    return Mixture(sources, {f"s{k}": w for k, w in enumerate(weights)}, **({"seed": 3} | keywords))


def drawn(source, count, start=0):
    return np.array([source.locate(s) for s in range(start, start + count)])


def test_weights_and_epochs():
    source = mixture()
    found = drawn(source, 20_000)
    np.testing.assert_allclose(np.bincount(found[:, 0]) / len(found), (0.7, 0.2, 0.1), atol=0.01)
    for k, length in enumerate((1000, 50, 7)):
        rows = found[found[:, 0] == k][:, 1]
        epochs = rows[: len(rows) // length * length].reshape(-1, length)
        assert (np.sort(epochs, axis=1) == np.arange(length)).all()  # each row once an epoch
        assert len({tuple(epoch) for epoch in epochs[:50]}) > 1  # in an order that is new


def test_over_the_end_of_a_block(monkeypatch):
    """The counts go on where the last block ended, and are exact over whole blocks."""
    monkeypatch.setattr(mix, "BLOCK", 64)
    source = mixture((3, 1), (1000, 5))
    found = drawn(source, 64 * 9)
    assert (np.bincount(found[:, 0]) == (48 * 9, 16 * 9)).all()
    rows = found[found[:, 0] == 1][:, 1]
    assert (np.sort(rows[:140].reshape(28, 5), axis=1) == np.arange(5)).all()


def test_a_sample_is_a_function_of_seed_and_number():
    """Backwards, from the middle and in parts: what a resumed run and other processes would read."""
    whole = drawn(mixture(), 300)
    other = mixture()
    assert [other.locate(s) for s in reversed(range(300))] == [tuple(one) for one in whole[::-1]]
    assert not (drawn(mixture(seed=4), 300) == whole).all()
    source = mixture()

    def tokens(start, stop, rows=None, prefetch=0):
        steps = batches(source, seed=3, batch_size=8, start_step=start, stop_step=stop, rows=rows, prefetch=prefetch)
        return [batch["tokens"][:, 0] for batch in steps]

    straight = tokens(0, 12)
    np.testing.assert_array_equal(np.concatenate(straight), [k * 10**6 + i for k, i in whole[:96]])
    np.testing.assert_array_equal(tokens(5, 12, prefetch=2), straight[5:])
    parts = [tokens(0, 12, rows=rows) for rows in (np.arange(0, 8, 2), np.arange(1, 8, 2))]
    np.testing.assert_array_equal(np.stack(parts, axis=2).reshape(12, 8), straight)


def test_validation_has_no_row_twice():
    source = mixture((0.5, 0.5), (1000, 40), shuffle=False, forever=False)
    found = drawn(source, len(source))
    assert len({tuple(one) for one in found.tolist()}) == len(source)
    assert 60 <= len(source) <= 81
    assert len(mixture((0.5, 0.5), (1, 1), forever=False)) >= 1


def test_the_content_covers_sources_and_weights():
    one = mixture().content
    assert mixture().content == one
    assert len({one, mixture((0.6, 0.3, 0.1)).content, mixture(lengths=(1000, 50, 8)).content}) == 3


def test_refusals():
    with pytest.raises(ValueError, match=r"b and a were made by different tokenizers"):
        Mixture({"a": Rows(0, 5), "b": Rows(1, 5, "other")}, {"a": 1, "b": 1}, seed=0)
    with pytest.raises(ValueError, match="the weight of b is below 1/65536 of all"):
        shares([1.0, 1e-9], ["a", "b"])
    assert shares([1, 1, 1], list("abc")) == [21846, 21845, 21845]


def test_of_datasets(tmp_path):
    """From the config's section: rows of both, and validation of the one that has such a split."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 4000)
        tail = 0.2 if name == "a" else 0.0
        prepare(
            text_source([tmp_path / f"{name}.txt"]), "byte", tmp_path / name, validation_tail=tail,
            progress=lambda state: None,
        )  # fmt: skip
    data = Data(mixture={str(tmp_path / "a"): 1, str(tmp_path / "b"): 3}, seq_len=16)
    rows = open_rows(data, "train", vocab_size=257, seed=0)
    letters = [chr(rows.row(s)["tokens"][-1]) for s in range(400)]
    assert 60 < letters.count("a") < 140
    validation = open_rows(data, "validation", vocab_size=257, seed=0)
    assert {chr(validation.row(s)["tokens"][-1]) for s in range(len(validation))} == {"a"}
    for wrong in ({"path": "x", "mixture": {"a": 1}}, {"mixture": {}}, {"kind": "synthetic", "mixture": {"a": 1}}):
        with pytest.raises(ValueError, match=r"data.mixture takes \{folder: weight"):
            Data(**wrong)
