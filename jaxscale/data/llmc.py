"""The headers of llm.c's ``.bin`` token files. Knows nothing of how tokens are used.

A file is a header of 256 int32 (magic, version, number of tokens) and then the tokens. The magic number says the
width of a token and whose tokenizer llm.c's own scripts use with it; a file of other tokens has the same header.
"""

import glob
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

HEADER_BYTES = 256 * 4
_VOCAB_MULTIPLE = 128  # what vocabularies are padded to


class Form(NamedTuple):
    """What goes with a magic number in llm.c's dev/data/data_common.py."""

    model: str
    version: int
    dtype: Literal["uint16", "uint32"]
    separator_id: int
    vocab_size: int

    def fits(self, vocab_size: int) -> bool:
        """Whether a vocabulary is this one, padded or not."""
        return self.vocab_size <= vocab_size <= math.ceil(self.vocab_size / _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


FORMS = {
    20240520: Form("GPT-2", 1, "uint16", 50256, 50257),
    20240801: Form("Llama-3", 7, "uint32", 128000, 128256),
}


@dataclass(frozen=True)
class Header:
    magic: int
    num_tokens: int

    @property
    def form(self) -> Form:
        return FORMS[self.magic]


def matching(pattern: str | Path) -> list[Path]:
    """The files that a path or glob pattern names, in sorted order; ValueError for none."""
    paths = sorted(Path(match) for match in glob.glob(str(pattern)))
    if not paths:
        raise ValueError(f"{str(pattern)!r} matches no file; give llm.c token files, e.g. 'fineweb_train_*.bin'")
    return paths


def read_header(path: Path) -> Header:
    """The header of a file whose size is what it says; ValueError for anything else."""
    try:
        with open(path, "rb") as file:
            raw = file.read(HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; give llm.c token files") from error
    magic, version, num_tokens = struct.unpack_from("<3i", raw) if len(raw) == HEADER_BYTES else (None, 0, 0)
    if magic not in FORMS:
        known = ", ".join(map(str, FORMS))
        beginning = struct.unpack_from("<i", raw)[0] if len(raw) >= 4 else "nothing"
        raise ValueError(f"{path} is no llm.c token file: it begins with {beginning}, not {known}; give another file")
    form = FORMS[magic]
    if version != form.version:
        raise ValueError(f"{path} has version {version}, magic {magic} goes with {form.version}; make it again")
    wanted = HEADER_BYTES + num_tokens * {"uint16": 2, "uint32": 4}[form.dtype]
    if size != wanted or num_tokens < 0:
        raise ValueError(
            f"{path} has {size} bytes, its header ({num_tokens} tokens) says {wanted}; download or make it again"
        )
    return Header(magic, num_tokens)
