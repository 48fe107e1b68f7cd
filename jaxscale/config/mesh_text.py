"""A mesh in words: `data=2, fsdp=4`, written and read. Knows nothing of jax."""

from collections.abc import Mapping, Sequence
from typing import Any


def mesh_text(sizes: Mapping[str, Any], over: Mapping[str, int] | None = None, *, join: str = ", ") -> str:
    """`data=4 (2 over slices), fsdp=64`: every axis that is given, in this order.

    Args:
        over: axis -> its size over slices, of those that cross them.
    """
    over = over or {}
    return join.join(f"{a}={n}" + (f" ({over[a]} over slices)" if a in over else "") for a, n in sizes.items())


def split_axes(sizes: Mapping[str, int]) -> dict[str, int]:
    """The axes that split something: all but those of size 1."""
    return {axis: n for axis, n in sizes.items() if n != 1}


def read_mesh(text: str, axes: Sequence[str], *, rest: bool = False) -> dict[str, int]:
    """`data=2, fsdp=4` as sizes. Raises ValueError for anything else.

    Args:
        axes: names that there are.
        rest: whether a size may be -1, for all devices that are left.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (word.strip() for word in part.partition("="))
        if not (size.isascii() and size.isdecimal() and int(size) > 0) and not (rest and size == "-1"):
            raise ValueError(f"mesh {text!r}: {part.strip()!r} is not axis=size; write e.g. data=2,fsdp=2,tensor=2")
        if axis not in axes or axis in sizes:
            what = "there are" if axis not in sizes else "each is given once:"
            raise ValueError(
                f"mesh {text!r}: {'no axis' if axis not in sizes else 'twice'} {axis!r}; {what} {', '.join(axes)}"
            )
        sizes[axis] = int(size)
    return sizes
