"""A Hugging Face tokenizer as this package uses it: text in, ids out, as they stand in the whole document."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxscale.data.pieces import Piece
from jaxscale.data.spelled import SPELLED_BYTE

if TYPE_CHECKING:
    import tokenizers


@dataclass(frozen=True)
class FileTokenizer:
    """A Hugging Face tokenizer; ``content`` is the text of its ``tokenizer.json``, kept as it came.

    ``library`` decodes; ``encoder`` is the same without the special tokens that text could spell, and ``careful``
    also without the byte tokens, where that makes a difference.
    """

    content: str
    library: "tokenizers.Tokenizer"
    encoder: "tokenizers.Tokenizer"
    careful: "tokenizers.Tokenizer | None"
    separator: str
    separator_id: int
    vocab_size: int
    fingerprint: str
    unknown_id: int | None = None
    lossless: bool = field(default=False, init=False)

    def encode(self, text: str) -> np.ndarray:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        with told_of("cannot encode a text"):
            encodings = self.encoder.encode_batch_fast(list(texts), add_special_tokens=False)
            if self.careful is not None:
                for i in [i for i, text in enumerate(texts) if SPELLED_BYTE.search(text)]:
                    (encodings[i],) = self.careful.encode_batch_fast([texts[i]], add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode_rendered(self, text: str) -> np.ndarray:
        """The ids of a text in which special tokens are spelled, as a chat template does; none is added."""
        return self.encode_rendered_batch([text])[0]

    def encode_rendered_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``encode_rendered`` of each text, in parallel."""
        with told_of("cannot encode a text"):
            encodings = self._of_rendered.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    @cached_property
    def _of_rendered(self) -> "tokenizers.Tokenizer":
        """The library as the file has it: a spelled special token is one."""
        import tokenizers

        with told_of("cannot encode a text"):
            library = tokenizers.Tokenizer.from_str(self.content)
            if self.separator not in {token.content for token in library.get_added_tokens_decoder().values()}:
                library.add_special_tokens([self.separator])  # its id stays
        library.no_truncation()
        library.no_padding()
        if getattr(library.model, "dropout", None):
            library.model.dropout = None
        return library

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """The special tokens as a rendered text spells them, the separator among them."""
        added = self._of_rendered.get_added_tokens_decoder().values()
        return tuple(sorted({self.separator, *(token.content for token in added if token.special)}))

    def id_of(self, token: str) -> int | None:
        """The id of a token, as the file spells it."""
        token_id: int | None = self.library.token_to_id(token)
        return token_id

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        # What a library does at a text's start and end (a space before it, spaces stripped) it does at the context's.
        ids = self.encode_batch([piece.context + piece.text for piece in pieces])
        later = [i for i, piece in enumerate(pieces) if piece.context]
        for i, context in zip(later, self.encode_batch([pieces[i].context for i in later]), strict=True):
            if not np.array_equal(ids[i][: len(context)], context):
                raise ValueError("a long text changes its tokens when it is cut; give it as shorter documents")
            ids[i] = ids[i][len(context) :]
        return ids

    def unchanged_by_cut(self, before: str, after: str) -> bool:
        """From three starts of ``before``, so that a run of equal tokens is not cut out of step."""
        starts = [before, before[1:], before[3:]]
        ids = self.encode_batch(starts + [start + after for start in starts])
        return all(np.array_equal(both[: len(left)], left) for left, both in zip(ids[:3], ids[3:], strict=True))

    def says(self, character: str) -> bool:
        if character.isspace():
            return True  # many tokenizers take words apart at spaces and keep none
        once, twice = self.encode_batch([character, character * 2])
        return len(once) != len(twice) or self.is_unknown(character) or not np.array_equal(once, twice)

    def is_unknown(self, character: str) -> bool:
        return self.unknown_id is not None and bool((self.encode(character) == self.unknown_id).any())

    def decode(self, ids: Iterable[int]) -> str:
        known = [i for i in map(int, ids) if 0 <= i < self.vocab_size and i != self.separator_id]
        with told_of("cannot decode tokens"):
            return self.library.decode(known, skip_special_tokens=False)

    def save(self, directory: Path) -> Path | None:
        path = Path(directory) / "tokenizer.json"
        path.write_text(self.content, encoding="utf-8")
        return path


@contextmanager
def told_of(problem: str) -> Iterator[None]:
    """The library's errors as a ValueError: it raises bare Exception, and where it panics a BaseException."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{problem}: {error}; give the `tokenizer.json` of a model") from error
