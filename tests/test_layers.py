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

# room -> the rooms that it may import besides itself, lowest first; a module that stands alone is a room of its own
BELOW = {
    "__init__": set(),
    "files": set(),
    "hardware": {"files"},
    "optimizers": set(),  # what each keeps
    "columns": set(),  # of a batch
    "index": {"files"},  # of a prepared dataset
    "vocabulary": {"files", "index"},
    "config": {"files", "optimizers", "vocabulary"},
    "process": set(),
    "data": {"files", "columns", "index", "vocabulary", "config", "process"},
    "blueprint": {"config"},
    "predict": {"hardware", "optimizers", "config", "blueprint", "index", "columns"},
    "record": {"files", "config"},
    "compiled": {"files", "hardware", "config", "blueprint", "predict", "record"},  # aot in a child process
    "parallel": {"hardware", "process", "config", "blueprint"},
    "private": set(),
    "interop": {"files", "config", "blueprint"},
    "kernels": {"private"},
    "models": {"config", "blueprint", "parallel", "kernels"},
    "objectives": {"config", "columns", "parallel"},
    "blame": set(),
    "codes": set(),
    "cluster": {"files", "private", "codes", "config"},
    "inventory": {"files"},
    # training's state is below the checkpointer and its trainer above: `test_the_layers_form_no_circle` holds each file
    "checkpoint": {"files", "private", "cluster", "inventory", "training", "parallel", "config"},
    "abilities": {"files", "data"},
    # measures by training's step, and is called by its evaluations: no file is in a circle
    "measuring": {"abilities", "config", "blueprint", "data", "models", "objectives", "parallel", "training"},
    "training": {
        "measuring", "files", "process", "hardware", "optimizers", "columns", "data", "config", "blueprint", "predict",
        "compiled", "parallel", "private", "blame", "codes", "cluster", "checkpoint", "models", "objectives",
        "vocabulary", "index", "interop", "rollouts",
    },
    # samples with a model of training's, and is called by it: no file is in a circle
    "rollouts": {
        "files", "hardware", "config", "blueprint", "parallel", "training", "data", "index", "objectives", "checkpoint",
        "cluster", "flag",
    },
    "flag": set(),
    "serving": {"abilities", "measuring", "files", "index", "data", "config", "blueprint", "parallel", "checkpoint",
                "training", "interop", "cluster", "rollouts"},
    "aot": {"hardware", "config", "predict", "compiled", "parallel", "private", "training"},
    # what a law, a ladder and an ability's curve are; `climb` starts processes of the command line's
    "scaling": {
        "files", "hardware", "index", "config", "blueprint", "predict", "compiled", "codes", "local",
    },
    "sweep": {"files", "record", "compiled", "config"},
    "compare": {"record"},
    "bench": {
        "files", "process", "hardware", "data", "config", "blueprint", "predict", "record", "compiled", "parallel",
        "checkpoint", "models", "training", "aot", "sweep",
    },
    "report": {"files", "config", "predict", "record", "hardware", "scaling", "flag"},
    "explain": {"files", "hardware", "optimizers", "config", "blueprint", "predict", "compiled", "report"},
    "trace": {"hardware", "config", "blueprint", "predict", "parallel", "training", "aot", "explain"},
    "puzzles": {"files", "compiled"},
    "exercises": {"models", "parallel"},
    "grader": {"files", "config", "compiled", "parallel", "explain", "puzzles"},
    "local": {"codes"},
    "launch": {"files", "codes", "inventory", "local", "config"},
    "console": {
        "files", "hardware", "index", "data", "config", "blueprint", "predict", "record", "compiled", "inventory",
        "training", "compare", "report", "explain", "puzzles", "serving", "vocabulary", "codes", "scaling",
    },
    "library": {
        "hardware", "process", "config", "predict", "compiled", "parallel", "explain", "serving", "console", "files",
        "record", "training",
    },
    "__main__": {"cli"},
    "cli": {
        "files", "hardware", "process", "data", "config", "predict", "record", "compiled", "blame", "inventory",
        "checkpoint", "training", "sweep", "bench", "compare", "report", "explain", "puzzles", "serving", "console",
        "launch", "parallel", "scaling", "abilities",
    },
}  # fmt: skip
OWN_ROOM = {
    "jaxscale.data.index": "index",
    "jaxscale.data.llmc": "vocabulary",
    "jaxscale.data.vocabulary": "vocabulary",
    "jaxscale.data.columns": "columns",
    "jaxscale.cluster.codes": "codes",
    "jaxscale.cluster.local": "local",
    "jaxscale.cluster.launch": "launch",
    "jaxscale.compiled.aot": "aot",
    "jaxscale.checkpoint.inventory": "inventory",
    "jaxscale.rollouts.flag": "flag",
    "jaxscale.explain.trace": "trace",
    "jaxscale.explain.walk": "trace",
    "jaxscale.explain.jaxpr": "trace",
    "jaxscale.explain.here": "trace",
    "jaxscale.abilities.measure": "measuring",
    "jaxscale.abilities.in_training": "measuring",
    "jaxscale.bench.record": "record",
    "jaxscale.bench.compare": "compare",
    "jaxscale.bench.sweep": "sweep",
    "jaxscale.puzzles.grader": "grader",
    "jaxscale.puzzles.exercises": "exercises",
}
WITH_JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "grain"}
WITH_JAX_ALLOWED = (
    "compiled/aot.py", "compiled/function.py",
    "explain/trace.py", "explain/walk.py", "explain/jaxpr.py", "explain/here.py", "puzzles/grader/",
    "puzzles/exercises/", "console/train.py", "cli/app.py", "abilities/measure.py", "abilities/in_training.py",
)  # fmt: skip
ROOMS_WITHOUT_JAX = (
    "files/", "hardware/", "config/", "data/", "blueprint/", "predict/", "compiled/", "report/", "explain/", "puzzles/",
    "console/", "cli/", "process/", "abilities/", "interop/", "scaling/", "optimizers", "private", "blame",
    "__init__", "__main__",
)  # fmt: skip
NO_JAX = [f for f in FILES if f.startswith(ROOMS_WITHOUT_JAX) and not f.startswith(WITH_JAX_ALLOWED)] + [
    "bench/record.py", "bench/compare.py", "bench/sweep.py", "cluster/codes.py", "cluster/local.py",
    "cluster/launch.py", "checkpoint/inventory.py", "library/views.py", "library/predictions.py", "library/records.py",
    "serving/evaluated.py", "rollouts/flag.py", "serving/prompts.py", "rollouts/rewards.py", "rollouts/estimates.py",
]  # fmt: skip


def room(module: str) -> str:
    """`jaxscale.training.step` -> training."""
    parts = module.split(".")
    for own, name in OWN_ROOM.items():
        if module == own or module.startswith(f"{own}."):
            return name
    return parts[1] if len(parts) > 1 else "__init__"


def core() -> set[str]:
    """Files that the step is made of: `training.step` and all of ours that it imports, and they import."""
    found: set[str] = set()
    wanted = ["jaxscale.training.step"]
    while wanted:
        file = file_of(wanted.pop())
        if file is not None and file not in found:
            found.add(file)
            wanted += [m for m, _ in imports(FILES[file])]
    return found


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
            names = [f"{node.module}.{a.name}" for a in node.names]
            modules = {n if file_of(n) else node.module or "" for n in names}
            found += [(name, id(node) not in lazy) for name in sorted(modules)]
    return found


def file_of(module: str) -> str | None:
    """`jaxscale.config` -> config/__init__.py; None for what is no module of ours."""
    path = module.removeprefix("jaxscale.").replace(".", "/")
    return next((f for f in (f"{path}.py", f"{path}/__init__.py") if f in FILES), None)


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
    """Config, mesh, sharding, model, objective, step: what the step imports is part of it, and nothing else is.

    Kernels are a room of their own, of attention and grouped matmuls: the core calls them by a few names, and they are
    counted beside it. Grouped matmuls have one for each platform, as none of XLA's is right on all of them. About 500
    lines are the families of published models (`config.families`, `config.published`), which a config may begin from,
    650 the objectives beside the next token's, and 170 decode with a cache: methods of the modules that a step trains.
    190 lines are the descriptions of config keys, one under each.
    """
    every = {f: len(FILES[f].read_text().splitlines()) for f in core()}
    kernels = {f: n for f, n in every.items() if f.startswith("kernels/")}
    assert sum(kernels.values()) < 1170, kernels
    lines = {f: n for f, n in every.items() if f not in kernels}
    assert {"config/sections.py", "parallel/sharding.py", "models/transformer.py", "blueprint/decoder.py"} <= set(lines)
    assert sum(lines.values()) < 10_850, lines


def test_one_place_makes_a_program_of_a_config():
    """`training.build` puts mesh, rules, program and batch together; `serve` only has rules of its own for decoding."""
    users = {
        name: {file for file, path in FILES.items() if f"{name}(" in path.read_text()}
        for name in ("make_program", "fit_rules")
    }
    assert users["make_program"] == {"training/step.py", "training/build.py"}
    assert users["fit_rules"] == {"parallel/sharding.py", "training/build.py", "serving/serve.py"}


@pytest.mark.parametrize("name", dir(jaxscale))
def test_every_public_name_is_there(name):
    assert getattr(jaxscale, name) is not None
    assert name in jaxscale.__all__ or name == "__version__"


def test_the_types_are_of_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    typed = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(jaxscale.__all__)
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                there = getattr(importlib.import_module(node.module), alias.name)
                assert getattr(jaxscale, alias.name) is there or alias.name == "explain"


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
        ["config", "keys", "warmup"],
        ["config", "schema"],
        ["plan", "llama3.1-8b", "--topology", "v5p:8x8x8"],
        ["compile", "llama3.1-8b", "--topology", "v5p:9x9"],
        ["report", "nowhere"],
        ["law", "fit", "nowhere.csv"],
        ["law", "forecast", "nowhere.json"],
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
