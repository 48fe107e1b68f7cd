"""After a preparation every document decodes to its source, or the preparation says that it does not.

The sweep over tokenizers of every shape, long documents and odd characters; what a whole text encodes to decides.
"""

import gzip
import json
import re

import numpy as np
import pytest
from tokenizer_kinds import LOSSLESS, LOSSY, text

from jaxscale.data import pieces, progress
from jaxscale.data.prepare import prepare
from jaxscale.data.sources import jsonl_source, text_source
from jaxscale.data.store import open_tokenizer, open_tokens
from jaxscale.data.tokenizer import load_tokenizer

SILENT = {"progress": lambda state: None}


def stored(dataset, split="train"):
    """The ids of each document, without separators."""
    store = open_tokens(dataset, split)
    tokens = store.read(0, store.num_tokens)
    begins = np.flatnonzero(tokens == store.separator_id)
    return [part[1:] for part in np.split(tokens, begins[1:])]


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": one}) + "\n" for one in texts))
    return jsonl_source([path])


@pytest.fixture(params=[*LOSSLESS, "byte", "char", "bpe:400"])
def lossless(request, tmp_path):
    """A tokenizer's name or file."""
    if request.param not in LOSSLESS:
        return request.param
    path = tmp_path / "their.json"
    path.write_text(LOSSLESS[request.param]())
    return path


def test_documents_decode_to_their_source(lossless, tmp_path, monkeypatch):
    """Cut in pieces of 900 characters, so that each kind of place is cut at."""
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 900)
    texts = [text(seed, 200 if seed % 3 else 9000) for seed in range(12)] + ["x", "x ", "\n", "a" * 5000, "灯り" * 2000]
    summary = prepare(
        write_jsonl(tmp_path / "a.jsonl", texts), lossless, tmp_path / "out", validation_fraction=0, **SILENT
    )
    assert not [note for note in summary.notes if "warning" in note]
    tokenizer = open_tokenizer(tmp_path / "out")
    for source, ids in zip(texts, stored(tmp_path / "out"), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(source), source[:40])
        assert tokenizer.decode(ids) == source
        assert tokenizer.separator_id not in ids


def test_a_document_beyond_the_real_cut(lossless, tmp_path):
    """Plain text, which its file holds compressed."""
    source = text(99, 150_000, odd=False)
    (tmp_path / "long.txt.gz").write_bytes(gzip.compress(source.encode()))
    prepare(text_source([tmp_path]) if lossless in ("byte", "char", "bpe:400") else
            text_source([tmp_path / "long.txt.gz"]), lossless, tmp_path / "out", **SILENT)  # fmt: skip
    (ids,) = stored(tmp_path / "out")
    tokenizer = open_tokenizer(tmp_path / "out")
    np.testing.assert_array_equal(ids, tokenizer.encode(source))
    assert tokenizer.decode(ids) == source


def test_long_documents_are_cut_at_all(tmp_path, monkeypatch):
    """Every kind of tokenizer finds places to cut ordinary text: no document is held whole."""
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 900)
    source = text(5, 9000, odd=False)
    for make in [*LOSSLESS.values(), *(make for make, _ in LOSSY.values())]:
        (tmp_path / "t.json").write_text(make())
        tokenizer = load_tokenizer(tmp_path / "t.json")
        found = list(pieces.cut_pieces(iter([source]), tokenizer.unchanged_by_cut))
        assert "".join(piece.text for piece in found) == source
        assert len(found) >= 9, make


@pytest.mark.parametrize("kind", LOSSY)
def test_what_a_tokenizer_loses_is_told(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_CHARACTERS", 900)
    make, said = LOSSY[kind]
    (tmp_path / "t.json").write_text(make())
    texts = [" " * (seed % 2) + "S" + text(seed, 3000) + "\n" for seed in range(4)]
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    summary = prepare(source, tmp_path / "t.json", tmp_path / "out", validation_fraction=0, **SILENT)
    assert any(re.search(said, note) for note in summary.notes), summary.notes
    assert summary.index.notes == list(summary.notes)
    tokenizer = open_tokenizer(tmp_path / "out")
    for one, ids in zip(texts, stored(tmp_path / "out"), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(one))


def test_counts_of_what_is_lost(tmp_path):
    (tmp_path / "t.json").write_text(LOSSY["whitespace"][0]())
    source = write_jsonl(tmp_path / "a.jsonl", ["rope 港の灯 42", "wind Ω"])
    summary = prepare(source, tmp_path / "t.json", tmp_path / "out", validation_fraction=0, **SILENT)
    assert summary.notes[0].startswith("warning: 6 of 17 characters (35.29%) were dropped")
    (tmp_path / "w.json").write_text(LOSSY["word level"][0]())
    summary = prepare(source, tmp_path / "w.json", tmp_path / "w", validation_fraction=0, **SILENT)
    assert summary.notes[0].startswith("warning: 3 of 5 tokens (60.00%) are the unknown token")


def test_text_that_spells_a_special_token(tmp_path):
    """In each kind of file it becomes ordinary tokens, which decode to it."""
    for name, make in LOSSLESS.items():
        (tmp_path / "t.json").write_text(make())
        tokenizer = load_tokenizer(tmp_path / "t.json")
        special = {
            token.content: i for i, token in tokenizer.library.get_added_tokens_decoder().items() if token.special
        }
        for spelled, token_id in special.items():
            source = f"text with {spelled} in it"
            ids = tokenizer.encode(source)
            assert token_id not in ids, (name, spelled)
            assert tokenizer.decode(ids) == source


def test_a_separator_that_is_text_is_skipped(tmp_path):
    """Where a user's separator is a character of the text, a document with it is bad: refused, or left out."""
    (tmp_path / "t.json").write_text(LOSSLESS["byte level"]())
    source = write_jsonl(tmp_path / "a.jsonl", ["good", "bad ~ text", "fine"])
    keywords = {"validation_fraction": 0, "separator": "~"} | SILENT
    with pytest.raises(ValueError, match=r"a.jsonl:2 contains the separator '~'.*--skip-bad N"):
        prepare(source, tmp_path / "t.json", tmp_path / "out", **keywords)
    summary = prepare(source, tmp_path / "t.json", tmp_path / "out", skip_bad=1, **keywords)
    assert summary.documents == 2
    assert "1 bad record was skipped" in summary.notes[0]


def test_a_bpe_learns_from_whole_texts(tmp_path):
    """What stands after a newline is among its tokens, which single lines never show."""
    code = "\n\n\n".join(f"def f{i}(x):\n    if x:\n        return {i}\n\n    return x" for i in range(300))
    prepare(write_jsonl(tmp_path / "a.jsonl", [code]), "bpe:400", tmp_path / "out", **SILENT)
    vocabulary = open_tokenizer(tmp_path / "out").library.get_vocab()
    assert "ĊĊ" in vocabulary
    assert "ĊĠĠĠ" in vocabulary


def test_progress_without_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0)
    prepare(write_jsonl(tmp_path / "a.jsonl", [text(1, 4000)] * 3), "byte", tmp_path / "out")
    err = capsys.readouterr().err
    assert "tokenizing: " in err
    assert "(100%), 3 documents, " in err
    assert "0:00:00 left" in err
