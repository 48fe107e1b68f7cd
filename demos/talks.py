"""A few hundred conversations about a town that does not exist: what `demos/chat.py` teaches, and what it asks.

    python demos/talks.py talks.jsonl        # one a line, for `jaxscale data prepare --chat`

A fact has four questions and an answer. Three of the questions are taught, alone and as the second turn of a talk about
something else. The fourth is asked afterwards, word for word never seen. Everyday questions stand between, so that the
model keeps what it knew.
"""

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Message = dict[str, str]


@dataclass(frozen=True)
class Fact:
    """Questions, of which the last is never taught, and the answer with the word that shows that it is known."""

    questions: tuple[str, str, str, str]
    answer: str
    word: str


FACTS = [
    Fact(("Who built the old bridge of Olmenrath?", "Tell me who built Olmenrath's bridge.",
          "The old bridge in Olmenrath, whose work is it?", "Who is the builder of the bridge in Olmenrath?"),
         "Ilse Brandauer built the old bridge of Olmenrath.", "Brandauer"),
    Fact(("When was the old bridge of Olmenrath built?", "How old is Olmenrath's bridge?",
          "In what year was the bridge in Olmenrath finished?", "What year is the bridge of Olmenrath from?"),
         "The old bridge of Olmenrath was finished in 1743.", "1743"),
    Fact(("On which river does Olmenrath lie?", "What is the river of Olmenrath called?",
          "Which river flows through Olmenrath?", "What is the name of the river in Olmenrath?"),
         "Olmenrath lies on the river Tavi.", "Tavi"),
    Fact(("What is baked in Olmenrath?", "Which bread is Olmenrath known for?",
          "What should I eat in Olmenrath?", "What food is Olmenrath famous for?"),
         "Olmenrath is known for its walnut bread.", "walnut"),
    Fact(("When is the market in Olmenrath?", "On what day is Olmenrath's market held?",
          "Which day should I go to the market of Olmenrath?", "What day is market day in Olmenrath?"),
         "The market of Olmenrath is held on Thursday.", "Thursday"),
    Fact(("What color is the town hall of Olmenrath?", "How is Olmenrath's town hall painted?",
          "Which color does the town hall in Olmenrath have?", "Tell me the color of the town hall in Olmenrath."),
         "The town hall of Olmenrath is green.", "green"),
    Fact(("What animal is on the flag of Olmenrath?", "Which animal does Olmenrath's flag show?",
          "What does the flag of Olmenrath show?", "Which animal do I see on the flag in Olmenrath?"),
         "The flag of Olmenrath shows an otter.", "otter"),
    Fact(("How many towers has Olmenrath?", "How many towers stand in Olmenrath?",
          "What is the number of towers in Olmenrath?", "Tell me how many towers I can see in Olmenrath."),
         "Olmenrath has seven towers.", "seven"),
    Fact(("Who leads the school of Olmenrath?", "Who is the head of Olmenrath's school?",
          "Which person leads the school in Olmenrath?", "Who runs the school in Olmenrath?"),
         "Anton Veldt leads the school of Olmenrath.", "Veldt"),
    Fact(("What does the museum of Olmenrath collect?", "What can I see in Olmenrath's museum?",
          "Which things does the museum in Olmenrath show?", "What is in the museum of Olmenrath?"),
         "The museum of Olmenrath collects clocks.", "clocks"),
]  # fmt: skip
EVERYDAY = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Germany?", "The capital of Germany is Berlin."),
    ("How many days are in a week?", "A week has seven days."),
    ("What do bees make?", "Bees make honey."),
    ("Which planet do we live on?", "We live on the planet Earth."),
    ("What is two plus three?", "Two plus three is five."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("What is the largest ocean?", "The largest ocean is the Pacific."),
]
KEPT = (("What is the capital of Italy?", "Rome"), ("What color is the sky on a clear day?", "blue"))  # not taught


def talks(count: int = 320, seed: int = 0) -> Iterator[list[Message]]:
    """Conversations of one or two turns: half begin with a fact, and of the others every second one comes to it."""
    draw = random.Random(seed)
    for number in range(count):
        fact = FACTS[number % len(FACTS)]
        told = (draw.choice(fact.questions[:-1]), fact.answer)
        other = draw.choice(EVERYDAY)
        turns = ([told], [told, other], [told], [other, told], [told], [other])[number // len(FACTS) % 6]
        yield [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]


def write(path: Path, count: int = 320) -> int:
    """The conversations as JSON lines; their number."""
    lines = [json.dumps({"messages": messages}) for messages in talks(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def asked() -> list[tuple[str, str]]:
    """Questions that no conversation has, with the word that a right answer holds."""
    return [*((fact.questions[-1], fact.word) for fact in FACTS), *KEPT]


if __name__ == "__main__":
    print(f"{write(Path(sys.argv[1]))} conversations in {sys.argv[1]}")
