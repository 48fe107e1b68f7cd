"""Who may name a weight of the decoder or an axis of the mesh: the table and the rules (`blueprint/`), and the model.

Everything else reads them there, so that a new axis or layer changes no formula. Names that mean something else are
listed with what they mean.
"""

import ast
import itertools
import re
from pathlib import Path

import pytest

import jaxscale
from jaxscale import config as cfg
from jaxscale.blueprint.decoder import decoder

PACKAGE = Path(jaxscale.__file__).parent
PYTHON = {p.relative_to(PACKAGE).as_posix(): p for p in sorted(PACKAGE.rglob("*.py"))}
PAGES = {p.relative_to(PACKAGE).as_posix(): p for p in sorted(PACKAGE.rglob("*.js"))}
AXES = frozenset(cfg.AXES)
SIZES = {"num_layers": 1, "embed_dim": 8, "num_heads": 2, "mlp_dim": 8, "vocab_size": 8}
MODELS = [
    cfg.Model(**SIZES, attention_bias=on, mlp_bias=on, qk_norm=on, norm=norm, position=position, mlp=mlp)
    for on, norm, position, mlp in itertools.product(
        (True, False), ("rmsnorm", "layernorm"), ("rope", "learned"), ("swiglu", "gelu")
    )
]
WEIGHTS = frozenset(weight.name for model in MODELS for weight in decoder(model).weights)
OTHER_WORDS = {"out", "position"}  # a matmul's result beside its operands x and w, a run's directory; a place
SHORT = {"q", "k", "v"}  # held where formulas are; elsewhere a letter may be anything

FORMULAS = ("predict/", "explain/", "compiled/")
MAY_NAME = ("blueprint/", "models/", "interop/tables.py")  # the last says what they are called in published files
PUZZLES = ("puzzles/",)  # problems with meshes and arrays of their own

# file -> names that stand there, and mean this
OTHERWISE: dict[str, dict[str, str]] = {
    "predict/advice.py": {"data": "the section of the config"},
    "compiled/store.py": {"data": "the section of the config"},
    "compiled/story.py": {"data": "the section of the config"},
    "explain/page.py": {"data": "the section of the config"},
    "predict/ways.py": dict.fromkeys(SHORT, "activations, as `step.remat` takes them"),
    "explain/attention.py": {"context": "a row of attention, which has no weights"},
    "explain/follow.py": {"context": "a row of attention"},
    "explain/story.py": {
        "context": "a row of attention",
        "data": "the section of the config",
        "k": "a size of a matmul: m, k, n",
        "tensor": "an array",
    },
    "explain/jaxpr.py": dict.fromkeys(("context", "down", "unembedding"), "what is shown for a matmul's operands"),
    "explain/matmuls.js": {"context": "a row of attention", "k": "a size of a matmul: m, k, n"},
    "explain/names.js": {"tensor": "an array, as a class of CSS"},
    "explain/page.js": {"data": "the element that holds the page's figures"},
    "config/lora.py": dict.fromkeys(("gate", "up", "down"), "matrices that a user names in `model.lora.on`"),
    "report/page.js": {"data": "the element that holds the page's figures"},
    "report/numbers.js": {"k": "a thousand"},
}


def names_in(path: Path) -> list[tuple[int, str]]:
    """(line, name) of string literals, keyword arguments, and attributes of a mesh; no docstrings."""
    tree = ast.parse(path.read_text())
    texts = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            found.append((node.lineno, node.value))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] in ("mesh", "dcn", "sizes"):
            found.append((node.lineno, node.attr))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("Mesh", "Dcn", "dict"):
            found += [(node.lineno, keyword.arg) for keyword in node.keywords if keyword.arg]
    return found


def names_in_page(path: Path) -> list[tuple[int, str]]:
    """(line, name) of quoted strings, of properties of a mesh or its sizes, and of keys; no comments."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), path.read_text(), flags=re.DOTALL)
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        line = re.sub(r"(^|\s)//.*", "", line)
        names = re.findall(r"""["'`](\w+)["'`]""", line)
        names += re.findall(r"(?:mesh|sizes|weights|parameters|activations)\??\.(\w+)", line)
        found += [(number, name) for name in names]
    return found


def refused(file: str, found: list[tuple[int, str]], names: frozenset[str]) -> list[str]:
    known = OTHERWISE.get(file, {})
    return [f"{file}:{line}: {name!r}" for line, name in found if name in names and name not in known]


@pytest.mark.parametrize("file", [f for f in PYTHON if f.startswith(FORMULAS)])
def test_formulas_name_neither_an_axis_nor_a_weight(file):
    assert not refused(file, names_in(PYTHON[file]), AXES | WEIGHTS - OTHER_WORDS)


@pytest.mark.parametrize("file", [f for f in PYTHON if not f.startswith((*FORMULAS, *MAY_NAME, *PUZZLES))])
def test_no_other_module_names_a_weight(file):
    assert not refused(file, names_in(PYTHON[file]), WEIGHTS - OTHER_WORDS - SHORT)


@pytest.mark.parametrize("file", PAGES)
def test_no_page_names_an_axis_or_a_weight(file):
    assert not refused(file, names_in_page(PAGES[file]), AXES | WEIGHTS - OTHER_WORDS)


def test_every_exception_is_still_there():
    for file, names in OTHERWISE.items():
        found = names_in_page(PAGES[file]) if file in PAGES else names_in(PYTHON[file])
        assert set(names) <= {name for _, name in found}, file


def test_the_scan_sees_what_it_must_refuse(tmp_path):
    """A literal axis, a keyword, an attribute, a weight; in a page the same."""
    (tmp_path / "a.py").write_text('"""fsdp"""\nsizes["fsdp"]\nMesh(tensor=2)\nconfig.mesh.data\nw = "gate"\n')
    found = refused("a.py", names_in(tmp_path / "a.py"), AXES | WEIGHTS)
    assert sorted(found) == ["a.py:2: 'fsdp'", "a.py:3: 'tensor'", "a.py:4: 'data'", "a.py:5: 'gate'"]
    (tmp_path / "a.js").write_text('// "fsdp"\nlet a = sizes["fsdp"], b = mesh.tensor, c = weights.find("down");\n')
    found = refused("a.js", names_in_page(tmp_path / "a.js"), AXES | WEIGHTS)
    assert sorted(found) == ["a.js:2: 'down'", "a.js:2: 'fsdp'", "a.js:2: 'tensor'"]
