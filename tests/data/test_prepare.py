"""A prepared dataset holds every document once, appears whole or not at all, and never grows in memory."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jaxscale.data.prepare import prepare
from jaxscale.data.sources import jsonl_source, parquet_source, stdlib_source, text_source
from jaxscale.data.split import choose_holdout, name_hash
from jaxscale.data.store import open_tokenizer, open_tokens

REPOSITORY = Path(__file__).parents[2]


def read_documents(dataset, split):
    """The texts of a split, as its tokenizer spells them."""
    store = open_tokens(dataset, split)
    tokens = store.read(0, store.num_tokens)
    begins = np.flatnonzero(tokens == store.separator_id)
    assert begins[0] == 0
    return [open_tokenizer(dataset).decode(part[1:]) for part in np.split(tokens, begins[1:])]


def texts(corpus):
    return sorted(path.read_bytes().decode() for path in corpus.rglob("*.txt"))


def run_python(code, *arguments, **keywords):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=environment, **keywords)


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300"])
def test_every_document_once(corpus, tmp_path, tokenizer):
    out = tmp_path / "out"
    summary = prepare(text_source([corpus]), tokenizer, out, validation_fraction=0.2, shard_tokens=100)
    train, validation = read_documents(out, "train"), read_documents(out, "validation")
    assert sorted(train + validation) == texts(corpus)
    assert summary.documents == 12
    assert len(validation) == summary.index.splits["validation"].documents > 0
    assert summary.tokens == sum(open_tokens(out, split).num_tokens for split in ("train", "validation"))
    assert summary.shards["train"] > 1
    assert (out / "tokenizer.json").exists() == (tokenizer != "byte")
    assert not list(tmp_path.glob(".out*"))


def test_split_is_by_name(corpus, tmp_path):
    prepare(text_source([corpus]), "byte", tmp_path / "a", validation_fraction=0.3)
    moved = corpus.rename(tmp_path / "moved")
    (moved / "zz.txt").write_text("one more")
    prepare(text_source([moved]), "byte", tmp_path / "b", validation_fraction=0.3)
    before, after = (set(read_documents(tmp_path / name, "validation")) for name in "ab")
    assert before <= after <= before | {"one more"}
    # Files, directories and patterns, given in any order and twice, are the same files.
    assert text_source([moved / "zz.txt", moved]).files[0] == text_source([moved]).files[0]
    assert len(text_source([f"{moved}/**/*.txt", moved, moved / "zz.txt"]).files) == 13


def test_a_small_corpus_still_has_both_splits(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 5)
    source = text_source(sorted(tmp_path.glob("*.txt")))
    for fraction, expected in ((1e-9, 1), (0.999, 2)):
        summary = prepare(source, "byte", tmp_path / f"out{expected}", validation_fraction=fraction)
        assert summary.index.splits["validation"].documents == expected
    alone = prepare(text_source([tmp_path / "a.txt"]), "byte", tmp_path / "alone")
    assert alone.shards == {"train": 1, "validation": 0}
    assert alone.notes == ("no validation split: there is only one document",)
    with pytest.raises(ValueError, match="no validation tokens"):
        open_tokens(tmp_path / "alone", "validation")
    assert not choose_holdout(iter([]), 0.0)("anything")
    assert name_hash("a") == pytest.approx(0.792, abs=1e-3)


def test_jsonl(tmp_path):
    path = tmp_path / "lines.jsonl"
    lines = [{"body": f"text {i}\n\u2028"} for i in range(6)]
    path.write_text("\n\n".join(map(json.dumps, [*lines, {"body": ""}, {"body": None}])), encoding="utf-8")
    summary = prepare(jsonl_source([path], field="body"), "byte", tmp_path / "out", validation_fraction=0.5)
    found = read_documents(tmp_path / "out", "train") + read_documents(tmp_path / "out", "validation")
    assert sorted(found) == [line["body"] for line in lines]
    assert summary.notes[0] == "2 documents without text were left out"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "bad.jsonl:2 is not JSON"),
        ("[1]", "bad.jsonl:2 is a JSON list"),
        ('{"other": 1}', "bad.jsonl:2 has no field 'text', only 'other'"),
        ('{"text": 1}', "bad.jsonl:2: field 'text' is a int"),
        ('{"text": "\\ud800"}', "bad.jsonl:2: field 'text' holds half a surrogate"),
    ],
)
@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300"])
def test_bad_jsonl_lines(tmp_path, line, message, tokenizer):
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        prepare(jsonl_source([tmp_path / "bad.jsonl"]), tokenizer, tmp_path / "out", validation_fraction=0)
    assert not [path for path in tmp_path.iterdir() if path.name != "bad.jsonl"]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [f"row {i}" for i in range(600)]
    table = pyarrow.table({"body": [*rows, None], "n": range(601)})
    parquet.write_table(table, tmp_path / "t.parquet")
    source = parquet_source([tmp_path], column="body")
    prepare(source, "byte", tmp_path / "out", validation_fraction=0.1)
    found = read_documents(tmp_path / "out", "train") + read_documents(tmp_path / "out", "validation")
    assert sorted(found) == sorted(rows)
    for column, message in (("text", "no column 'text', only body, n"), ("n", "not string")):
        with pytest.raises(ValueError, match=message):
            prepare(parquet_source([tmp_path / "t.parquet"], column=column), "byte", tmp_path / "no")


def test_stdlib(tmp_path):
    root = tmp_path / "python3"
    for name in ("a.py", "pkg/b.py", "pkg/empty.py", "test/c.py", "site-packages/d.py", "pkg/tests/e.py", "f.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("" if "empty" in name else f"# {name}\n")
    (root / "latin.py").write_bytes(b"# \xe9\n")
    summary = prepare(stdlib_source(root), "byte", tmp_path / "out", validation_fraction=0.0)
    assert read_documents(tmp_path / "out", "train") == ["# a.py\n", "# pkg/b.py\n"]
    assert summary.notes == ("1 files were skipped: not UTF-8", "1 documents without text were left out")
    names = {file.name for file in stdlib_source().files}
    assert {"ast.py", "json/decoder.py"} <= names
    assert not any(name.startswith(("test/", "site-packages/", "idlelib/")) for name in names)


def test_long_texts_are_cut_without_a_trace(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxscale.data.pieces.PIECE_CHARACTERS", 100)
    text = "the cat 🐎 sat on\n\n the mat,  twice;\nžluťoučký kůň\n" * 60 + "x" * 300
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": text}))
    for source in (text_source([tmp_path / "long.txt"]), jsonl_source([tmp_path / "long.jsonl"])):
        summary = prepare(source, "bpe:300", tmp_path / source.kind)
        assert summary.documents == 1
        assert read_documents(tmp_path / source.kind, "train") == [text]
        store = open_tokens(tmp_path / source.kind)
        body = text[:-300]  # the end has no place to cut that leaves tokens as they are
        whole = open_tokenizer(tmp_path / source.kind).encode(body)
        np.testing.assert_array_equal(store.read(1, len(whole)), whole)


def test_memory_is_flat(tmp_path):
    with open(tmp_path / "big.txt", "w") as file:
        for i in range(30):
            file.write(f"{i} all work and no play makes jack a dull boy\n" * 22000)
    # tracemalloc sees Python's and numpy's memory; a process's peak RSS would include its parent's on Linux.
    tracemalloc.start()
    try:
        summary = prepare(text_source([tmp_path / "big.txt"]), "byte", tmp_path / "out")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert summary.tokens == (tmp_path / "big.txt").stat().st_size + 1 > 28e6
    assert peak_bytes < 24 * 2**20, f"{peak_bytes / 2**20:.1f} MiB"


SLOW_PREPARE = """if True:
    import sys, time
    from jaxscale.data.prepare import prepare
    from jaxscale.data.sources import text_source
    try:
        prepare(text_source([sys.argv[1]]), "byte", sys.argv[2], progress=lambda p: time.sleep(60))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_crash_leaves_no_dataset(corpus, tmp_path, how):
    out = tmp_path / "out"
    with run_python(SLOW_PREPARE, corpus, out, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 20
        while not list(tmp_path.glob(".out.partial-*/train-*.bin")) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        process.send_signal(how)
        assert process.stdout.read() == (b"interrupted\n" if how == signal.SIGINT else b"")
    assert not out.exists()
    assert bool(list(tmp_path.glob(".out.partial-*"))) == (how == signal.SIGKILL)
    prepare(text_source([corpus]), "byte", out)
    assert [path.name for path in tmp_path.glob("*out*")] == ["out"]


def test_existing_output(corpus, tmp_path):
    out, source = tmp_path / "out", text_source([corpus])
    out.mkdir()  # an empty directory is no obstacle
    first = prepare(source, "byte", out)
    assert not first.already_prepared
    again = prepare(source, "byte", out)
    assert again.already_prepared
    assert again.index == first.index
    for changed, keywords in (
        ("tokenizer", {"tokenizer": "bpe:300"}),
        ("validation fraction", {"validation_fraction": 0.5}),
        ("bytes", {"source": text_source([*corpus.glob("*.txt")])}),
    ):
        with pytest.raises(ValueError, match=f"already holds another dataset: .*{changed}|number of files"):
            prepare(**({"source": source, "tokenizer": "byte", "out": out} | keywords))
    path = source.files[0].path
    path.write_bytes(path.read_bytes().replace(b"d", b"D"))
    with pytest.raises(ValueError, match="other contents"):
        prepare(source, "byte", out)
    replaced = prepare(source, "bpe:300", out, overwrite=True)
    assert open_tokens(out).fingerprint == replaced.index.tokenizer.fingerprint != first.index.tokenizer.fingerprint
    bpe_again = prepare(source, "bpe:300", out)
    assert bpe_again.already_prepared
    assert not list(tmp_path.glob(".out*"))


def test_overwrite_keeps_its_hands_off(corpus, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not a whole dataset"):
        prepare(text_source([corpus]), "byte", home)
    with pytest.raises(ValueError, match=r"'thesis.tex', which .* did not write"):
        prepare(text_source([corpus]), "byte", home, overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        prepare(text_source([corpus]), "byte", home / "thesis.tex", overwrite=True)
    with pytest.raises(ValueError, match="lies inside the output"):
        prepare(text_source([corpus]), "byte", tmp_path)


def test_refusals(tmp_path):
    empty, wrong = tmp_path / "empty.txt", tmp_path / "wrong.txt"
    empty.touch()
    wrong.write_bytes(b"fine " * 300_000 + b"caf\xe9")
    with pytest.raises(ValueError, match="no text in 1 files"):
        prepare(text_source([empty]), "byte", tmp_path / "out")
    with pytest.raises(ValueError, match=r"wrong.txt is not UTF-8 at byte 1500003"):
        prepare(text_source([wrong]), "byte", tmp_path / "out")
    with pytest.raises(ValueError, match="names no file"):
        text_source([tmp_path / "absent*"])
    with pytest.raises(ValueError, match="cannot write"):
        prepare(text_source([wrong]), "byte", empty / "out")
    for keywords, message in (
        ({"validation_fraction": 1.0}, r"not in \[0, 1\)"),
        ({"shard_tokens": 0}, "not positive"),
        ({"tokenizer": "bpe:12"}, "try bpe:4096"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(**({"source": text_source([wrong]), "tokenizer": "byte", "out": tmp_path / "out"} | keywords))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "wrong.txt"]
