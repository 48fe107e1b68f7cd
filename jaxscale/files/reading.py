"""YAML and JSON that came from somewhere: data, of which nothing runs, read within bounds.

Scalars without quotes are read as YAML 1.2 has them, in which `010` is ten, `on` is text and `1e-3` a number.
Whatever is wrong with a text is a ValueError in one line: bad syntax, tags that would make objects, a key that stands
twice, nesting deeper than any file of ours, aliases that unfold to more than a machine holds.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

DEPTH = 100  # levels of lists and mappings, one in the other
VALUES = 10_000  # of a YAML text, each alias counted as what it stands for
CHARACTERS = 1_000_000  # of a YAML text, which takes seconds to read

NULLS = ("", "null", "Null", "NULL", "~")
TRUTHS = {
    "true": True,
    "yes": True,
    "on": True,
    "false": False,
    "no": False,
    "off": False,
}  # of a key that takes a bool
INTEGER = re.compile(r"[-+]?[0-9]+")
OTHER_BASES = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
DIGITS = 4000  # of a decimal number, which Python reads


class Plain(str):
    """A scalar that is written without quotes: its type is for its reader to say."""

    __slots__ = ()


class Loader(yaml.SafeLoader):
    """YAML within bounds, in which a key stands once: the first of two would be silently ignored."""

    yaml_implicit_resolvers = {  # noqa: RUF012  without YAML 1.1's guesses; `<<` merges
        "<": [("tag:yaml.org,2002:merge", re.compile("<<"))]
    }

    def __init__(self, stream: str):
        super().__init__(stream)
        self.depth = self.values = 0
        self.sizes: dict[int, int] = {}  # of the nodes that are whole, by id

    def compose_node(self, parent, index):
        alias, mark = self.check_event(yaml.AliasEvent), self.peek_event().start_mark
        self.depth, before = self.depth + 1, self.values
        if self.depth > DEPTH:
            raise refused(f"nested deeper than {DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if alias and id(node) not in self.sizes:
            raise refused("an alias within what it stands for", mark)
        self.values += self.sizes[id(node)] if alias else 1
        self.sizes.setdefault(id(node), self.values - before)
        if self.values > VALUES:
            raise refused(f"more than {VALUES:,} values", mark)
        return node

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise refused(f"the key {key.value} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_text(self, node):
        text = self.construct_scalar(node)
        if node.style is not None:
            return text
        return None if text in NULLS else Plain(text)


Loader.add_constructor("tag:yaml.org,2002:str", Loader.construct_text)


def refused(problem: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def parse_yaml(text: str) -> Any:
    """Values of a YAML text, their types by YAML 1.2's core schema."""
    return resolve(parse_untyped(text))


def core(text: str) -> Any:
    """An unquoted scalar by YAML 1.2's core schema: a bool, a number, or else the text. Nulls are known by then."""
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if OTHER_BASES.fullmatch(text):
        return int(text, 0)
    if INTEGER.fullmatch(text) and len(text) < DIGITS:
        return int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "", 1)) if SPECIAL.fullmatch(text) else str(text)


def resolve(value: Any) -> Any:
    """`value` with every unquoted scalar in it by the core schema."""
    if isinstance(value, list | tuple | set):  # tuples and sets come of the tags !!pairs, !!omap and !!set
        return type(value)(resolve(v) for v in value)
    if isinstance(value, dict):
        return {key and str(key): resolve(v) for key, v in value.items()}
    return core(value) if isinstance(value, Plain) else value


def parse_untyped(text: str) -> Any:
    """Values of a YAML text in which scalars without quotes are `Plain` (or None), for who knows the type of each."""
    if len(text) > CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, more than {CHARACTERS:,}")
    try:
        return yaml.load(text, Loader)
    except Exception as error:  # beside YAMLError whatever its constructors raise: KeyError for `!!bool x`
        said = str(error) if isinstance(error, yaml.YAMLError) else f"a value is not what its tag says ({error})"
        raise ValueError(" ".join(said.split())) from error


def parse_json(text: str | bytes) -> Any:
    """Plain values of a JSON text."""
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEPTH} levels") from None
    begins = text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if begins > DEPTH and depth(values) > DEPTH:
        raise ValueError(f"nested deeper than {DEPTH} levels")
    return values


def read_json_table(path: Path) -> dict[str, Any]:
    """The table of a JSON file. ValueError for one that cannot be read or is no table."""
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is no table")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    return values


def depth(values: Any) -> int:
    """Levels of lists and mappings, counted level by level."""
    level, levels = [values], 0
    while level := [v for v in level if isinstance(v, list | dict)]:
        levels += 1
        level = [x for v in level for x in (v.values() if isinstance(v, dict) else v)]
    return levels
