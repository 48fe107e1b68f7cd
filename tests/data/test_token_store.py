"""Tokens on disk are read exactly, and a dataset that is not what its index says is refused."""

import json
import os
import shutil

import numpy as np
import pytest

from jaxscale.data.index import read_index
from jaxscale.data.store import STAMP_NAME, TokenStore, open_llmc, open_tokenizer, open_tokens


def edit_index(dataset, change):
    path = dataset / "index.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def flip_byte(path, *, keep_mtime=False):
    state = path.stat()
    raw = bytearray(path.read_bytes())
    raw[7] ^= 1
    path.write_bytes(raw)
    later = 0 if keep_mtime else 1_000_000
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + later))


def test_read_across_shards():
    whole = np.arange(100, dtype=np.int32)
    store = TokenStore("x", tuple(np.split(whole.astype(np.uint16), [7, 8, 50])), 100, 0)
    for start in range(0, 100, 3):
        for count in (0, 1, 2, 60):
            if start + count <= 100:
                got = store.read(start, count)
                assert got.dtype == np.int32
                np.testing.assert_array_equal(got, whole[start : start + count])
    with pytest.raises(IndexError):
        store.read(90, 11)


def test_open(dataset):
    store = open_tokens(dataset)
    index = read_index(dataset)
    assert store.num_tokens == index.splits["train"].tokens
    assert (store.vocab_size, store.separator_id, store.fingerprint) == (257, 256, index.tokenizer.fingerprint)
    assert len(store.shards) == -(-store.num_tokens // 500)
    assert open_tokenizer(dataset).fingerprint == store.fingerprint
    with pytest.raises(ValueError, match="no split 'test'"):
        open_tokens(dataset, "test")
    with pytest.raises(ValueError, match="not one of always"):
        open_tokens(dataset, verify="never")


def test_truncated_and_missing_shards(dataset):
    shard = dataset / "train-00001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"train-00001.bin has 998 bytes, the index says 1000; prepare it again"):
        open_tokens(dataset, verify="size")
    shard.unlink()
    with pytest.raises(ValueError, match=r"train-00001.bin is missing"):
        open_tokens(dataset)
    assert open_tokens(dataset, "validation").num_tokens


def test_edits_are_found(dataset):
    open_tokens(dataset)
    assert (dataset / STAMP_NAME).exists()
    flip_byte(dataset / "train-00000.bin", keep_mtime=True)
    open_tokens(dataset, verify="once")  # the stamp says it has been seen: `once` cannot know
    with pytest.raises(ValueError, match="has changed since it was made"):
        open_tokens(dataset, verify="always")
    flip_byte(dataset / "train-00000.bin")
    open_tokens(dataset, verify="once")
    flip_byte(dataset / "train-00000.bin")
    with pytest.raises(ValueError, match="has changed since it was made"):
        open_tokens(dataset, verify="once")
    assert open_tokens(dataset, verify="size").num_tokens


def test_a_dataset_that_cannot_be_stamped(dataset, monkeypatch):
    def refuse(*arguments):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    assert open_tokens(dataset).num_tokens
    assert not list(dataset.glob(f"*{STAMP_NAME}*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=2), "version 2, this jaxscale reads version 1"),
        (lambda c: c.update(format="other"), "not an index of format"),
        (lambda c: c.pop("dtype"), "damaged: dtype: Field required"),
        (lambda c: c["splits"]["train"].update(tokens=5), "tokens is not the sum"),
        (lambda c: c["splits"]["train"]["shards"][0].update(bytes=3), "bytes is not tokens"),
        (lambda c: c["splits"]["train"]["shards"][0].update(file="../dataset/train-00000.bin"), "damaged: .*file"),
        (lambda c: c["splits"]["train"]["shards"][0].update(file="/etc/passwd"), "damaged: .*file.*/etc/passwd"),
        (lambda c: c["splits"]["train"]["shards"][0].update(file=".."), "damaged: .*file"),
        (lambda c: c["tokenizer"].update(separator_id=257), "separator_id is not below"),
    ],
)
def test_tampered_index(dataset, change, message):
    edit_index(dataset, change)
    with pytest.raises(ValueError, match=message):
        open_tokens(dataset)


def test_unreadable_index(dataset, tmp_path):
    (dataset / "index.json").write_text("{")
    with pytest.raises(ValueError, match="unreadable"):
        open_tokens(dataset)
    with pytest.raises(ValueError, match="no prepared dataset"):
        open_tokens(tmp_path / "absent")
    shutil.rmtree(dataset)


def test_another_tokenizer_file(dataset):
    edit_index(dataset, lambda c: c["tokenizer"].update(fingerprint="0" * 64))
    with pytest.raises(ValueError, match="not the tokenizer that made these tokens"):
        open_tokenizer(dataset)


def write_llmc(path, tokens, *, magic=20240520, version=1, dtype="<u2", count=None):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + np.asarray(tokens, dtype).tobytes())


def test_llmc(tmp_path):
    write_llmc(tmp_path / "t_000001.bin", [50256, 1, 2, 3])
    write_llmc(tmp_path / "t_000002.bin", [50256, 4, 5])
    store = open_llmc(tmp_path / "t_*.bin")
    assert store.read(0, 7).tolist() == [50256, 1, 2, 3, 50256, 4, 5]
    assert (store.num_tokens, store.vocab_size, store.separator_id, store.fingerprint) == (7, 50257, 50256, None)
    assert open_llmc(tmp_path / "t_000001.bin", vocab_size=50304).vocab_size == 50304
    write_llmc(tmp_path / "llama.bin", [128000, 70000], magic=20240801, version=7, dtype="<u4")
    llama = open_llmc(tmp_path / "llama.bin")
    assert llama.read(0, 2).tolist() == [128000, 70000]
    assert llama.vocab_size == 128256
    with pytest.raises(ValueError, match="files of one tokenizer"):
        open_llmc(tmp_path / "*.bin")


def test_llmc_refusals(tmp_path):
    path = tmp_path / "x.bin"
    for keywords, message in (
        ({"count": 9}, "has 1030 bytes, its header .9 tokens. says 1042"),
        ({"version": 3}, "version 3"),
        ({"magic": 7}, "no llm.c token file"),
    ):
        write_llmc(path, [1, 2, 3], **keywords)
        with pytest.raises(ValueError, match=message):
            open_llmc(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="begins with nothing"):
        open_llmc(path)
    with pytest.raises(ValueError, match="matches no file"):
        open_llmc(tmp_path / "absent*.bin")


@pytest.mark.parametrize("name", ["train-00000.bin", "index.json"])
def test_a_file_that_a_link_leads_out_of_the_dataset(dataset, tmp_path, name):
    shutil.move(dataset / name, tmp_path / "elsewhere")
    (dataset / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{name} leads out of .*; copy the file into it"):
        open_tokens(dataset)


def test_links_within_a_dataset_and_to_it_are_followed(dataset, tmp_path):
    (dataset / "train-00000.bin").rename(dataset / "kept.bin")
    (dataset / "train-00000.bin").symlink_to("kept.bin")
    (tmp_path / "link").symlink_to(dataset)
    assert open_tokens(tmp_path / "link").num_tokens > 0


def test_a_stamp_is_never_written_through_a_link(dataset, tmp_path):
    (tmp_path / "precious").write_text("as it was")
    (dataset / STAMP_NAME).symlink_to(tmp_path / "precious")
    assert open_tokens(dataset).num_tokens > 0
    assert (tmp_path / "precious").read_text() == "as it was"


@pytest.mark.parametrize(
    "content", ["[" * 5000, '{"format": "jaxscale.tokens", "version": ' + "[" * 200 + "]" * 200 + "}"]
)
def test_an_index_that_is_nested_too_deep(dataset, content):
    (dataset / "index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index.json is unreadable"):
        open_tokens(dataset)
