"""Which examples share a row: best fit, the longest first, none cut. A pure function of the lengths."""

import numpy as np

BITS = 512  # of a word of `Rooms`


class Rooms:
    """Which amounts of room some row has; the smallest that holds an item is found by bits, two levels of them."""

    def __init__(self, capacity: int):
        self._words = [0] * (capacity // BITS + 1)
        self._used = 0  # bit w is set where word w is not 0

    def smallest(self, size: int) -> int | None:
        """The least room of `size` or more; None where there is none."""
        word, bit = divmod(size, BITS)
        if higher := self._words[word] >> bit:
            return size + lowest(higher)
        if not (later := self._used >> word + 1):
            return None
        word += 1 + lowest(later)
        return word * BITS + lowest(self._words[word])

    def add(self, room: int) -> None:
        word, bit = divmod(room, BITS)
        self._words[word] |= 1 << bit
        self._used |= 1 << word

    def remove(self, room: int) -> None:
        word, bit = divmod(room, BITS)
        self._words[word] ^= 1 << bit
        if not self._words[word]:
            self._used ^= 1 << word


def lowest(bits: int) -> int:
    """The number of the lowest bit that is set."""
    return (bits & -bits).bit_length() - 1


def pack(sizes: np.ndarray, capacity: int, *, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of whole items.

    Each item, from the largest to the smallest, goes to the row that it fills best. Of rows that are filled alike it
    goes to the newest. Rows are numbered by the first item in each, so that their order says nothing of their sizes.

    Args:
        sizes: int[n], each of 1 to `capacity`.
        most: items of one row.

    Returns:
        (items, begins): the items row by row, in a row in their own order; row r has items[begins[r]:begins[r + 1]].
    """
    row_of = np.empty(len(sizes), np.int64)
    counts: list[int] = []  # items of each row
    rows_with: dict[int, list[int]] = {}  # room -> the rows that have it
    rooms = Rooms(capacity)
    order = np.argsort(-sizes, kind="stable")
    for item, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        room = rooms.smallest(size)
        if room is None:
            row, room = len(counts), capacity
            counts.append(0)
        else:
            rows = rows_with[room]
            row = rows.pop()
            if not rows:
                rooms.remove(room)
        row_of[item] = row
        counts[row] += 1
        if (left := room - size) and counts[row] != most:
            rows_with.setdefault(left, []).append(row)
            rooms.add(left)
    return in_order(row_of, len(counts))


def in_order(row_of: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(items, begins) of `pack`, from the row of each item."""
    first = np.full(rows, len(row_of), np.int64)
    np.minimum.at(first, row_of, np.arange(len(row_of)))
    rank = np.empty(rows, np.int64)
    rank[np.argsort(first)] = np.arange(rows)
    number = rank[row_of]
    items = np.argsort(number, kind="stable")
    return items, np.searchsorted(number[items], np.arange(rows + 1))
