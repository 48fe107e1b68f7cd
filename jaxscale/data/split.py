"""What is held out for validation: whole documents, by their names, or the end of each. Knows nothing of files."""

import hashlib
from collections.abc import Callable, Iterable, Iterator

from jaxscale.data.index import SplitName
from jaxscale.data.sources import Document

Holdout = Callable[[str], bool]
Part = tuple[SplitName, Document]
_NEAR = 4096  # characters before the end of a training part in which a line's end is looked for


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
        if not any(document.chunks):
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


def whole_documents(documents: Iterable[Document], holdout: Holdout) -> Iterator[Part]:
    """Each document in the split that the rule says."""
    for document in documents:
        yield ("validation" if holdout(document.name) else "train"), document


def tails(documents: Iterable[Document], share: float) -> Iterator[Part]:
    """Each document in two: its last ``share``, in characters, is held out.

    The cut is after the last line's end before it, else after the last space, else where it falls. Both parts must
    be read in their order.
    """
    for document in documents:
        total = document.characters()
        kept = total - int(total * share)
        if kept == total:
            yield "train", document
            continue
        rest: list[str] = []
        yield "train", document._replace(chunks=_head(document.chunks, kept, rest))
        yield "validation", document._replace(chunks=_chain(rest, document.chunks))


def _head(chunks: Iterator[str], kept: int, rest: list[str]) -> Iterator[str]:
    """The first ``kept`` characters or some fewer; ``rest`` takes what else was read."""
    for chunk in chunks:
        if len(chunk) < kept:
            kept -= len(chunk)
            yield chunk
            continue
        near = chunk[max(0, kept - _NEAR) : kept]
        end = near.rfind("\n") if "\n" in near else near.rfind(" ")
        cut = kept - len(near) + end + 1 if end >= 0 else kept
        rest.append(chunk[cut:])
        yield chunk[:cut]
        return


def _chain(rest: list[str], chunks: Iterator[str]) -> Iterator[str]:
    yield from (text for text in rest if text)
    yield from chunks
