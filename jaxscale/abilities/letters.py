"""Abilities on strings of letters: copying, a habit, a coin, a rule that a prompt defines."""

import hashlib
from dataclasses import dataclass

from jaxscale.abilities.draw import LETTERS, Draw, held_out
from jaxscale.abilities.example import OF_ANSWERS, OF_CHOICES, OF_POSITIONS, Example, one_of

COPIED = 16  # letters
HALF = 50  # letters of a text that is given twice


def unseen(r: Draw, length: int, *, test: bool) -> str:
    """Letters of a question: of an example if `test`, else of a training document."""
    while held_out(question := r.text(length)) != test:
        pass
    return question


@dataclass(frozen=True)
class Copy:
    """Sixteen letters, then the same again."""

    name: str = "copy"
    what: str = "repeat 16 random letters"
    chance: float = 0.0
    metrics: tuple[str, ...] = OF_ANSWERS
    shots: tuple[int, ...] = (0,)

    def document(self, r: Draw) -> str:
        text = unseen(r, COPIED, test=False)
        return f"C:{text}|{text}\n"

    def example(self, r: Draw, shots: int = 0) -> Example:
        text = unseen(r, COPIED, test=True)
        return Example("".join(self.document(r) for _ in range(shots)) + f"C:{text}|", (text,))


@dataclass(frozen=True)
class Habit:
    """A run of the alphabet with one letter changed: is that letter copied, or the one that always comes there?

    Training shows unchanged runs alone.
    """

    name: str = "habit"
    what: str = "copy a run of the alphabet in which one letter is changed"
    chance: float = 0.5
    metrics: tuple[str, ...] = OF_CHOICES
    shots: tuple[int, ...] = (0,)

    def document(self, r: Draw) -> str:
        run = self.run(r)
        return f"C:{run}|{run}\n"

    def example(self, r: Draw, shots: int = 0) -> Example:
        run, place = self.run(r), 2 + r.below(COPIED - 4)
        usual = run[place]
        changed = r.pick([letter for letter in LETTERS if letter not in run])
        before = "".join(self.document(r) for _ in range(shots))
        prompt = f"{before}C:{run[:place]}{changed}{run[place + 1 :]}|{run[:place]}"
        return one_of(prompt, changed, [usual], r)

    def run(self, r: Draw) -> str:
        first = r.below(len(LETTERS) - COPIED + 1)
        return LETTERS[first : first + COPIED]


@dataclass(frozen=True)
class Coin:
    """A bit of sha256 of five letters: nothing that training shows says anything of an example."""

    name: str = "coin"
    what: str = "a bit of sha256 of 5 letters: there is nothing to learn"
    chance: float = 0.5
    metrics: tuple[str, ...] = OF_CHOICES
    shots: tuple[int, ...] = (0,)

    def document(self, r: Draw) -> str:
        text = unseen(r, 5, test=False)
        return f"H:{text}|{self.bit(text)}\n"

    def example(self, r: Draw, shots: int = 0) -> Example:
        text = unseen(r, 5, test=True)
        before = "".join(self.document(r) for _ in range(shots))
        bit = self.bit(text)
        return one_of(f"{before}H:{text}|", bit, ["1" if bit == "0" else "0"], r)

    def bit(self, text: str) -> str:
        return str(hashlib.sha256(text.encode()).digest()[0] & 1)


@dataclass(frozen=True)
class Rule:
    """A shift of the alphabet that the prompt defines by solved examples: in-context learning of a rule.

    Without an example the shift is not known. One example defines it. The choice is between four letters.
    """

    name: str = "rule"
    what: str = "shift a letter as the examples in the prompt do"
    chance: float = 0.25
    metrics: tuple[str, ...] = (*OF_CHOICES, *OF_ANSWERS)
    shots: tuple[int, ...] = (0, 1, 4, 16)

    def document(self, r: Draw) -> str:
        shift, letters = 1 + r.below(len(LETTERS) - 1), r.shuffled(LETTERS)
        return "R:" + self.solved(letters[:17], shift) + "\n"

    def example(self, r: Draw, shots: int = 0) -> Example:
        shift, letters = 1 + r.below(len(LETTERS) - 1), r.shuffled(LETTERS)
        question, answer = letters[shots], self.shifted(letters[shots], shift)
        shown = [self.shifted(letter, shift) for letter in letters[:shots]]  # no letter is the answer twice
        others = [letter for letter in LETTERS if letter not in (question, answer, *shown)]
        return one_of("R:" + self.solved(letters[:shots], shift) + f"{question}>", answer, r.shuffled(others)[:3], r)

    def solved(self, letters: list[str], shift: int) -> str:
        return "".join(f"{letter}>{self.shifted(letter, shift)} " for letter in letters)

    def shifted(self, letter: str, shift: int) -> str:
        return LETTERS[(LETTERS.index(letter) + shift) % len(LETTERS)]


@dataclass(frozen=True)
class Induction:
    """Fifty random letters twice: the loss at each place, at the end against the beginning (arXiv:2209.11895)."""

    name: str = "induction"
    what: str = "random letters, given twice: the loss by position"
    chance: float = 0.0
    metrics: tuple[str, ...] = OF_POSITIONS
    shots: tuple[int, ...] = (0,)

    def document(self, r: Draw) -> str:
        return unseen(r, HALF, test=False) * 2 + "\n"

    def example(self, r: Draw, shots: int = 0) -> Example:
        return Example("", (unseen(r, HALF, test=True) * 2,))
