"""Documents -> token arrays for each split, a batch at a time. Knows nothing of files."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxscale.data.index import SplitName
from jaxscale.data.progress import Progress
from jaxscale.data.sources import Document
from jaxscale.data.split import Holdout
from jaxscale.data.tokenizer import Tokenizer

BATCH_CHARACTERS = 2**20  # enough work for many cores, a few hundred MB of a tokenizer's results at most


class _Piece(NamedTuple):
    document: str
    begins: bool
    text: str


def encoded(
    corpus: Iterator[Document], tokenizer: Tokenizer, holdout: Holdout, progress: Progress
) -> Iterator[dict[SplitName, np.ndarray]]:
    """Every document once, in order, as batches of int32 tokens for the splits that have some in the batch.

    A separator starts each document. A document without text is left out, and counted in ``progress``.

    Raises:
        ValueError: text that encodes to the separator.
    """
    for batch in _batches(corpus, progress):
        yield _encode_batch(tokenizer, batch, holdout)


def _batches(corpus: Iterator[Document], progress: Progress) -> Iterator[list[_Piece]]:
    """Pieces of documents in batches of about ``BATCH_CHARACTERS``, a document counting as 64 more."""
    batch: list[_Piece] = []
    characters = 0
    for document in corpus:
        begins = True
        for piece in document.pieces:
            batch.append(_Piece(document.name, begins, piece))
            characters += len(piece) + 64
            begins = False
            if characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        progress.documents += not begins
        progress.empty_documents += begins
    if batch:
        yield batch


def _encode_batch(tokenizer: Tokenizer, batch: list[_Piece], holdout: Holdout) -> dict[SplitName, np.ndarray]:
    """The batch's tokens for each split, a separator at the start of each document."""
    separator = np.array([tokenizer.separator_id], np.int32)
    parts: dict[SplitName, list[np.ndarray]] = {}
    for piece, ids in zip(batch, _encode_texts(tokenizer, batch), strict=True):
        split: SplitName = "validation" if holdout(piece.document) else "train"
        parts.setdefault(split, []).extend([separator, ids] if piece.begins else [ids])
    return {split: np.concatenate(arrays) for split, arrays in parts.items()}


def _encode_texts(tokenizer: Tokenizer, batch: list[_Piece]) -> list[np.ndarray]:
    encoded = tokenizer.encode_batch([piece.text for piece in batch])
    for piece, ids in zip(batch, encoded, strict=True):
        if (ids == tokenizer.separator_id).any():
            raise ValueError(
                f"text of document {piece.document} contains the separator {tokenizer.separator!r} "
                f"(id {tokenizer.separator_id}) as an ordinary token; pass --separator with a token that never "
                "stands for text"
            )
    return encoded
