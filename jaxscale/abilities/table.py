"""All abilities by name, and what is made of them: documents to train on, tasks to measure."""

import math
from collections import Counter
from collections.abc import Sequence

from jaxscale.abilities.draw import Draw
from jaxscale.abilities.example import Ability, Example, Task
from jaxscale.abilities.letters import Coin, Copy, Habit, Induction, Rule
from jaxscale.abilities.library import OF_LIBRARY
from jaxscale.abilities.numbers import COUNTS, PARITIES, SUMS
from jaxscale.files.spelling import nearest

EVERY: tuple[Ability, ...] = (
    Copy(), *COUNTS, *PARITIES, Coin(), Habit(), *OF_LIBRARY, *SUMS, Rule(), Induction(),
)  # fmt: skip
ABILITIES: dict[str, Ability] = {ability.name: ability for ability in EVERY}
DRAWS = 40  # for each example that is wanted, before a set of examples counts as used up


def find(name: str) -> Ability:
    """The ability of this name. Raises ValueError for another name."""
    known = ", ".join(ABILITIES)
    if name not in ABILITIES:
        raise ValueError(f"no ability {name!r}{nearest(name, ABILITIES) or f'; there are {known}'}")
    return ABILITIES[name]


def documents(names: Sequence[str], seed: int, count: int) -> list[str]:
    """`count` texts that teach these abilities, each in turn: text number i is a function of its ability, seed and i.

    Raises:
        ValueError: an unknown name, or none.
    """
    if not names:
        raise ValueError(f"no abilities given; there are {', '.join(ABILITIES)}")
    every = [find(name) for name in names]
    return [(ability := every[i % len(every)]).document(Draw("document", ability.name, seed, i)) for i in range(count)]


def tasks_of(name: str, *, seed: int, count: int) -> list[Task]:
    """The tasks of `NAME`, one for each number of shots, or of `NAME:SHOTS`.

    Raises:
        ValueError: an unknown name, or shots that are no number from 0 to 64.
    """
    plain, colon, shots = name.partition(":")
    ability = find(plain)
    if colon and not (shots.isdecimal() and shots.isascii() and int(shots) <= 64):
        raise ValueError(f"{name}: after the colon stands how many solved examples the prompt shows, 0 to 64")
    if colon and int(shots) and not shows(ability, int(shots)):
        raise ValueError(f"{name}: {plain} takes no solved examples in its prompt; write {plain}")
    asked = (int(shots),) if colon else ability.shots
    return [
        Task(plain, examples(ability, seed, count, n), ability.chance, ability.metrics, n, f"ability {plain}")
        for n in asked
    ]


def shows(ability: Ability, shots: int) -> bool:
    """Can a prompt of this ability show so many solved examples?"""
    longest = max(ability.shots)
    return shots <= longest or (longest == 0 and ability not in OF_LIBRARY and ability.name != "induction")


def examples(ability: Ability, seed: int, count: int, shots: int) -> tuple[Example, ...]:
    """`count` examples, none twice; fewer where there are not so many.

    Of few possible answers each is right equally often: who always says the same is right by chance alone.
    """
    distinct: dict[tuple[str, tuple[str, ...]], Example] = {}
    right: Counter[tuple[str, ...]] = Counter()
    most = math.ceil(count * ability.chance) if ability.chance else count
    for i in range(DRAWS * count):
        one = ability.example(Draw("example", ability.name, shots, seed, i), shots)
        if (one.prompt, one.answers) in distinct or right[one.answers] == most:
            continue
        distinct[one.prompt, one.answers] = one
        right[one.answers] += 1
        if len(distinct) == count:
            break
    return tuple(distinct.values())
