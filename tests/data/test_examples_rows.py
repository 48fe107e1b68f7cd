"""Rows of examples: each once, whole, alone with its roles; a pair in one row; packed as well as they can be."""

import itertools
import random

import numpy as np
import pytest
from made_examples import dataset, records_of

from jaxscale import config as cfg
from jaxscale.data.columns import DTYPES, MOST_PAIRS, PAIRS, TEXT
from jaxscale.data.examples.packing import pack
from jaxscale.data.examples.rows import example_rows
from jaxscale.data.examples.store import ExampleStore, open_example_store
from jaxscale.data.opening import open_rows
from jaxscale.data.rows import load_rows
from jaxscale.data.store import TokenStore

S = 0


def store_of(documents, roles, kind="conversations", cuts=()):
    """A store of these token lists, in shards."""
    flat, marks = (np.concatenate([np.asarray(x) for x in parts]) for parts in (documents, roles))
    tokens = TokenStore("x", tuple(np.split(flat.astype(np.uint16), cuts)), 100, S, "f", "c")
    beside = TokenStore("x", tuple(np.split(marks.astype(np.uint8), cuts)), 3, None)
    return ExampleStore(kind, "x", tokens, beside, np.array([len(d) for d in documents], np.int64), "c")


def test_a_row_by_hand():
    rows = example_rows(store_of([[5, 6, 7, 8], [9, 10]], [[0, 1, 0, 1], [0, 1]], cuts=[3]), 8)
    assert len(rows) == 1
    row = rows.row(0)
    assert row["tokens"].tolist() == [5, 6, 7, 8, 9, 10, S, S]
    assert row["targets"].tolist() == [6, 7, 8, S, 10, S, S, S]
    assert row["weights"].tolist() == [1, 0, 1, 0, 1, 0, 0, 0]
    assert row["segments"].tolist() == [1, 1, 1, 1, 2, 2, 3, 3]
    assert row["positions"].tolist() == [0, 1, 2, 3, 0, 1, 0, 1]
    assert {name: x.dtype for name, x in row.items()} == {name: DTYPES[name] for name in TEXT}


def test_an_answer_of_only_its_end_is_trained():
    """No record holds an empty answer; tokens that do have the weight of their stop token."""
    row = example_rows(store_of([[5, 6, S]], [[0, 0, 1]]), 3).row(0)
    assert row["weights"].tolist() == [0, 1, 0]
    assert row["targets"].tolist()[1] == S


def test_a_pair_by_hand():
    store = store_of([[5, 6, 7], [5, 6, 8, 9], [4, 4], [4, 3]], [[0, 1, 1], [0, 2, 2, 2], [0, 1], [0, 2]], "pairs")
    rows = example_rows(store, 12)
    assert rows.columns == PAIRS
    row = rows.row(0)
    assert row["tokens"].tolist() == [5, 6, 7, 5, 6, 8, 9, 4, 4, 4, 3, S]
    assert row["weights"].tolist() == [1, 1, 0, -1, -1, -1, 0, 1, 0, -1, 0, 0]
    assert row["ends"].tolist() == [0, 0, 1, 0, 0, 0, -1, 0, 1, 0, -1, 0]
    assert row["segments"].tolist() == [1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 5]
    assert rows.documents_in(0) == [(0, 0, 3), (1, 3, 4), (2, 7, 2), (3, 9, 2)]
    assert rows.places(0) == [(0, 0, 3), (3, 3, 4), (7, 7, 2), (9, 9, 2)]


class Numbered:
    """A reference whose value is the token's place in the store."""

    def read(self, start, count):
        return np.arange(start, start + count, dtype=np.float32)


def test_the_reference_belongs_to_targets():
    rows = example_rows(store_of([[5, 6, 7], [8, 9]], [[0, 1, 1], [0, 1]]), 6).with_reference(Numbered())
    assert rows.columns == (*TEXT, "reference")
    assert rows.row(0)["reference"].tolist() == [1, 2, 0, 4, 0, 0]
    assert rows.num_tokens == 5


# --- packing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_each_example_once_and_whole(seed):
    """Any lengths, kinds and cuts: what the rows hold is what the store holds."""
    r = random.Random(seed)
    kind = r.choice(["conversations", "pairs"])
    each = 2 if kind == "pairs" else 1
    longest = r.choice([3, 20, 60])
    documents = [[r.randint(1, 99) for _ in range(r.randint(1, longest))] for _ in range(each * r.randint(1, 90))]
    roles = [[(1 + i % each) * r.randint(0, 1) for _ in d] for i, d in enumerate(documents)]
    total = sum(map(len, documents))
    store = store_of(documents, roles, kind, cuts=sorted(r.randint(0, total) for _ in range(r.randint(0, 3))))
    seq_len, said = r.choice([int(store.shortest), 40, 64, 600]), []
    if store.shortest > seq_len:
        with pytest.raises(ValueError, match=r"none of the .* fits a row of data"):
            example_rows(store, seq_len)
        return
    rows = example_rows(store, seq_len, say=said.append)
    left = int((store.sizes > seq_len).sum())
    assert [line.split(" of ")[0] for line in said] == ([str(left)] if left else [])
    seen = []
    for i in range(len(rows)):
        row, places = rows.row(i), rows.documents_in(i)
        assert len(places) <= each * MOST_PAIRS or each == 1
        covered = np.zeros(seq_len, bool)
        for segment, (number, at, length) in enumerate(places, start=1):
            part = slice(at, at + length)
            assert not covered[part].any()
            covered[part] = True
            assert row["tokens"][part].tolist() == documents[number]
            assert row["targets"][part].tolist()[:-1] == documents[number][1:]
            signs = [{0: 0, 1: 1, 2: -1}[role] for role in roles[number][1:]]
            assert row["weights"][part].tolist() == [*signs, 0]
            assert (row["segments"] == segment).nonzero()[0].tolist() == list(range(at, at + length))
            assert row["positions"][part].tolist() == list(range(length))
        assert not row["weights"][~covered].any()
        numbers = [number for number, _, _ in places]
        assert each == 1 or numbers == [n + k for n in numbers[::2] for k in (0, 1) if n % 2 == 0]
        seen += numbers
    kept = [i for i in range(len(documents)) if store.sizes[i // each] <= seq_len]
    assert sorted(seen) == kept


@pytest.mark.parametrize("seed", range(20))
def test_best_fit(seed):
    """As the simplest program says that does it; and no two rows could be one."""
    r = np.random.default_rng(seed)
    capacity = int(r.choice([10, 100, 1500]))
    sizes, most = r.integers(1, capacity + 1, 200), [None, 3][seed % 2]
    items, begins = pack(sizes, capacity, most=most)
    found = [items[a:b].tolist() for a, b in itertools.pairwise(begins)]
    rows: list[list[int]] = []
    for item in np.argsort(-sizes, kind="stable").tolist():
        rooms = [capacity - sum(sizes[row]) for row in rows]
        fits = [k for k, row in enumerate(rows) if rooms[k] >= sizes[item] and len(row) != most]
        (rows[min(fits, key=lambda k: rooms[k])] if fits else rows.append([]) or rows[-1]).append(item)
    assert sorted(sizes[row].sum() for row in found) == sorted(sizes[row].sum() for row in rows)
    assert sorted(i for row in found for i in row) == list(range(200))
    assert [min(row) for row in found] == sorted(min(row) for row in found)
    assert all(row == sorted(row) for row in found)
    if most is None:
        totals = sorted(sizes[row].sum() for row in found)
        assert len(totals) < 2 or totals[0] + totals[1] > capacity


# --- by a config ----------------------------------------------------------------------------------------------


def data(path, **changes):
    place = {} if path is None else {"path": str(path)}
    return cfg.Data(**place, **{"seq_len": 256, "batch_size": 4} | changes)


def opened(path, split="train", vocab_size=300, **changes):
    said: list[str] = []
    return open_rows(data(path, **changes), split, vocab_size=vocab_size, seed=0, say=said.append), said


@pytest.mark.parametrize("kind", ["conversations", "pairs"])
def test_opening_by_a_config(tmp_path, kind):
    dataset(tmp_path, kind, records_of(kind, 60), validation_fraction=0.2)
    rows, said = opened(tmp_path / "data", seq_len=400)
    assert said == []
    assert rows.columns == (PAIRS if kind == "pairs" else TEXT)
    assert (rows.seq_len, rows.vocab_size, rows.separator_id) == (400, 257, 256)
    assert rows.content == open_example_store(tmp_path / "data").content
    loaded = load_rows(rows, range(len(rows)))
    assert loaded["weights"].any(axis=1).all()
    validation, _ = opened(tmp_path / "data", "validation", seq_len=400)
    assert len(validation)
    assert validation.content != rows.content


def test_longer_ones_are_left_out_and_told(tmp_path):
    summary = dataset(tmp_path, "conversations", records_of("conversations", 60), validation_fraction=0.2)
    rows, said = opened(tmp_path / "data", seq_len=100)
    total = summary.index.examples.splits["train"].examples
    assert len(said) == 1
    assert f" of {total} conversations of {tmp_path / 'data'} (train) are longer than data.seq_len=100" in said[0]
    with pytest.raises(ValueError, match=r"none of the \d+ conversations .* fits a row of data.seq_len=8"):
        opened(tmp_path / "data", seq_len=8)
    rows, said = opened(tmp_path / "data", "validation", seq_len=8)
    assert rows is None
    assert said[0].startswith("no validation loss: no example of")


def test_what_is_refused(tmp_path):
    dataset(tmp_path, "conversations", records_of("conversations", 9), "c", validation_fraction=0)
    dataset(tmp_path, "prompts", records_of("prompts", 9), "p")
    with pytest.raises(ValueError, match=r"data.mask_documents=false: .* holds examples"):
        opened(tmp_path / "c", mask_documents=False)
    with pytest.raises(ValueError, match="vocab_size 257, beyond the model's vocab_size 256"):
        opened(tmp_path / "c", vocab_size=256)
    with pytest.raises(ValueError, match="holds prompts, which have no answers to train on"):
        opened(tmp_path / "p")
    rows, said = opened(tmp_path / "c", "validation")
    assert rows is None
    assert said[0].startswith("no validation loss: there is no validation split")


def test_token_ids_beyond_the_vocabulary(tmp_path):
    rows = example_rows(store_of([[5, 200]], [[0, 1]]), 4)
    with pytest.raises(ValueError, match="token id 200 of document 0 is beyond the tokenizer's vocab_size 100"):
        rows.row(0)


def test_a_mixture_of_conversations(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        dataset(tmp_path, "conversations", records_of("conversations", 40, seed), name, validation_fraction=0.2)
    mixture = {str(tmp_path / "a"): 1.0, str(tmp_path / "b"): 3.0}
    rows, said = opened(None, mixture=mixture, seq_len=150)
    assert [line.split("conversations of ")[1].split(" (train)")[0] for line in said] == list(mixture)
    assert rows.columns == TEXT
    first, second = (opened(path, seq_len=150)[0] for path in mixture)
    known = {row["tokens"].tobytes() for one in (first, second) for row in map(one.row, range(len(one)))}
    assert all(rows.row(i)["tokens"].tobytes() in known for i in range(50))


@pytest.mark.parametrize(
    ("kind", "template", "said"),
    [("pairs", "chatml", "holds pairs and .* conversations"), ("conversations", "qwen3", "have other templates")],
)
def test_a_mixture_is_of_one_kind_and_template(tmp_path, kind, template, said):
    dataset(tmp_path, "conversations", records_of("conversations", 9), "a")
    dataset(tmp_path, kind, records_of(kind, 9), "b", template=template)
    with pytest.raises(ValueError, match=said):
        opened(None, mixture={str(tmp_path / "a"): 1.0, str(tmp_path / "b"): 1.0})
