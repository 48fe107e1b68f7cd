"""What a written value means, by the type of the key that it is for.

YAML 1.1 guesses a type from the text alone: `010` is 8, `1:40` is 100, `on` is true and `1e-3` is text. Here a value
that is written without quotes stays the text that was typed (`reading.Plain`) until its key says what it takes.
"""

import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from jaxscale.files.reading import NULLS, TRUTHS, Plain, core, parse_untyped, resolve

QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
WHOLE = re.compile(r"-?(?:0|[1-9]\d{0,18})")


def members(annotation: Any) -> list[Any]:
    """The types that a key takes, without what pydantic adds to them; NoneType where it may be null."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [m for part in get_args(annotation) for m in members(part)]
    return members(get_args(annotation)[0]) if origin is Annotated else [annotation]


def argument(kinds: list[Any], container: type) -> Any:
    """The type of what a `list[X]` or `dict[str, X]` among the types of a key holds; None where there is none."""
    return next((get_args(kind)[-1] for kind in kinds if get_origin(kind) is container), None)


def convert(value: Any, annotation: Any) -> Any:
    """`value`, as read from YAML, with every unquoted scalar as its key takes it; pydantic judges what comes out."""
    kinds = members(annotation)
    if isinstance(value, Plain):
        return scalar(value, kinds)
    if isinstance(value, list):
        item = argument(kinds, list)
        return resolve(value) if item is None else [convert(v, item) for v in value]
    if isinstance(value, dict) and (item := argument(kinds, dict)) is not None:
        return {key and str(key): convert(v, item) for key, v in value.items()}
    sections = any(hasattr(kind, "model_fields") for kind in kinds)  # their own keys are asked
    return value if sections else resolve(value)


def scalar(text: Plain, kinds: list[Any]) -> Any:
    """One unquoted scalar."""
    if str in kinds:
        if bool in kinds and text.lower() in ("true", "false"):
            return text.lower() == "true"
        return int(text) if int in kinds and WHOLE.fullmatch(text) else str(text)
    if bool in kinds:
        return TRUTHS.get(text.lower(), str(text))
    if any(get_origin(kind) is Literal for kind in kinds):
        return str(text)
    return core(text)


def from_command_line(text: str, annotation: Any) -> Any:
    """The value of `key=text` for a key of that type.

    A list or a mapping is YAML; text in quotes is what stands between them; any other text is as it was typed, with
    its spaces and a `#`. Raises ValueError for what could be meant in two ways.
    """
    kinds, stripped = members(annotation), text.strip()
    if not stripped:
        raise ValueError("it has no value; give one, or null for none")
    nested = not {*kinds} <= {str, type(None)}  # a key of text alone takes brackets as they are
    if (nested and stripped[0] in "[{") or QUOTED.fullmatch(stripped):
        try:
            return parse_untyped(stripped)
        except ValueError as error:
            raise ValueError(f"it is not a YAML value ({error})") from error
    if str in kinds and stripped == "~":
        raise ValueError("~ is null in YAML and a directory in a shell; give null, or the directory by its name")
    if stripped in NULLS:
        return None
    if str in kinds:
        return Plain(text) if bool in kinds else text
    return Plain(stripped)
