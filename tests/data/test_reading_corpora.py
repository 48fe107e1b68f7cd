"""Corpora as people have them: compressed, in folders with other files, with bad records, far away, in many layouts."""

import bz2
import functools
import gzip
import http.server
import json
import lzma
import os
import threading

import numpy as np
import pytest

from jaxscale.data import compressed
from jaxscale.data.prepare import prepare
from jaxscale.data.sources import jsonl_source, parquet_source, text_source
from jaxscale.data.store import open_tokenizer, open_tokens

LINES = "".join(json.dumps({"text": f"document {i} žluťoučký 🐎"}) + "\n" for i in range(40)).encode()
TEXTS = [f"document {i} žluťoučký 🐎" for i in range(40)]


def texts(dataset, split="train"):
    store, tokenizer = open_tokens(dataset, split), open_tokenizer(dataset)
    tokens = store.read(0, store.num_tokens)
    begins = np.flatnonzero(tokens == store.separator_id)
    return [tokenizer.decode(part[1:]) for part in np.split(tokens, begins[1:])]


def made(source, out, **keywords):
    keywords = {"validation_fraction": 0} | keywords
    return prepare(source, "byte", out, progress=lambda state: None, **keywords)


def zstd(content):
    """Two frames and a skippable one between them, as pzstd writes."""
    package = pytest.importorskip("zstandard")
    half = len(content) // 2
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"
    return package.compress(content[:half]) + skippable + package.compress(content[half:])


def gzip_members(content):
    return gzip.compress(content[:100]) + gzip.compress(content[100:])


FORMS = {".gz": gzip_members, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


# --- compression ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMS)
def test_compressed_beside_plain(tmp_path, suffix):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / f"b.jsonl{suffix}").write_bytes(FORMS[suffix](LINES))
    summary = made(jsonl_source([folder]), tmp_path / "out")
    assert texts(tmp_path / "out") == TEXTS * 2
    assert summary.notes == ()
    assert made(jsonl_source([folder]), tmp_path / "out").already_prepared  # by the sums of the files as they stand


@pytest.mark.parametrize("suffix", FORMS)
def test_compressed_files_cut_short(tmp_path, suffix):
    """Never half a corpus without a word: refused, or with --skip-bad the whole documents before the cut."""
    whole = FORMS[suffix](LINES)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(whole[: len(whole) - 9])
    with pytest.raises(ValueError, match=f"a.jsonl{suffix} cannot be decompressed"):
        made(jsonl_source([path]), tmp_path / "out")
    (tmp_path / "good.jsonl").write_bytes(LINES)
    summary = made(jsonl_source([tmp_path / "good.jsonl", path]), tmp_path / "out", skip_bad=1)
    assert "1 bad record was skipped" in summary.notes[0]
    found = texts(tmp_path / "out")
    assert found[len(found) - 40 :] == TEXTS
    text = tmp_path / f"t.txt{suffix}"
    text.write_bytes(whole[: len(whole) - 9])
    (tmp_path / "u.txt").write_text("whole")
    made(text_source([text, tmp_path / "u.txt"]), tmp_path / "text", skip_bad=1)
    assert texts(tmp_path / "text") == ["whole"]  # not a part of a text


def test_names_do_not_decide(tmp_path):
    """A server or a program may have decompressed a .gz, or left a compressed file its plain name."""
    (tmp_path / "a.jsonl.gz").write_bytes(LINES)
    (tmp_path / "b.jsonl").write_bytes(gzip.compress(LINES))
    made(jsonl_source([tmp_path]), tmp_path / "out")
    assert texts(tmp_path / "out") == TEXTS * 2


def test_zstd_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    with pytest.raises(ValueError, match=r"\.zst files need the package zstandard, .*; pip install zstandard"):
        made(jsonl_source([tmp_path]), tmp_path / "out")
    assert EOFError in compressed.failures()


# --- what is not read is told ---------------------------------------------------------------------------------


def test_every_file_of_a_folder_is_read_or_named(tmp_path):
    """Whatever stands in a folder: nothing is left out without a word."""
    folder, other = tmp_path / "corpus", tmp_path / "other"
    for place in (folder / "deep", folder / ".git", other):
        place.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "deep" / "b.JSONL.GZ").write_bytes(gzip.compress(LINES))
    for name in ("README.md", "c.jsonl.tar.gz", "d.zip", ".hidden.jsonl", "e.csv", "deep/f.jsonl.lz4"):
        (folder / name).write_bytes(b"x")
    (folder / "same.jsonl").symlink_to(folder / "a.jsonl")
    (folder / "linked").symlink_to(other)
    (folder / "gone.jsonl").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.jsonl")
    source = jsonl_source([folder])
    told = dict(source.unread)
    read = {file.name for file in source.files}
    everything = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    assert read == {"a.jsonl", "deep/b.JSONL.GZ"}
    assert everything - read <= set(told)
    assert told["c.jsonl.tar.gz"] == told["d.zip"] == "an archive; unpack it"
    assert told["linked"] == "a link to a directory; name it itself"
    assert told["same.jsonl"] == "the same file as a.jsonl"
    assert ".git" in told
    notes = " ".join(made(source, tmp_path / "out").notes)
    assert all(name in notes for name in told)


def test_what_is_named_is_read_or_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    (tmp_path / "b.txt").write_bytes(LINES)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"a\.zip is an archive; unpack it"):
        text_source([tmp_path / "a.zip"])
    with pytest.raises(ValueError, match=r"names no file ending in .jsonl .*b.txt is not named .jsonl"):
        jsonl_source([tmp_path])
    assert len(jsonl_source([tmp_path / "b.txt"]).files) == 1
    assert len(jsonl_source([f"{tmp_path}/*.txt"]).files) == 1
    by_pattern = text_source([f"{tmp_path}/*"])
    assert {name for name, _ in by_pattern.unread} == {"a.zip", "folder"}


# --- bad records ----------------------------------------------------------------------------------------------


def test_skip_bad_lines(tmp_path):
    bad = [b"{", b"[1]", b'{"other": 1}', b'{"text": 1}', b'{"text": "\\ud800"}']
    lines = LINES.splitlines()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines[:5], *bad, *lines[5:]]))
    source = jsonl_source([tmp_path])
    summary = made(source, tmp_path / "out", skip_bad=5)
    assert texts(tmp_path / "out") == TEXTS
    assert summary.notes[0].startswith("5 bad records were skipped (--skip-bad 5): ")
    assert all(f"a.jsonl:{number}" in summary.notes[0] for number in range(6, 11))
    for allowed, said in ((4, "a.jsonl:10.*4 bad records were skipped before it"), (0, "a.jsonl:6.*--skip-bad N")):
        with pytest.raises(ValueError, match=said):
            made(source, tmp_path / "no", skip_bad=allowed)
    with pytest.raises(ValueError, match="skip_bad -1 is negative"):
        made(source, tmp_path / "no", skip_bad=-1)
    assert not (tmp_path / "no").exists()


def test_a_text_that_is_not_utf8_is_skipped_whole(tmp_path):
    """Though what is wrong comes after pieces that could have been used."""
    (tmp_path / "a.txt").write_bytes(b"fine " * 100_000 + b"caf\xe9")
    (tmp_path / "b.txt").write_bytes(b"good")
    summary = made(text_source([tmp_path]), tmp_path / "out", skip_bad=1)
    assert texts(tmp_path / "out") == ["good"]
    assert "a.txt is not UTF-8 at byte 500003" in summary.notes[0]


# --- Parquet --------------------------------------------------------------------------------------------------


def layouts(pyarrow):
    strings = ["first text", "second žluť", None, "first text"]
    array = pyarrow.array(strings)
    yield "string", array
    for kind in ("large_string", "string_view", "binary", "large_binary", "binary_view"):
        if hasattr(pyarrow, kind):
            yield kind, array.cast(pyarrow.binary()).cast(getattr(pyarrow, kind)())
    yield "dictionary", array.dictionary_encode()
    yield "dictionary of large strings", array.cast(pyarrow.large_string()).dictionary_encode()
    yield "dictionary of bytes", array.cast(pyarrow.binary()).dictionary_encode()


def test_parquet_layouts(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    seen = []
    for name, array in layouts(pyarrow):
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(pyarrow.table({"text": array}), path)
        summary = made(parquet_source([path]), tmp_path / f"out-{name}")
        assert texts(tmp_path / f"out-{name}") == ["first text", "second žluť", "first text"], name
        assert summary.notes == ("1 documents without text were left out",)
        seen.append(name)
    assert {"string_view", "binary", "dictionary"} <= set(seen)
    for column in (pyarrow.array([1, 2]), pyarrow.array([["a"]]), pyarrow.array([1, 2]).dictionary_encode()):
        parquet.write_table(pyarrow.table({"text": column}), tmp_path / "no.parquet")
        with pytest.raises(ValueError, match=r"column 'text' is .*, not string"):
            made(parquet_source([tmp_path / "no.parquet"]), tmp_path / "no")


def test_a_damaged_parquet_file(tmp_path):
    """Its footer is whole, its pages are not."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": TEXTS * 50}), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[8:200] = bytes(192)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*a\.parquet after row 0"):
        made(parquet_source([path]), tmp_path / "out")


def test_parquet_bytes_that_are_not_utf8(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    array = pyarrow.array([b"good", b"caf\xe9", b"fine"])
    for name, column in (
        ("bytes", array),
        ("strings", pyarrow.Array.from_buffers(pyarrow.string(), 3, array.buffers())),
    ):
        parquet.write_table(pyarrow.table({"text": column}), tmp_path / f"{name}.parquet")
        source = parquet_source([tmp_path / f"{name}.parquet"])
        with pytest.raises(ValueError, match="row 1 is not UTF-8"):
            made(source, tmp_path / "no")
        made(source, tmp_path / name, skip_bad=1)
        assert texts(tmp_path / name) == ["good", "fine"]


# --- far away -------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path):
    """A folder and the URL that serves it."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_from_the_web(web, tmp_path):
    pytest.importorskip("aiohttp")
    folder, url = web
    (folder / "a b.jsonl.gz").write_bytes(gzip.compress(LINES))
    source = jsonl_source([f"{url}/a%20b.jsonl.gz?token=abc"])
    assert [file.name for file in source.files] == ["a b.jsonl.gz"]
    made(source, tmp_path / "out")
    assert texts(tmp_path / "out") == TEXTS
    assert made(source, tmp_path / "out").already_prepared
    with pytest.raises(ValueError, match=r"nothing\.jsonl: there is no such file"):
        jsonl_source([f"{url}/nothing.jsonl"])
    with pytest.raises(ValueError, match="a secret stands in the URL"):
        jsonl_source(["https://user:word@host/x"])
    with pytest.raises(ValueError, match="ftp:// is not known"):
        jsonl_source(["ftp://host/x"])


@pytest.fixture(scope="module")
def store():
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    from s3_server import Server

    server = Server()
    kept = dict(os.environ)
    os.environ.update(server.environment())
    yield server
    os.environ.clear()
    os.environ.update(kept)
    server.close()


def test_from_an_object_store(store, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "t.parquet")
    objects = {
        "corpus/a.jsonl": LINES, "corpus/deep/b.jsonl.gz": gzip.compress(LINES), "corpus/README.md": b"x",
        "corpus/.hidden.jsonl": LINES, "table/t.parquet": (tmp_path / "t.parquet").read_bytes(),
    }  # fmt: skip
    for key, body in objects.items():
        store.s3.put_object(Bucket="bucket", Key=key, Body=body)
    source = jsonl_source(["s3://bucket/corpus"])
    assert [file.name for file in source.files] == ["a.jsonl", "deep/b.jsonl.gz"]
    assert {name for name, _ in source.unread} == {"README.md", ".hidden.jsonl"}
    made(source, tmp_path / "out")
    assert texts(tmp_path / "out") == TEXTS * 2
    assert made(source, tmp_path / "out").already_prepared
    for pattern, names in (("s3://bucket/corpus/*.jsonl", ["a.jsonl"]), ("s3://bucket/corpus/a.jsonl", ["a.jsonl"])):
        assert [file.name for file in jsonl_source([pattern]).files if "hidden" not in file.name] == names
    made(parquet_source(["s3://bucket/table/"]), tmp_path / "parquet")
    assert texts(tmp_path / "parquet") == TEXTS
    with pytest.raises(ValueError, match="names no file"):
        jsonl_source(["s3://bucket/nothing"])
    with pytest.raises(ValueError, match="s3://nobody/x"):
        jsonl_source(["s3://nobody/x"])
