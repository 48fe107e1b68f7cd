"""Datasets made by `prepare`, llm.c's files and tokenizer.json, each changed."""

import json
import struct
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from fuzz import mutations as mu
from fuzz.targets import Case, Files, Target
from jaxscale.data import store
from jaxscale.data.prepare import prepare
from jaxscale.data.rows import windows
from jaxscale.data.sources import text_source
from jaxscale.data.tokenizer import load_tokenizer


def read_tokens(directory: Path, verify: str) -> None:
    tokens = store.open_tokens("data", verify=verify)  # type: ignore[arg-type]
    rows = windows(tokens, 8)
    for i in {0, len(rows) - 1}:
        rows.row(i)
    store.open_tokenizer("data")


def dataset(folder: Path, tokenizer: str) -> dict[str, bytes]:
    (folder / "texts").mkdir(parents=True)
    for i in range(6):
        (folder / "texts" / f"{i}.txt").write_text(f"document {i}: one two three\n" * (i + 1), encoding="utf-8")
    prepare(
        text_source([folder / "texts"]),
        tokenizer,
        folder / "data",
        validation_fraction=0.2,
        shard_tokens=200,
        progress=lambda p: None,
    )
    return {f"data/{p.name}": p.read_bytes() for p in sorted((folder / "data").iterdir()) if p.is_file()}


@st.composite
def token_cases(draw, datasets: list[dict[str, bytes]]) -> Case:
    files: Files = dict(draw(st.sampled_from(datasets)))
    index = json.loads(files["data/index.json"])  # type: ignore[arg-type]
    kind = draw(st.sampled_from(["index", "index", "index", "index text", "names", "shard", "link", "stamp", "gone"]))
    shards = [name for name in files if name.endswith(".bin")]
    if kind == "index":
        files["data/index.json"] = draw(mu.json_text(index))
    elif kind == "index text":
        files["data/index.json"] = draw(mu.damaged(files["data/index.json"]))
    elif kind == "names":
        name = draw(st.sampled_from([*mu.STRINGS, "../../outside/train-00000.bin", ".verified.json", "index.json"]))
        index["splits"]["train"]["shards"][0]["file"] = name
        files["data/index.json"] = json.dumps(index).encode()
    elif kind == "shard":
        name = draw(st.sampled_from(shards))
        files[name] = draw(mu.damaged(files[name]))
    elif kind == "link":
        name = draw(st.sampled_from([*files, "data/.verified.json"]))
        files[name] = Path(
            draw(
                st.sampled_from(
                    [
                        "../../outside/" + Path(name).name,
                        "/etc/passwd",
                        Path(name).name,
                        "..",
                        "nowhere",
                        "../../outside/canary.json",
                    ]
                )
            )
        )
    elif kind == "stamp":
        stamp = {Path(name).name: [len(files[name]), 1, "0"] for name in shards}
        files["data/.verified.json"] = draw(mu.json_text(stamp))
    else:
        del files[draw(st.sampled_from(sorted(files)))]
    return Case(files, (draw(st.sampled_from(["always", "once", "size"])),))


def index_cases(folder: Path) -> st.SearchStrategy[Case]:
    return token_cases([dataset(folder / "byte", "byte"), dataset(folder / "bpe", "bpe:300")])


def read_llmc(directory: Path) -> None:
    tokens = store.open_llmc("*.bin")
    if tokens.num_tokens > 8:
        windows(tokens, 8).row(0)


@st.composite
def llmc(draw) -> Case:
    files: Files = {}
    for i in range(draw(st.integers(1, 2))):
        numbers = st.integers(-(2**31), 2**31 - 1) | st.sampled_from([20240520, 20240801, 1, 7, 0, -1])
        magic, dtype = draw(st.sampled_from([(20240520, "<u2"), (20240801, "<u4")]))
        count = draw(st.integers(0, 40))
        header = [magic, 1 if dtype == "<u2" else 7, count] + [0] * 253
        for _ in range(draw(st.integers(0, 2))):
            header[draw(st.integers(0, 3))] = draw(numbers)
        raw = struct.pack("<256i", *header) + np.arange(count).astype(dtype).tobytes()
        files[f"{i}.bin"] = draw(mu.damaged(raw)) if draw(st.booleans()) else raw
    return Case(files)


# --- tokenizers -------------------------------------------------------------------------------------------


def read_tokenizer(directory: Path, separator: str | None) -> None:
    tokenizer = load_tokenizer(directory / "tokenizer.json", separator=separator)
    ids = tokenizer.encode_batch(["document one", "ž 🐎 <|endoftext|>\0", ""])
    tokenizer.decode([i for found in ids for i in found] + [0, 1, 10**6])


def tokenizers_of(folder: Path) -> list[dict]:
    """A trained byte-level BPE, and small ones of the other kinds, with a normaliser, a template and a pattern."""
    bpe = json.loads(dataset(folder, "bpe:300")["data/tokenizer.json"])
    added = [
        {
            "id": 0,
            "content": "<s>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ]
    words = {"<s>": 0, "[UNK]": 1, "document": 2, "one": 3, "##e": 4}
    split = {"type": "Split", "pattern": {"Regex": "\\s+|\\w+"}, "behavior": "Isolated", "invert": False}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    normalizer = {
        "type": "Sequence",
        "normalizers": [
            {"type": "NFKC"},
            {"type": "Lowercase"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "_"},
        ],
    }
    whole = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": split,
        "post_processor": template,
        "decoder": {"type": "Fuse"},
    }
    unigram = [["<s>", 0.0], ["<unk>", 0.0], ["document", -2.5], ["o", -3.0], ["ne", -3.5]]
    models = [
        {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
        {
            "type": "WordPiece",
            "vocab": words,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        {"type": "Unigram", "vocab": unigram, "unk_id": 1, "byte_fallback": False},
    ]
    return [bpe, bpe, *(whole | {"model": model} for model in models)]


def tokenizer_cases(folder: Path) -> st.SearchStrategy[Case]:
    texts = st.sampled_from(tokenizers_of(folder)).flatmap(mu.json_text)
    separators = st.sampled_from([None, None, None, "<s>", "<|endoftext|>", "nowhere", "", "\0"])
    return st.tuples(texts, separators).map(lambda two: Case({"tokenizer.json": two[0]}, (two[1],)))


TARGETS = [
    Target("dataset", 1600, index_cases, read_tokens, ("data/.verified.json",)),
    Target("llmc", 300, lambda folder: llmc(), read_llmc),
    Target("tokenizer", 1100, tokenizer_cases, read_tokenizer),
]
