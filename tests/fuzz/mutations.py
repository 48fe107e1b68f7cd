"""Valid files -> files that are not: strategies for bytes, for the values of JSON and YAML, and for their texts."""

import copy
import json
from typing import Any

import yaml
from hypothesis import strategies as st

OUTSIDE = "../outside/canary.json"  # beside the directory under test; what reads or writes it has left its directory
DEEP = "@@deep@@"  # stands for nesting that json.dumps itself would not write
TAGS = (
    '!!python/object/apply:os.system ["touch ../outside/made"]',
    "!!python/name:os.system",
    "!!python/object/new:subprocess.Popen [[touch, ../outside/made]]",
    "!!bool maybe", "!!int ''", "!!int 0x", "!!float x", "!!timestamp never", "!!timestamp 2001-99-99", "!!binary é",
    "!!set {a, b}", "!!omap [a: 1]", "!!map [1]", "!!seq {a: 1}", "!unknown x", "!!null x", "!!str 5",
)  # fmt: skip
TEXTS = (
    *TAGS,
    "&a [*a]",
    "&a {b: *a}",
    "&x {<<: *x}",
    "{<<: 5}",
    "*nowhere",
    "{[1, 2]: 3}",
    "{a: 1, a: 2}",
    "{1: 2, null: 3, 1.5: 4}",
    "0x" + "f" * 5000,
    "9" * 5000,
    "1e999",
    "-.inf",
    ".nan",
    "190:20:30",
    "2001-01-01",
    "[" * 3000,
    "{a: " * 500,
    "- " * 2000,
    "? " * 500,
    "'",
    '"\\ud800"',
    '"\\0"',
    "|\n",
    "%YAML 9.9\n---\n",
    "---\n...\n---\n",
    "\t",
    "\ufeff",
    "\x1b[2J",
)
STRINGS = (
    "", " ", "\0", "a\nb", "\x1b[31m", "\u202e\u2028", "\ud800", "é" * 300, "x" * 5000, "true", "null", "-1", "1e999",
    "NaN", ".", "..", "/", "~", "~root", "%s%n", "{}", "..%2f", OUTSIDE, "../outside", "/etc/passwd",
    "/dev/zero", "a/../../outside", "train-00000.bin", "train-00000.bin\n", "http://user:token@host/x", "s3://KEY:SECRET@bucket/x",
    "<script>", "@@deep@@", *TAGS[:3],
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**30, 10**400, -(10**400),
    0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, 1.7e308, float("nan"), float("inf"), float("-inf"), 1e18, 3.0,
)  # fmt: skip


def atoms() -> st.SearchStrategy:
    return st.one_of(
        st.sampled_from(NUMBERS),
        st.sampled_from(STRINGS),
        st.sampled_from([None, True, False]),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=20),
    )


def values() -> st.SearchStrategy:
    """Any plain value, small."""
    return st.one_of(
        atoms(),
        st.recursive(
            atoms(),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
            max_leaves=6,
        ),
    )


@st.composite
def alike(draw, value: Any) -> Any:
    """Another value of the same type, which a reader gets further with."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float) and abs(value) < 1e300:
        near = [-value, value + 1, value - 1, value * 2, value / 2, value * 1000, float(value)]
        return draw(st.sampled_from([*near, *near, *NUMBERS]))
    if isinstance(value, str):
        return draw(
            st.sampled_from([*STRINGS, value.upper(), value * 2, value[:-1], f" {value}\n"]) | st.text(max_size=9)
        )
    if isinstance(value, list):
        return draw(st.sampled_from([value[::-1], value * 2, value[1:], value[:1], [*value, None]]))
    if isinstance(value, dict):
        return dict(draw(st.permutations(list(value.items()))))
    return draw(values())


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """Paths of everything in a tree of plain values but the tree itself."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [found for key in keys for found in [(*path, key), *places(tree[key], (*path, key))]]


@st.composite
def changed(draw, tree: Any) -> Any:
    """`tree` with one to three changes: a value of another type or size, a key gone, renamed, twice, or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.sampled_from([1, 1, 1, 1, 2, 3]))):
        there = places(tree)
        if not there:
            return draw(values())
        *above, key = draw(st.sampled_from(there))
        parent = tree
        for step in above:
            parent = parent[step]
        kind = draw(
            st.sampled_from([*["alike"] * 8, "value", "value", "gone", "renamed", "twice", "moved", "type", "deep"])
        )
        if kind == "alike":
            parent[key] = draw(alike(parent[key]))
        elif kind == "value":
            parent[key] = draw(values())
        elif kind == "gone":
            del parent[key]
        elif kind == "renamed" and isinstance(parent, dict):
            parent[draw(st.sampled_from([*STRINGS, str(key) + "s", str(key)[:-1]]))] = parent.pop(key)
        elif kind == "twice" and isinstance(parent, list):
            parent.extend([copy.deepcopy(parent[key])] * draw(st.integers(1, 20)))
        elif kind == "twice":
            parent[f"{key}{draw(st.integers(0, 9))}"] = copy.deepcopy(parent[key])
        elif kind == "moved":
            *from_above, other = draw(st.sampled_from(there))
            found = tree
            try:
                for step in [*from_above, other]:
                    found = found[step]
            except (KeyError, IndexError, TypeError):  # gone by an earlier change
                continue
            parent[key] = copy.deepcopy(found)
        elif kind == "type":
            parent[key] = {"a": parent[key]} if draw(st.booleans()) else draw(st.sampled_from([[], {}, [parent[key]]]))
        else:
            parent[key] = DEEP
    return tree


@st.composite
def nested(draw) -> str:
    """Text of deep nesting that is whole."""
    depth = draw(st.sampled_from([50, 90, 101, 500, 5000, 100_000]))
    begin, end = draw(st.sampled_from([("[", "]"), ('{"a":', "}")]))
    return begin * depth + "1" + end * depth


@st.composite
def json_text(draw, tree: Any) -> bytes:
    text = json.dumps(draw(changed(tree)))
    if DEEP in text:
        text = text.replace(f'"{DEEP}"', draw(nested()))
    raw = text.encode()
    return draw(damaged(raw)) if draw(st.integers(0, 9)) == 5 else raw


def bomb(levels: int, width: int = 9) -> str:
    """Aliases of aliases: `levels` lines that stand for width ** levels values."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


@st.composite
def yaml_text(draw, tree: Any) -> bytes:
    """A tree changed and written, or with what only a text can hold: tags, anchors, keys twice, other documents."""
    in_text = draw(st.integers(0, 9)) > 5
    if not in_text:
        tree = draw(changed(tree))
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=draw(st.booleans()))
    text = text.replace(DEEP, draw(nested())) if DEEP in text else text
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 2)) if lines and in_text else 0):
        where = draw(st.integers(0, len(lines) - 1))
        key, colon, _ = lines[where].partition(":")
        kind = draw(st.sampled_from(["value", "value", "line", "again", "bomb", "indent", "file"]))
        if kind == "value" and colon:
            lines[where] = f"{key}: {draw(st.sampled_from(TEXTS))}"
        elif kind == "line":
            lines.insert(where, draw(st.sampled_from(TEXTS)))
        elif kind == "again":
            lines.insert(where, lines[draw(st.integers(0, len(lines) - 1))])
        elif kind == "bomb":
            names = draw(st.integers(2, 12))
            lines = [
                *bomb(names).splitlines(),
                *lines,
                f"{draw(st.sampled_from(['x', 'model', 'name']))}: *a{names - 1}",
            ]
        elif kind == "indent":
            lines[where] = " " * draw(st.integers(1, 9)) + lines[where].lstrip()
        elif kind == "file":
            lines.append(f"model: {draw(st.sampled_from(STRINGS)).encode('unicode_escape').decode()}")
    raw = "\n".join(lines).encode("utf-8", "surrogatepass")
    return draw(damaged(raw)) if draw(st.integers(0, 9)) == 5 else raw


@st.composite
def damaged(draw, raw: bytes) -> bytes:
    """Bytes flipped, cut, repeated, put in between, or all others."""
    if draw(st.integers(0, 19)) == 7:
        return draw(st.binary(max_size=200))
    data = bytearray(raw)
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "drop", "put", "repeat"]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and data:
            data[at] = draw(st.sampled_from([0, 1, 10, 34, 45, 48, 57, 58, 91, 93, 123, 125, 127, 128, 255]))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 50))]
        elif kind == "put":
            piece = st.sampled_from([t.encode("utf-8", "surrogatepass") for t in (*STRINGS, *TEXTS)])
            data[at:at] = draw(st.binary(max_size=16) | piece)
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 200))] * draw(st.integers(1, 3))
    return bytes(data)
