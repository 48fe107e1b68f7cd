"""The layering, read from the imports: a room knows the rooms below it, and never those above or beside."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import jaxscale

PACKAGE = Path(jaxscale.__file__).parent
FILES = {p.relative_to(PACKAGE).as_posix(): p for p in sorted(PACKAGE.rglob("*.py"))}

# room -> the rooms that it may import besides itself; a module that stands alone is a room of its own
BELOW = {
    "__init__": set(),
    "redact": set(),
    "reading": set(),
    "urls": {"redact"},
    "index": {"reading"},  # of a prepared dataset
    "vocabulary": {"index", "reading"},
    "private": set(),
    "spelling": set(),
    "typed": {"reading"},
    "overrides": {"reading", "spelling", "typed"},
    "config_files": {"reading", "spelling", "urls"},
    "config_errors": {"overrides", "redact"},
    "mesh_text": set(),
    "whole": set(),
    "optimizers": set(),  # what each keeps beside the weights
    "config": {
        "mesh_text",
        "optimizers",
        "config_errors",
        "config_files",
        "redact",
        "reading",
        "urls",
        "overrides",
        "spelling",
        "typed",
        "vocabulary",
    },
    "chips": set(),
    "hardware": {"chips"},
    "quiet": set(),
    "heap": set(),
    "columns": set(),  # of a batch
    "data": {"columns", "whole", "reading", "quiet", "urls", "places", "index", "vocabulary", "config"},
    "blueprint": {"mesh_text", "config"},
    "machine_names": {"hardware", "spelling"},
    "topology": {"machine_names", "hardware"},
    "stated": {"topology", "machine_names", "hardware"},
    "analysis": {"whole", "mesh_text", "blueprint", "topology", "hardware", "optimizers", "config"},
    "parallel": {"mesh_text", "blueprint", "chips", "hardware", "config", "quiet"},
    "models": {"parallel", "blueprint", "hardware", "config"},
    "objectives": {"parallel", "columns", "config"},
    "codes": set(),
    "local": {"codes"},
    "cluster": {"private", "codes", "redact", "config"},
    "places": {"urls"},
    "lock": set(),
    "inventory": {"places", "lock", "reading", "urls"},
    "launch": {"local", "codes", "jsonl", "places", "inventory", "redact", "config"},
    "training": {
        "whole",
        "blame",
        "config_files",
        "optimizers",
        "private",
        "urls",
        "places",
        "inventory",
        "lock",
        "cluster",
        "codes",
        "jsonl",
        "redact",
        "reading",
        "data",
        "columns",
        "index",
        "objectives",
        "models",
        "parallel",
        "blueprint",
        "analysis",
        "hardware",
        "config",
    },
    "aot": {
        "private",
        "training",
        "parallel",
        "analysis",
        "topology",
        "hardware",
        "config",
    },  # compiles the trainer's own step
    "record": {"whole", "reading"},
    "compare": {"record"},
    "sweep": {"record", "reading", "analysis", "config"},
    "bench": {
        "mesh_text",
        "record",
        "redact",
        "sweep",
        "jsonl",
        "aot",
        "training",
        "data",
        "models",
        "parallel",
        "blueprint",
        "analysis",
        "topology",
        "hardware",
        "config",
    },
    "trace": {"explain", "training", "parallel", "analysis", "aot", "topology", "hardware", "config"},
    "explain": {  # trace in a child process
        "whole",
        "mesh_text",
        "predict",
        "report",
        "blueprint",
        "analysis",
        "topology",
        "hardware",
        "optimizers",
        "config",
    },
    "console_explain": {"mesh_text", "explain", "console_predict", "analysis", "topology", "hardware", "config"},
    "cli_explain": {"whole", "explain", "console_explain", "predict", "stated", "topology", "config"},
    "predict": {"record", "analysis", "topology", "hardware", "config"},  # aot in a child process
    "jsonl": {"reading"},
    "report": {"whole", "mesh_text", "record", "jsonl", "redact", "reading", "analysis", "hardware", "config"},
    "console": {"jsonl", "codes", "report", "training", "data", "models", "parallel", "analysis", "hardware", "config"},
    "console_predict": {"mesh_text", "predict", "analysis", "topology", "hardware", "config"},
    "console_plan": {"mesh_text", "console_predict", "predict", "analysis", "topology", "hardware", "config"},
    "console_bench": {"mesh_text", "record", "compare"},
    "cli_bench": {"heap", "redact", "bench", "record", "console_bench", "compare", "sweep", "parallel", "config"},
    "console_data": {"data", "index"},
    "cli_data": {"console_data", "data"},
    "cli_launch": {"launch"},
    "puzzles": {"analysis", "redact"},  # the grader in a child process
    "exercises": set(),
    "grader": {"mesh_text", "puzzles", "explain", "parallel", "analysis", "redact"},
    "console_puzzle": {"puzzles"},
    "cli_puzzle": {"puzzles", "console_puzzle"},
    "console_checkpoint": {"mesh_text", "training", "places", "inventory", "urls"},
    "cli_checkpoint": {"training", "places", "inventory", "console_checkpoint", "urls", "config"},
    "blame": set(),
    "cli_usage": {"config", "overrides", "spelling", "urls"},
    "cli": {
        "whole",
        "blame",
        "cli_usage",
        "redact",
        "heap",
        "cli_bench",
        "cli_data",
        "cli_launch",
        "cli_checkpoint",
        "cli_explain",
        "cli_puzzle",
        "console",
        "console_predict",
        "console_plan",
        "predict",
        "report",
        "training",
        "data",
        "models",
        "parallel",
        "analysis",
        "stated",
        "topology",
        "hardware",
        "config",
        "quiet",
    },
}
OWN_ROOM = {
    "jaxscale.data.columns": "columns",
    "jaxscale.data.index": "index",
    "jaxscale.data.llmc": "vocabulary",
    "jaxscale.data.vocabulary": "vocabulary",
    "jaxscale.cluster.codes": "codes",
    "jaxscale.cluster.local": "local",
    "jaxscale.analysis.aot": "aot",
    "jaxscale.explain.trace": "trace",
    "jaxscale.explain.jaxpr": "trace",
    "jaxscale.bench.record": "record",
    "jaxscale.bench.compare": "compare",
    "jaxscale.bench.sweep": "sweep",
    "jaxscale.training.jsonl": "jsonl",
    "jaxscale.puzzles.grader": "grader",
    "jaxscale.puzzles.exercises": "exercises",
    "jaxscale.training.places": "places",
    "jaxscale.training.inventory": "inventory",
    "jaxscale.training.lock": "lock",
}
WITH_JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "grain"}
ALONE = (
    "bench/record",
    "bench/compare",
    "bench/sweep",
    "training/jsonl",
    "training/lock",
    "cluster/codes",
    "cluster/local",
    "launch",
    "cli_launch",
    "training/places",
    "training/inventory",
    "urls",
    "console_bench",
    "console_checkpoint",
    "console_puzzle",
    "cli_puzzle",
    *(f"puzzles/{name}" for name in ("__init__", "catalogue", "hints", "verdict", "files", "grade")),
    "cli_bench",
    "cli_data",
    "console_data",
    "redact",
    "reading",
    "spelling",
    "typed",
    "overrides",
    "private",
    "blame",
    "cli_usage",
    "cli_checkpoint",
    "config_errors",
    "config_files",
    "config",
    "hardware",
    "whole",
    "mesh_text",
    "optimizers",
    "topology",
    "machine_names",
    "stated",
    "predict",
    "console_predict",
    "console_plan",
    "console_explain",
    "cli_explain",
    "quiet",
    "heap",
    "__init__",
)
WITH_JAX_ALLOWED = ("analysis/aot.py", "explain/trace.py", "explain/jaxpr.py")
NO_JAX = [f"{name}.py" for name in ALONE] + [
    f
    for f in FILES
    if f.startswith(("data/", "analysis/", "blueprint/", "report/", "explain/", "chips/")) and f not in WITH_JAX_ALLOWED
]
ROOMS = ("parallel/", "models/", "objectives/")
TRAINING = ("optimizer", "step", "build", "feed", "metrics", "run", "trainer", "checkpoint")
CORE = [
    "config.py",
    *(f for f in FILES if f.startswith(ROOMS) and f != "parallel/compiler.py"),  # that is a table of XLA's options
    *(f"training/{name}.py" for name in TRAINING),
]


def room(module: str) -> str:
    """`jaxscale.training.step` -> training."""
    parts = module.split(".")
    for own, name in OWN_ROOM.items():
        if module == own or module.startswith(f"{own}."):
            return name
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether it is imported when the file is) of every import, `from jaxscale import x` as jaxscale.x."""
    tree = ast.parse(path.read_text())
    lazy = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in lazy) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = [f"jaxscale.{a.name}" for a in node.names] if node.module == "jaxscale" else [node.module or ""]
            found += [(name, id(node) not in lazy) for name in names]
    return found


@pytest.mark.parametrize("file", FILES)
def test_a_room_imports_only_from_below(file):
    own = room("jaxscale." + file.removesuffix(".py").replace("/", "."))
    assert own in BELOW, f"{file} is in a room that has no place among the layers"
    for module, _ in imports(FILES[file]):
        if module.split(".")[0] == "jaxscale" and room(module) != own:
            assert room(module) in BELOW[own], f"{file} imports {module}, which is not below {own}"


@pytest.mark.parametrize("file", NO_JAX)
def test_no_jax_where_none_is_needed(file):
    """Neither itself nor by a library that brings it along; grain only once batches are wanted."""
    for module, at_import in imports(FILES[file]):
        library = module.split(".")[0]
        assert library not in WITH_JAX or (file, library, at_import) == ("data/batches.py", "grain", False), module


def test_the_layers_form_no_circle():
    """Lazy imports included: every import within the package, as a graph, is a tree of layers."""
    edges = {}
    for file, path in FILES.items():
        name = "jaxscale." + file.removesuffix(".py").replace("/", ".")
        edges[name] = {m for m, _ in imports(path) if m.startswith("jaxscale.")}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"circle: {' -> '.join([*above, name])}"
        if name not in done:
            for other in edges.get(name, ()):
                visit(other, (*above, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_the_core_stays_short_enough_to_read():
    lines = {f: len(FILES[f].read_text().splitlines()) for f in CORE}
    assert sum(lines.values()) < 3500, lines


def test_one_place_makes_a_program_of_a_config():
    """`training.build` puts mesh, rules, program and batch together; `serve` only has rules of its own for decoding."""
    users = {
        name: {file for file, path in FILES.items() if f"{name}(" in path.read_text()}
        for name in ("make_program", "fit_rules")
    }
    assert users["make_program"] == {"training/step.py", "training/build.py"}
    assert users["fit_rules"] == {"parallel/sharding.py", "training/build.py", "training/serve.py"}


@pytest.mark.parametrize("name", dir(jaxscale))
def test_every_public_name_is_there(name):
    assert getattr(jaxscale, name) is not None
    assert name in jaxscale.__all__ or name == "__version__"


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"jaxscale has no trian; it has .*train"):
        jaxscale.trian  # noqa: B018


MODULES = ["jaxscale", *("jaxscale." + f.removesuffix(".py").replace("/", ".") for f in NO_JAX if f != "__init__.py")]


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\nLOADED', *{{m.split('.')[0] for m in sys.modules}})"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return set(out.rsplit("LOADED", 1)[1].split())


def test_importing_is_light():
    """One interpreter for all modules that promise it."""
    loaded = loaded_after("\n".join(f"import {m.removesuffix('.__init__')}" for m in MODULES))
    assert "jaxscale" in loaded
    assert not loaded & WITH_JAX


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["data", "prepare", "--help"],
        ["train", "nope"],
        ["launch", "--processes", "2", "--", "train", "nope"],
        ["chips"],
        ["plan", "llama3.1-8b", "--topology", "v5p:8x8x8"],
        ["compile", "llama3.1-8b", "--topology", "v5p:9x9"],
        ["report", "nowhere"],
        ["checkpoint", "verify", "--help"],
        ["checkpoint", "list", "nowhere"],
        ["puzzle", "list"],
        ["puzzle", "hint", "specs"],
        ["puzzle", "check", "nowhere"],
    ],
)
def test_answers_without_jax(arguments):
    loaded = loaded_after(
        f"import sys; sys.argv = ['jaxscale', *{arguments!r}]\nfrom jaxscale.cli import main\n"
        "try: main()\nexcept SystemExit: pass"
    )
    assert "typer" in loaded
    assert not loaded & WITH_JAX


def test_every_module_imports():
    for file in FILES:
        importlib.import_module("jaxscale." + file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
