"""Which column of a table is which quantity, by its name alone."""

import re
from collections.abc import Iterable, Mapping

# quantity -> names that mean it, in small letters and with `_` between words
NAMES: dict[str, tuple[str, ...]] = {
    "parameters": ("parameters", "n", "params"),
    "tokens": ("tokens", "d"),
    "flops": ("flops", "c"),
    "loss": ("loss", "l"),
    "unique_tokens": ("unique_tokens", "u"),
    "seed": ("seed",),
    "name": ("name", "run"),
    "held_out": ("held_out",),
    "bits_per_byte": ("bits_per_byte", "bpb"),
    "accuracy": ("accuracy", "acc"),
}
# words of a column's name that suggest a quantity; asked in this order
HINTS: tuple[tuple[str, str], ...] = (
    (r"bpb|bits|byte", "bits_per_byte"),
    (r"acc|exact|correct|score", "accuracy"),
    (r"unique|distinct", "unique_tokens"),
    (r"loss|nll|entropy|perplex|ce\b", "loss"),
    (r"flop|compute|budget", "flops"),
    (r"token|data\b|seen", "tokens"),
    (r"param|size|model|width", "parameters"),
    (r"seed", "seed"),
    (r"name|run|id\b", "name"),
)


def plain(name: str) -> str:
    """`Unique Tokens` -> unique_tokens."""
    return re.sub(r"[\s\-.]+", "_", name.strip()).lower()


def quantities(columns: Iterable[str], given: Mapping[str, str], where: str) -> dict[str, str]:
    """Quantity -> the column that holds it.

    Args:
        given: quantity -> column, as the user says; it comes before what the names say.

    Raises:
        ValueError: `given` names no quantity or no column, or two columns have names of one quantity.
    """
    columns = list(columns)
    column_of: dict[str, str] = {}
    for quantity, column in given.items():
        if quantity not in NAMES:
            raise ValueError(f"--column {quantity}={column}: no quantity {quantity}; there are {', '.join(NAMES)}")
        if column not in columns:
            raise ValueError(f"--column {quantity}={column}: {where} has no column {column!r}; {could_be(columns)}")
        column_of[quantity] = column
    for column in columns:
        meant = quantity_of(column)
        if meant is None or meant in given or column in given.values():
            continue
        if meant in column_of:
            raise ValueError(
                f"{where}: the columns {column_of[meant]!r} and {column!r} are both {meant}; rename one of them"
            )
        column_of[meant] = column
    return column_of


def quantity_of(column: str) -> str | None:
    return next((quantity for quantity, names in NAMES.items() if plain(column) in names), None)


def could_be(columns: Iterable[str]) -> str:
    """The columns of a file, and what each is or could be, in words."""
    said = []
    for column in columns:
        guess = next((quantity for pattern, quantity in HINTS if re.search(pattern, plain(column))), None)
        known = quantity_of(column)
        what = f"is {known}" if known else f"could be {guess}" if guess else "is nothing known"
        said.append(f"{column!r} {what}")
    shown = "; ".join(said[:20]) + (f"; and {len(said) - 20} more" if len(said) > 20 else "")
    return f"its columns: {shown}" if said else "it has no columns"
