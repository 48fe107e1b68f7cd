"""What a tokenizer cannot say: counted while a corpus is read, so that nothing is lost without a word."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from jaxscale.data.tokenizer import Tokenizer

LOOKED_AT = 64  # documents that are decoded again
EXAMPLES = 8


@dataclass
class TextChanges:
    """Characters that a tokenizer drops, its unknown tokens, and documents that do not decode to their text."""

    tokenizer: Tokenizer
    characters: int = 0
    tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unknown_tokens: int = 0
    looked_at: int = 0
    altered: list[tuple[str, str]] = field(default_factory=list)  # (text, what it decodes to), where they part
    _seen: set[str] = field(default_factory=set)
    _unsaid: set[str] = field(default_factory=set)
    _unknown: set[str] = field(default_factory=set)

    def add(self, text: str, ids: np.ndarray, *, begins: bool) -> None:
        """Count one piece of a document and its tokens; ``begins`` for a document's first piece."""
        self.characters += len(text)
        self.tokens += len(ids)
        if self.tokenizer.lossless:
            return
        characters = set(text)
        self._ask(characters - self._seen)
        dropped = {c: text.count(c) for c in characters & self._unsaid}
        self.dropped.update(dropped)
        unknown = int(np.count_nonzero(ids == self.tokenizer.unknown_id))  # 0 where there is no such token
        self.unknown_tokens += unknown
        if begins and self.looked_at < LOOKED_AT:
            self.looked_at += 1
            if not (dropped or unknown) and (decoded := self.tokenizer.decode(ids)) != text:
                self.altered.append(_difference(text, decoded))

    def _ask(self, characters: set[str]) -> None:
        """What becomes of characters that were not seen before."""
        self._seen |= characters
        self._unsaid |= {c for c in characters if not self.tokenizer.says(c)}
        self._unknown |= {c for c in characters if self.tokenizer.is_unknown(c)}

    def notes(self) -> list[str]:
        """A sentence for each kind of change."""
        notes = []
        if lost := self.dropped.total():
            shown = ", ".join(repr(c) for c, _ in self.dropped.most_common(EXAMPLES))
            notes.append(
                f"warning: {lost:,} of {self.characters:,} characters ({lost / self.characters:.2%}) were dropped: the "
                f"tokenizer has no token for them, e.g. {shown}; use one with byte fallback, or `bpe:N`"
            )
        if self.unknown_tokens:
            shown = ", ".join(repr(c) for c in sorted(self._unknown)[:EXAMPLES])
            notes.append(
                f"warning: {self.unknown_tokens:,} of {self.tokens:,} tokens ({self.unknown_tokens / self.tokens:.2%}) "
                "are the unknown token: the tokenizer has no other for their text"
                + (f", e.g. {shown}" if shown else "")
            )
        if self.altered:
            text, decoded = self.altered[0]
            notes.append(
                f"warning: the tokenizer changes text: {len(self.altered)} of {self.looked_at} documents looked at do "
                f"not decode to what they were; the first has {text!r} where the tokens say {decoded!r}"
            )
        return notes


def _difference(text: str, decoded: str) -> tuple[str, str]:
    """Some characters of both from where they part."""
    at = next((i for i, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b), min(len(text), len(decoded)))
    start = max(0, at - 8)
    return text[start : at + 16], decoded[start : at + 16]
