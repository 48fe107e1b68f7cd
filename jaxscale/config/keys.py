"""Every key of a run file: its values, default and description, as the JSON Schema has them."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jaxscale.config.overrides import SYNONYMS, suggest
from jaxscale.config.schema import run_schema
from jaxscale.config.sections import Config
from jaxscale.config.values import INT32

SECTION = "section"


class Key(NamedTuple):
    """A key of a run file.

    Attributes:
        name: dotted; `[]` stands for an item of a list.
        values: what it takes: `integer > 0 | null`; `section` for one that holds further keys.
        default: as YAML writes it; empty where there is none.
    """

    name: str
    values: str
    default: str
    description: str

    @property
    def is_section(self) -> bool:
        """Does it hold further keys?"""
        return SECTION in self.values

    @property
    def section(self) -> str:
        """The section that it stands in; empty for the keys of a run itself."""
        return self.name.rpartition(".")[0]


def all_keys() -> list[Key]:
    """Every key, each section before its own."""
    schema = run_schema()
    return list(below(schema, schema["$defs"]))


def below(section: dict[str, Any], sections: dict[str, Any], before: str = "") -> Iterator[Key]:
    """The keys of a section, and those below them."""
    needed = section.get("required", section.get("anyOf", [{}])[-1].get("required", []))
    for name, value in section["properties"].items():
        default = "required" if name in needed else written(value["default"]) if "default" in value else ""
        yield Key(before + name, values_of(value), default, value["description"])
        if reference := re.search(r"#/\$defs/(\w+)", str(value)):
            many = "[]" if value.get("type") == "array" else ""
            yield from below(sections[reference[1]], sections, f"{before}{name}{many}.")


def values_of(value: dict[str, Any]) -> str:
    """What a part of the schema takes, in a few words."""
    if "anyOf" in value:
        return " | ".join(map(values_of, value["anyOf"]))
    if "enum" in value or "const" in value:
        return " | ".join(value.get("enum", [value.get("const")]))
    if "$ref" in value:
        return SECTION
    if value["type"] == "array":
        if "prefixItems" in value:
            return f"[{', '.join(map(values_of, value['prefixItems']))}]"
        return f"[{values_of(value['items'])}, ...]"
    if value["type"] == "object":
        names = "name" if "propertyNames" not in value else "activation"
        return f"{{{names}: {values_of(value['additionalProperties'])}, ...}}"
    if value["type"] == "boolean":
        return "true | false"
    return f"{'text' if value['type'] == 'string' else value['type']}{bounds(value)}"


def bounds(value: dict[str, Any]) -> str:
    """` > 0, < 1`; an int32's own bound is not said."""
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {value[name]:g}" for name, sign in signs.items() if value.get(name, INT32) < INT32]
    return f" {', '.join(limits)}" if limits else ""


def written(value: Any) -> str:
    """A default as YAML has it."""
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return f"{value:g}" if isinstance(value, float) else str(value)


def matching(word: str) -> list[Key]:
    """The keys whose name or description contains a word, and the one that other trainers call so.

    Raises:
        ValueError: there are none; it proposes near ones.
    """
    keys, phrase = all_keys(), re.sub(r"[\s_-]+", " ", word.lower().strip())
    as_name = phrase.replace(" ", "_")
    synonym = SYNONYMS.get(as_name)
    matches = [k for k in keys if as_name in k.name or phrase in k.description.lower() or k.name == synonym]
    if not matches:
        meant = suggest(as_name, Config) or "; give another word, or none for all keys"
        raise ValueError(f"no key or description contains {word!r}{meant}")
    return matches
