"""Which documents are held out for validation: a pure function of each document's name."""

import hashlib
from collections.abc import Callable, Iterable

from jaxscale.data.sources import Document

Holdout = Callable[[str], bool]


def choose_holdout(documents: Iterable[Document], validation_fraction: float) -> Holdout:
    """The rule that says, from a document's name alone, whether it is held out.

    A document is held out when the hash of its name, a number in [0, 1), is below ``validation_fraction``, so
    the choice depends neither on the order of documents nor on which others there are. Where that would leave
    one side of the split without any document, the one with the lowest (highest) hash goes there; a lone
    document goes to train. ``documents`` is read only as far as it takes to see one of each.
    """
    if validation_fraction == 0:
        return lambda name: False
    lowest: tuple[float, str] | None = None
    highest: tuple[float, str] | None = None
    for document in documents:
        if not any(document.pieces):
            continue
        rank = (name_hash(document.name), document.name)
        lowest = min(lowest or rank, rank)
        highest = max(highest or rank, rank)
        if lowest[0] < validation_fraction <= highest[0]:
            return lambda name: name_hash(name) < validation_fraction
    if lowest is None or highest is None or lowest == highest:
        return lambda name: False
    low, high = lowest, highest
    if low[0] >= validation_fraction:
        return lambda name: name == low[1]
    return lambda name: name != high[1]


def name_hash(name: str) -> float:
    """A number in [0, 1) that looks random and is the same on every machine."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
