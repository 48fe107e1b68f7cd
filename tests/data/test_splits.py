"""What is held out for validation, by each of the ways, and what a person is told of it."""

import json

import numpy as np
import pytest

from jaxscale.data.prepare import prepare
from jaxscale.data.sources import jsonl_source, parquet_source, text_source
from jaxscale.data.store import open_tokenizer, open_tokens


def texts(dataset, split):
    store, tokenizer = open_tokens(dataset, split), open_tokenizer(dataset)
    tokens = store.read(0, store.num_tokens)
    begins = np.flatnonzero(tokens == store.separator_id)
    return [tokenizer.decode(part[1:]) for part in np.split(tokens, begins[1:])]


def made(source, out, tokenizer="byte", **keywords):
    return prepare(source, tokenizer, out, progress=lambda state: None, **keywords)


def corpus(tmp_path, sizes):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, lines in sizes.items():
        (folder / name).write_text("".join(f"line {i} of {name}\n" for i in range(lines)))
    return text_source([folder])


def test_two_files_that_come_out_swapped_are_told(tmp_path):
    """The names' hashes decide: the large file is held out."""
    names = sorted(
        (f"{i}.txt" for i in range(2)), key=lambda name: __import__("hashlib").sha256(name.encode()).digest()
    )
    source = corpus(tmp_path, {names[0]: 9000, names[1]: 1000})
    summary = made(source, tmp_path / "out", validation_fraction=0.1)
    (note,) = summary.notes
    assert note.startswith("warning: 90.")
    assert "10.0% was asked" in note
    assert "1 of 2; try --validation-tail 0.1" in note
    assert summary.index.notes == [note]


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe:300"])
@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_the_tail_of_each_document(tmp_path, tokenizer, kind):
    """Its last tenth or a little more, from a line's start; both parts together are the document."""
    documents = ["".join(f"line {i} žluť\n" for i in range(n)) for n in (200, 20_000, 1, 3000)] + ["a" * 5000, "x"]
    if kind == "text":
        for i, one in enumerate(documents):
            (tmp_path / f"{i}.txt").write_text(one)
        source = text_source([tmp_path / f"{i}.txt" for i in range(len(documents))])
    elif kind == "jsonl":
        (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in documents))
        source = jsonl_source([tmp_path / "a.jsonl"])
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": documents}), tmp_path / "a.parquet")
        source = parquet_source([tmp_path / "a.parquet"])
    summary = made(source, tmp_path / "out", tokenizer, validation_tail=0.1)
    train, validation = texts(tmp_path / "out", "train"), texts(tmp_path / "out", "validation")
    assert summary.notes == ()
    tails = iter(validation)
    for head, document in zip(train, documents, strict=True):
        tail = "" if head == document else next(tails)
        assert head + tail == document
        assert 0.1 * len(document) - 1 <= len(tail) <= 0.1 * len(document) + 20
        assert not tail or head.endswith("\n") or document.count("\n") < 2
    assert not list(tails)
    assert made(source, tmp_path / "out", tokenizer, validation_tail=0.1).already_prepared
    with pytest.raises(ValueError, match="its validation is tail, not documents"):
        made(source, tmp_path / "out", tokenizer)


def test_files_of_its_own(tmp_path):
    source = corpus(tmp_path, {"a.txt": 2000, "b.txt": 10})
    (tmp_path / "v.jsonl").write_text(json.dumps({"text": "unseen text\n" * 200}) + "\n")
    held_out = jsonl_source([tmp_path / "v.jsonl"])
    summary = made(source, tmp_path / "out", "bpe:300", validation=held_out)
    assert texts(tmp_path / "out", "validation") == ["unseen text\n" * 200]
    assert len(texts(tmp_path / "out", "train")) == 2
    assert not any("unseen" in token for token in open_tokenizer(tmp_path / "out").library.get_vocab())
    assert summary.index.validation_source.files == 1
    assert made(source, tmp_path / "out", "bpe:300", validation=held_out).already_prepared
    (tmp_path / "v.jsonl").write_text(json.dumps({"text": "another text"}) + "\n")
    with pytest.raises(ValueError, match="its text has other contents"):
        made(source, tmp_path / "out", "bpe:300", validation=jsonl_source([tmp_path / "v.jsonl"]))
    with pytest.raises(ValueError, match=r"b\.txt is among the training files too"):
        made(source, tmp_path / "no", validation=text_source([tmp_path / "corpus" / "b.txt"]))
    with pytest.raises(ValueError, match="validation by tail and by files; give one of them"):
        made(source, tmp_path / "no", validation=held_out, validation_tail=0.1)


def test_a_validation_split_shorter_than_a_row_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"note {i}"}) + "\n" for i in range(400)))
    summary = made(jsonl_source([tmp_path / "a.jsonl"]), tmp_path / "out")
    tokens = summary.index.splits["validation"].tokens
    assert tokens < 100
    assert f"the validation split has {tokens} tokens, too few for one row" in summary.notes[-1]
    assert f"data.seq_len={tokens - 1} or less" in summary.notes[-1]


def test_a_dataset_of_before_is_still_known(tmp_path):
    """An index without the newer fields is the same dataset."""
    source = corpus(tmp_path, {f"{i}.txt": 300 for i in range(30)})
    made(source, tmp_path / "out")
    path = tmp_path / "out" / "index.json"
    index = json.loads(path.read_text())
    del index["notes"], index["validation_source"], index["options"]["validation"]
    path.write_text(json.dumps(index))
    assert made(source, tmp_path / "out").already_prepared
    assert open_tokens(tmp_path / "out").num_tokens == index["splits"]["train"]["tokens"]


def test_a_character_tokenizer(tmp_path):
    """A token for each character of both splits, the separator and one for what a prompt may have besides."""
    source = corpus(tmp_path, {f"{i}.txt": 30 for i in range(9)})
    summary = made(source, tmp_path / "out", "char", validation_fraction=0.3)
    tokenizer = open_tokenizer(tmp_path / "out")
    characters = {c for split in ("train", "validation") for one in texts(tmp_path / "out", split) for c in one}
    assert tokenizer.vocab_size == len(characters) + 2
    assert summary.tokens == sum(file.size_bytes for file in source.files) + 9
    assert tokenizer.decode(tokenizer.encode("line of")) == "line of"
    assert (tokenizer.encode("l港") == tokenizer.unknown_id).tolist() == [False, True]
    with pytest.raises(ValueError, match="separator 'l' is a character of the text"):
        made(source, tmp_path / "no", "char", separator="l")
