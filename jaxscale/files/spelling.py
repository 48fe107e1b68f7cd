"""Proposing the name that was meant. A proposal that is wrong is worse than none, so few letters may differ."""

from collections.abc import Iterable

PREFIX = 3  # letters of a name that is cut short


def distance(a: str, b: str) -> int:
    """Letters that must be put in, left out, exchanged or swapped with the next one to turn `a` into `b`."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[-1] = min(row[-1], older[j - 2] + 1)
    return row[-1]


def near(name: str, known: Iterable[str], *, letters: int = 3) -> str | None:
    """The known name that `name` most likely is, or None: one letter in `letters` may differ, or it is cut short.

    Args:
        letters: 3 for names of things; 4 for verbs, where a wrong proposal may do something else.
    """
    name, names = name[:100].lower(), list(known)
    most = len(name) // letters or (letters == 3 and len(name) == 2)
    close = [(d, abs(len(k) - len(name)), k) for k in names if (d := distance(name, k.lower())) <= most]
    if close:
        return max(k for d, more, k in close if (d, more) == min(c[:2] for c in close))  # of equals, the newer version
    longer = [k for k in names if len(name) >= PREFIX and k.lower().startswith(name)]
    return longer[0] if len(longer) == 1 else None


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no known name is near."""
    match = near(name, known)
    return f"; did you mean {match}?" if match else ""
