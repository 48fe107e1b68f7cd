"""Documents -> token arrays for each split, a batch at a time. Knows nothing of files."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jaxscale.data.index import SplitName
from jaxscale.data.pieces import Piece, cut_pieces
from jaxscale.data.progress import BadRecord, Progress
from jaxscale.data.split import Part
from jaxscale.data.text_changes import TextChanges
from jaxscale.data.tokenizer import Tokenizer

BATCH_CHARACTERS = 2**20  # enough work for many cores, a few hundred MB of a tokenizer's results at most


class _Piece(NamedTuple):
    split: SplitName
    document: str
    begins: bool
    piece: Piece


def encoded(
    parts: Iterator[Part], tokenizer: Tokenizer, progress: Progress, changes: TextChanges
) -> Iterator[dict[SplitName, np.ndarray]]:
    """Every document once, in order, as batches of int32 tokens for the splits that have some in the batch.

    A separator starts each document. A document without text is left out, and counted in ``progress``; what the
    tokenizer cannot say is counted in ``changes``.

    Raises:
        ValueError: text that encodes to the separator.
    """
    left_out: set[str] = set()
    for batch in _batches(parts, tokenizer, progress):
        texts = tokenizer.encode_pieces([piece.piece for piece in batch])
        yield _by_split(batch, texts, tokenizer, progress, changes, left_out)


def _batches(parts: Iterator[Part], tokenizer: Tokenizer, progress: Progress) -> Iterator[list[_Piece]]:
    """Pieces of documents in batches of about ``BATCH_CHARACTERS``, a document counting as 64 more."""
    batch: list[_Piece] = []
    characters = 0
    for split, document in parts:
        begins = True
        for piece in cut_pieces(document.chunks, tokenizer.unchanged_by_cut):
            batch.append(_Piece(split, document.name, begins, piece))
            characters += len(piece.text) + 64
            begins = False
            if characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        progress.documents += not begins
        progress.empty_documents += begins
    if batch:
        yield batch


def _by_split(
    batch: list[_Piece],
    texts: list[np.ndarray],
    tokenizer: Tokenizer,
    progress: Progress,
    changes: TextChanges,
    left_out: set[str],
) -> dict[SplitName, np.ndarray]:
    """The batch's tokens for each split, a separator at the start of each document."""
    separator = np.array([tokenizer.separator_id], np.int32)
    arrays: dict[SplitName, list[np.ndarray]] = {}
    for piece, ids in zip(batch, texts, strict=True):
        changes.add(piece.piece.text, ids, begins=piece.begins)
        if tokenizer.unknown_id == tokenizer.separator_id:  # counted; it must not end the document
            ids = ids[ids != tokenizer.separator_id]
        if piece.begins:
            left_out.discard(piece.document)
        if (ids == tokenizer.separator_id).any() and piece.document not in left_out:
            progress.bad.skip(_posing(piece.document, tokenizer))
            left_out.add(piece.document)
        arrays.setdefault(piece.split, [])
        if piece.document not in left_out:
            arrays[piece.split] += [separator, ids] if piece.begins else [ids]
    return {split: np.concatenate(parts) for split, parts in arrays.items() if parts}


def _posing(document: str, tokenizer: Tokenizer) -> BadRecord:
    return BadRecord(
        f"text of document {document} contains the separator {tokenizer.separator!r} (id {tokenizer.separator_id}) as "
        "an ordinary token; pass --separator with a token that never stands for text"
    )
