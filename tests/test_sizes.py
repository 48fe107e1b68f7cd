"""No file and no function of the package is too long to read in one sitting."""

import ast
from pathlib import Path

import pytest

import jaxscale

PACKAGE = Path(jaxscale.__file__).parent
FILES = {p.relative_to(PACKAGE).as_posix(): p for p in sorted(PACKAGE.rglob("*.py"))}
MOST_LINES_OF_A_FILE = 350
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
