"""Tokenizers: raw bytes, a Hugging Face ``tokenizer.json``, or a byte-level BPE trained here.

The convention everywhere in this package (llm.c's): one separator token stands at the START of every
document. It is what generation begins from, and predicting it means "the document ends here".
``encode`` never adds it and never returns it for ordinary text.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from jaxscale.data.file_tokenizer import FileTokenizer, told_of
from jaxscale.data.pieces import Piece
from jaxscale.data.spelled import hide_special_tokens, without_spelled_bytes
from jaxscale.process.quiet import quiet

if TYPE_CHECKING:
    import tokenizers

BYTE_SEPARATOR_ID = 256
DEFAULT_SEPARATOR = "<|endoftext|>"
# Which special token separates documents when the user names none and the file's template puts none before a text:
# end-of-text tokens first (what GPT-2, GPT-NeoX, Qwen and T5 files hold), then begin-of-text ones.
SEPARATOR_PREFERENCE = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|begin_of_text|>",
    "<s>",
    "<bos>",
    "[SEP]",
)


class Tokenizer(Protocol):
    """What the rest of the package needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """The highest token id + 1, added tokens included."""

    @property
    def separator_id(self) -> int:
        """The token that stands at the start of every document."""

    @property
    def separator(self) -> str | None:
        """The separator as the tokenizer file spells it; None where it has no spelling."""

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of everything that decides which ids a text becomes."""

    def encode(self, text: str) -> np.ndarray:
        """The ids of ``text``, int32[n], without a separator."""

    @property
    def lossless(self) -> bool:
        """Whether every text is known to decode to itself."""

    @property
    def unknown_id(self) -> int | None:
        """The token that stands for what the vocabulary lacks; None where there is none."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``encode`` of each text, in parallel where the library can."""

    def encode_rendered_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of texts in which ``special_tokens`` are spelled, as a chat template does; none is added."""

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """What ``encode_rendered_batch`` takes for special tokens; bytes spell their separator <|endoftext|>."""

    def id_of(self, token: str) -> int | None:
        """The id of a token, as it is spelled."""

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        """The ids of each piece as they stand in its whole document, in parallel where the library can."""

    def unchanged_by_cut(self, before: str, after: str) -> bool:
        """Whether the ids of two texts that follow each other are those of both as one."""

    def says(self, character: str) -> bool:
        """Whether a text with this character has a token for it, if only the unknown one."""

    def is_unknown(self, character: str) -> bool:
        """Whether this character alone becomes the unknown token."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; separators and ids beyond the vocabulary are dropped."""

    def save(self, directory: Path) -> Path | None:
        """Write ``tokenizer.json`` into ``directory``; None for a tokenizer that needs no file."""


@dataclass(frozen=True)
class ByteTokenizer:
    """Token ids 0..255 are the UTF-8 bytes; 256 separates documents."""

    vocab_size: int = 257
    separator_id: int = BYTE_SEPARATOR_ID
    separator: str | None = None
    fingerprint: str = hashlib.sha256(b"jaxscale byte tokenizer, version 1").hexdigest()
    lossless: bool = True
    unknown_id: int | None = None
    special_tokens: tuple[str, ...] = (DEFAULT_SEPARATOR,)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def encode_rendered_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode_rendered(text) for text in texts]

    def _encode_rendered(self, text: str) -> np.ndarray:
        first, *rest = map(self.encode, text.split(DEFAULT_SEPARATOR))
        separator = np.array([self.separator_id], np.int32)
        return np.concatenate([first, *(part for ids in rest for part in (separator, ids))])

    def id_of(self, token: str) -> int | None:
        return self.separator_id if token == DEFAULT_SEPARATOR else None

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        return [self.encode(piece.text) for piece in pieces]

    def unchanged_by_cut(self, before: str, after: str) -> bool:
        return True

    def says(self, character: str) -> bool:
        return True

    def is_unknown(self, character: str) -> bool:
        return False

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in map(int, ids) if 0 <= i < 256).decode("utf-8", errors="replace")

    def save(self, directory: Path) -> Path | None:
        return None


def load_tokenizer(spec: str | Path, *, separator: str | None = None) -> Tokenizer:
    """The tokenizer that ``spec`` names: ``byte``, or the path of a Hugging Face ``tokenizer.json``.

    Args:
        spec: ``byte`` or a path.
        separator: the token that separates documents, as the file spells it. None picks the one that the file's
            post-processor puts before a text, or the first of ``SEPARATOR_PREFERENCE`` among its added tokens.

    Raises:
        ValueError: no such file, not a tokenizer file, or no separator found in it.
    """
    if str(spec) == "byte":
        if separator is not None:
            raise ValueError(
                f"separator {separator!r} does not go with the byte tokenizer, whose separator is always id "
                f"{BYTE_SEPARATOR_ID}; leave out --separator"
            )
        return ByteTokenizer()
    path = Path(spec)
    if not path.is_file():
        raise ValueError(
            f"tokenizer {str(spec)!r} is neither `byte` nor a file; give `byte` or the path of a tokenizer.json "
            "(`bpe:N` is for `jaxscale data prepare`, which trains one and leaves tokenizer.json in the dataset)"
        )
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read tokenizer {path}: {error}; give a readable tokenizer.json") from error
    return _from_content(content, separator, where=str(path))


def train_bpe(texts: Iterator[str], vocab_size: int, *, separator: str = DEFAULT_SEPARATOR) -> Tokenizer:
    """Train a byte-level BPE (GPT-2's recipe) on ``texts``; any text round-trips through it.

    Args:
        texts: pieces of text; consumed once.
        vocab_size: the size to reach, at least 257 (256 bytes + the separator). A small corpus may run out
            of pairs to merge and give a smaller vocabulary; ask the result for its ``vocab_size``.
        separator: how the separator is spelled in the tokenizer file.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise ValueError(f"BPE vocab_size {vocab_size} is too small: 256 bytes + 1 separator need 257; try 4096")
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[separator],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return _from_content(library.to_str(), separator, where="the trained BPE")


def character_tokenizer(characters: Iterable[str], *, separator: str = DEFAULT_SEPARATOR) -> Tokenizer:
    """One token for each of ``characters``, in their order; another character becomes ``<unk>``."""
    import tokenizers
    from tokenizers import decoders, models

    special = [separator, "<unk>"]
    vocab = {token: i for i, token in enumerate([*special, *sorted(set(characters))])}
    if len(vocab) < len(special) + len(set(characters)):
        raise ValueError(f"separator {separator!r} is a character of the text; pass --separator with a longer one")
    library = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    library.decoder = decoders.Fuse()
    library.add_special_tokens(special)
    return _from_content(library.to_str(), separator, where="the characters")


def _from_content(content: str, separator: str | None, *, where: str) -> FileTokenizer:
    import tokenizers

    with told_of(f"{where} is not a Hugging Face tokenizer file"), quiet():  # a panic is told at length
        library = tokenizers.Tokenizer.from_str(content)
        highest = max(library.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= 2**31 - 1:
        raise ValueError(f"{where} has a token of id {highest}, beyond int32; give the `tokenizer.json` of a model")
    token, token_id = _pick_separator(content, library, separator, where)
    with told_of(f"{where} is not a Hugging Face tokenizer file"), quiet():
        for_text = hide_special_tokens(content, library, token)
        encoder = library if for_text == content else tokenizers.Tokenizer.from_str(for_text)
        spared = without_spelled_bytes(for_text)
        careful = None if spared is None else tokenizers.Tokenizer.from_str(spared)
    return FileTokenizer(
        content=content,
        library=_for_text(library, token),
        encoder=_for_text(encoder, token),
        careful=None if careful is None else _for_text(careful, token),
        separator=token,
        separator_id=token_id,
        vocab_size=max(highest, token_id) + 1,
        fingerprint=_fingerprint(content, token),
        unknown_id=_unknown_id(content, library),
    )


def _for_text(library: "tokenizers.Tokenizer", separator: str) -> "tokenizers.Tokenizer":
    """The library set to read a corpus."""
    # Promote the separator to a special token (its id stays), then have text that merely spells a special
    # token encoded as text: a web page about GPT-2 must not end its own document.
    library.add_special_tokens([separator])
    library.encode_special_tokens = True
    # Files of embedding models truncate at 512 tokens or pad batches; a corpus wants neither.
    library.no_truncation()
    library.no_padding()
    if getattr(library.model, "dropout", None):  # BPE-dropout draws other tokens each time
        library.model.dropout = None
    return library


def _unknown_id(content: str, library: "tokenizers.Tokenizer") -> int | None:
    model = json.loads(content)["model"]
    if model.get("unk_id") is not None:  # Unigram's
        return int(model["unk_id"])
    return library.token_to_id(model["unk_token"]) if model.get("unk_token") else None


def _pick_separator(
    content: str, library: "tokenizers.Tokenizer", separator: str | None, where: str
) -> tuple[str, int]:
    added = {token.content: token_id for token_id, token in library.get_added_tokens_decoder().items()}
    if separator is not None:
        token_id = library.token_to_id(separator)
        if token_id is None:
            raise ValueError(
                f"separator {separator!r} is not a token of {where}; pass --separator TOKEN with one of its tokens"
                + (f", e.g. {', '.join(list(added)[:8])}" if added else "")
            )
        return separator, token_id
    for token in (*_own_beginning(content), *SEPARATOR_PREFERENCE):
        if token in added:
            return token, added[token]
    raise ValueError(
        f"{where} has no token known to separate documents (looked for {', '.join(SEPARATOR_PREFERENCE)}); "
        f"pass --separator TOKEN, one of its tokens" + (f", e.g. {', '.join(list(added)[:8])}" if added else "")
    )


def _own_beginning(content: str) -> list[str]:
    """The token that the file's own template puts before a text, where it adds that one alone."""
    processor = json.loads(content).get("post_processor") or {}
    for one in (processor, *processor.get("processors", [])):
        template = one.get("single", []) if one.get("type") == "TemplateProcessing" else []
        if [list(part) for part in template] == [["SpecialToken"], ["Sequence"]]:
            return [template[0]["SpecialToken"]["id"]]
    return []


def _fingerprint(content: str, separator: str) -> str:
    """Independent of the file's whitespace and key order, and of truncation and padding, which are not used."""
    identity = json.loads(content) | {"truncation": None, "padding": None}
    canonical = json.dumps({"tokenizer": identity, "separator": separator}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
