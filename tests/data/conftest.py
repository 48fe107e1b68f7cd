"""Real files to prepare: a few small documents with awkward text."""

from pathlib import Path

import pytest

from jaxscale.data.prepare import prepare
from jaxscale.data.sources import text_source

TEXTS = {f"d{i:02d}.txt": f"document {i}: žluťoučký kůň 🐎\n" * (i + 1) for i in range(12)}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A directory of twelve text files."""
    directory = tmp_path / "corpus"
    (directory / "deep").mkdir(parents=True)
    for i, (name, text) in enumerate(TEXTS.items()):
        place = directory / "deep" if i % 3 == 0 else directory
        (place / name).write_bytes(text.encode())
    return directory


@pytest.fixture
def dataset(corpus: Path, tmp_path: Path) -> Path:
    """The corpus as byte tokens in shards of 500."""
    prepare(text_source([corpus]), "byte", tmp_path / "dataset", validation_fraction=0.2, shard_tokens=500)
    return tmp_path / "dataset"


@pytest.fixture
def golden_tokenizer() -> str:
    """A small tokenizer.json with the special tokens of the templates."""
    return (Path(__file__).parent / "templates" / "tokenizer.json").read_text()
