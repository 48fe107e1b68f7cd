"""Numbers drawn by a seed: the same on every machine and with every version of Python."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
HELD_OUT = 0.25  # of all inputs, those that only examples have


class Draw:
    """A stream of draws. Of `random.Random` it takes `random()` alone, whose stream Python promises to keep."""

    def __init__(self, *seeds: object):
        self.uniform = random.Random(":".join(map(str, seeds))).random

    def below(self, n: int) -> int:
        """A number from 0 to n - 1."""
        return int(self.uniform() * n)

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """All items in an order that is drawn (Fisher and Yates)."""
        order = list(items)
        for i in range(len(order) - 1, 0, -1):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order

    def text(self, length: int, letters: str = LETTERS) -> str:
        """Letters, each drawn by itself."""
        return "".join(self.pick(letters) for _ in range(length))


def held_out(question: str) -> bool:
    """Does this question belong to the examples? No training document has it; its hash decides."""
    digest = hashlib.sha256(f"held out:{question}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48 < HELD_OUT
