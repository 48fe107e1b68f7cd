"""Abilities on bits and digits, each with its steps and without them."""

from dataclasses import dataclass

from jaxscale.abilities.draw import Draw, held_out
from jaxscale.abilities.example import OF_ANSWERS, OF_CHOICES, OF_FINAL, Example, one_of

COUNTED, ADDED_UP = 12, 8  # bits whose ones are counted; whose parity is asked
DIGITS = "0123456789abcdef"  # a count is one digit


def bits(r: Draw, length: int, *, test: bool) -> str:
    """Bits of a question: the same ones are held out with steps and without."""
    while held_out(question := r.text(length, "01")) != test:
        pass
    return question


@dataclass(frozen=True)
class Count:
    """How many ones there are among 12 bits: at once, or counted bit by bit."""

    name: str
    what: str
    steps: bool
    metrics: tuple[str, ...]
    chance: float = 0.0
    shots: tuple[int, ...] = (0,)

    def document(self, r: Draw) -> str:
        question = bits(r, COUNTED, test=False)
        return f"{self.mark}:{question}|{self.answer(question)}\n"

    def example(self, r: Draw, shots: int = 0) -> Example:
        before = "".join(self.document(r) for _ in range(shots))
        question = bits(r, COUNTED, test=True)
        return Example(f"{before}{self.mark}:{question}|", (self.answer(question),))

    @property
    def mark(self) -> str:
        return "K" if self.steps else "N"

    def answer(self, question: str) -> str:
        counts = [DIGITS[question[: i + 1].count("1")] for i in range(len(question))]
        return "".join(counts) if self.steps else counts[-1]


@dataclass(frozen=True)
class Parity:
    """Whether the ones among 8 bits are odd: at once, or bit by bit; the choice is between both last bits."""

    name: str
    what: str
    steps: bool
    metrics: tuple[str, ...]
    chance: float = 0.5
    shots: tuple[int, ...] = (0,)

    def document(self, r: Draw) -> str:
        question = bits(r, ADDED_UP, test=False)
        return f"{self.mark}:{question}|{self.answer(question)}\n"

    def example(self, r: Draw, shots: int = 0) -> Example:
        before = "".join(self.document(r) for _ in range(shots))
        question = bits(r, ADDED_UP, test=True)
        answer = self.answer(question)
        return one_of(f"{before}{self.mark}:{question}|", answer, [answer[:-1] + str(1 - int(answer[-1]))], r)

    @property
    def mark(self) -> str:
        return "Q" if self.steps else "P"

    def answer(self, question: str) -> str:
        parities = [str(question[: i + 1].count("1") % 2) for i in range(len(question))]
        return "".join(parities) if self.steps else parities[-1]


@dataclass(frozen=True)
class Add:
    """The sum of two numbers of two digits, its last digit first if `reversed`."""

    name: str
    what: str
    reversed: bool
    chance: float = 0.0
    metrics: tuple[str, ...] = OF_ANSWERS
    shots: tuple[int, ...] = (0,)

    def document(self, r: Draw) -> str:
        return "".join(self.question(r, test=False)) + "\n"

    def example(self, r: Draw, shots: int = 0) -> Example:
        before = "".join(self.document(r) for _ in range(shots))
        question, answer = self.question(r, test=True)
        return Example(before + question, (answer,))

    def question(self, r: Draw, *, test: bool) -> tuple[str, str]:
        while True:
            a, b = r.below(100), r.below(100)
            if held_out(f"{a:02}+{b:02}") == test:
                break
        answer = f"{a + b:03}"
        return f"{'S' if self.reversed else 'A'}:{a:02}+{b:02}=", answer[::-1] if self.reversed else answer


COUNTS = (
    Count("count_chain", f"count the ones among {COUNTED} bits, step by step", True, (*OF_ANSWERS, *OF_FINAL)),
    Count("count", f"count the ones among {COUNTED} bits, at once", False, OF_ANSWERS),
)
PARITIES = (
    Parity("parity_chain", f"parity of {ADDED_UP} bits, step by step", True, (*OF_CHOICES, *OF_ANSWERS)),
    Parity("parity", f"parity of {ADDED_UP} bits, at once", False, (*OF_CHOICES, *OF_ANSWERS)),
)
SUMS = (
    Add("add", "the sum of two numbers of two digits", False),
    Add("add_reversed", "the same, last digit first", True),
)
