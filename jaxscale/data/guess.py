"""What a path most likely holds: a prepared dataset, or a corpus of one kind, and the tokenizer that suits its size."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from jaxscale.data.compressed import without_compression
from jaxscale.data.files import find
from jaxscale.data.index import INDEX_NAME, read_index
from jaxscale.data.sources import NAMED

KINDS = {suffix: kind for kind, suffixes in NAMED.items() for suffix in suffixes}  # anything else is text
FEW_FILES = 100
EXPANDS = 4.0  # bytes of text in a byte of a compressed file or of Parquet, about
TOKENIZERS = (  # up to so many bytes of text: the tokenizer, its vocabulary, bytes of English in a token, about
    (5e7, "byte", 257, 1.0),
    (1e9, "bpe:8192", 8192, 3.5),
    (float("inf"), "bpe:32768", 32768, 4.3),
)


@dataclass(frozen=True)
class Corpus:
    """What would be trained on. `tokens` and `vocab_size` are estimates unless `prepared`.

    Attributes:
        options: of `data prepare`, where it is not prepared.
    """

    tokens: float
    vocab_size: int
    prepared: bool
    options: tuple[str, ...] = ()


def guess_corpus(path: str) -> Corpus:
    """The dataset at `path`, or what its files most likely are, by names and sizes alone.

    Raises:
        ValueError: nothing there that can be read, or a dataset of examples rather than of text.
    """
    if (Path(path) / INDEX_NAME).exists():
        index = read_index(Path(path))
        if index.examples is not None:
            raise ValueError(f"{path} holds {index.examples.kind}; docs/objectives.md has run files for them")
        return Corpus(index.splits["train"].tokens, index.tokenizer.vocab_size, prepared=True)
    sizes: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for file in find([path]).files:
        name = without_compression(file.name)
        kind = KINDS.get(Path(name).suffix, "text")
        packed = kind == "parquet" or name != file.name.lower()
        files[kind] += 1
        sizes[kind] += int(file.size_bytes * (EXPANDS if packed else 1))
    kind, size = sizes.most_common(1)[0]
    if not size:
        raise ValueError(f"{path} holds no text; give a file, a folder, or a dataset of `jaxscale data prepare`")
    _, tokenizer, vocab_size, each = next(row for row in TOKENIZERS if size <= row[0])
    options: tuple[str, ...] = (f"--{kind}", path, "--tokenizer", tokenizer)
    if kind == "text" and files[kind] < FEW_FILES:  # a file is a document: a share of so few would be none, or all
        options += ("--validation-tail", "0.05")
    return Corpus(size / each, vocab_size, prepared=False, options=options)
