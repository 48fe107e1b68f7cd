"""No file and no function of the package is too long to read in one sitting, and names say what they hold."""

import ast
from pathlib import Path

import pytest

import jaxscale

PACKAGE = Path(jaxscale.__file__).parent
FILES = {p.relative_to(PACKAGE).as_posix(): p for p in sorted(PACKAGE.rglob("*.py"))}
MOST_LINES_OF_A_FILE = 350
VAGUE = {"found", "own", "told", "words"}  # names of anything
MOST_LINES_OF_A_FUNCTION = 60  # from `def` to its last line, docstring included


@pytest.mark.parametrize("file", FILES)
def test_files_and_functions_are_short(file):
    text = FILES[file].read_text()
    assert len(text.splitlines()) <= MOST_LINES_OF_A_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MOST_LINES_OF_A_FUNCTION, f"{file}: {node.name} has {lines} lines"


@pytest.mark.parametrize("file", FILES)
def test_names_say_what_they_hold(file):
    """Of the names inside functions: a field of a class says more with its class's name."""
    functions = [n for n in ast.walk(ast.parse(FILES[file].read_text())) if isinstance(n, ast.FunctionDef)]
    nodes = [n for function in functions for n in ast.walk(function)]
    names = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    names |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    assert not names & VAGUE
