"""One example of an ability, and what an ability is. No jax, no tokens."""

from dataclasses import dataclass, field
from typing import Protocol

from jaxscale.abilities.draw import Draw

# metric -> (is it sharp: right or wrong, its partner of the other kind)
METRICS = {
    "exact": (True, "nll"),
    "choice": (True, "log_odds"),
    "final": (True, "final_nll"),
    "nll": (False, "exact"),
    "p_exact": (False, "exact"),
    "log_odds": (False, "choice"),
    "brier": (False, "choice"),
    "final_nll": (False, "final"),
    "late_right": (True, "late_nll"),
    "late_nll": (False, "late_right"),
    "early_nll": (False, "late_right"),
    "gain": (False, "late_right"),
}
OF_ANSWERS = ("exact", "nll", "p_exact")
OF_CHOICES = ("choice", "log_odds", "brier")
OF_FINAL = ("final", "final_nll")
OF_POSITIONS = ("late_right", "late_nll", "early_nll", "gain")


@dataclass(frozen=True)
class Example:
    """A prompt and its right answers.

    Attributes:
        prompt: what the model reads; a document's separator stands before it.
        answers: each of them is right.
        choices: among which the model chooses, in an order that says nothing; none: it is not asked to choose.
        scores: what each choice is worth, from 0 to 1.
    """

    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()


def one_of(prompt: str, answer: str, others: list[str], r: Draw) -> Example:
    """An example with one right choice, in an order that is drawn."""
    choices = tuple(r.shuffled([answer, *others]))
    return Example(prompt, (answer,), choices, tuple(float(c == answer) for c in choices))


class Ability(Protocol):
    """A skill: text that teaches it, and examples that ask for it.

    Attributes:
        name: as `--tasks` and run files call it.
        what: it asks for, in a few words.
        chance: the value of the main metric that guessing among the choices gives; 0 where the answer is free.
        metrics: the first is the main one.
        shots: how many solved examples stand before the question, each measured by itself.
    """

    @property
    def name(self) -> str: ...

    @property
    def what(self) -> str: ...

    @property
    def chance(self) -> float: ...

    @property
    def metrics(self) -> tuple[str, ...]: ...

    @property
    def shots(self) -> tuple[int, ...]: ...

    def document(self, r: Draw) -> str:
        """A text to train on."""
        ...

    def example(self, r: Draw, shots: int = 0) -> Example:
        """A question that no training document asks."""
        ...


@dataclass(frozen=True)
class Task:
    """Examples to measure.

    Attributes:
        name: of the ability, or of the file that the examples are from.
        source: where the examples are from, for messages.
    """

    name: str
    examples: tuple[Example, ...]
    chance: float
    metrics: tuple[str, ...]
    shots: int = 0
    source: str = field(default="", compare=False)
