"""Run a chapter of the course: its code blocks in order, in this one fresh process, on eight simulated devices.

    python docs/run_chapter.py docs/course/01-matmul.md         # prints what each block prints
    python docs/run_chapter.py -i docs/course/01-matmul.md      # and then leaves you at a prompt with its variables
    python docs/run_chapter.py --figures docs/course/*.md       # rewrites the figures beside the chapters

```python blocks share one namespace, ```bash blocks run through `bash -e` with this Python's `jaxscale` first on PATH,
and any other block is not run. Both kinds run in one temporary directory. What they print, the figures that they save
under figures/ and the pages that they write go to build/course/CHAPTER/, from where the site takes them. The first
error ends the run with code 1; the message names the file and the line. Warnings are errors.
"""

import argparse
import ast
import code
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import types
import warnings
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parent
BUILD = DOCS.parent / "build" / "course"
FENCE = re.compile(r"^(`{3,})([^`]*)$")
FIGURE = re.compile(r"!\[[^\]]*\]\((figures/[^)\s]+)\)")
RUNS = ("python", "bash")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of code, counted from 1, `end` that of the closing fence."""

    language: str
    text: str
    line: int
    end: int


def blocks(markdown: str) -> list[Block]:
    """Every fenced block in order. Raises ValueError for one that is never closed."""
    found, opened = [], None
    for number, text in enumerate(markdown.splitlines(), start=1):
        if opened is None:
            if match := FENCE.match(text):
                opened = (match[1], match[2].strip(), number + 1, [])
        elif text.strip() == opened[0]:
            found.append(Block(opened[1], "\n".join(opened[3]) + "\n", opened[2], number))
            opened = None
        else:
            opened[3].append(text)
    if opened:
        raise ValueError(f"line {opened[2] - 1}: this block is never closed; end it with {opened[0]}")
    return found


def figures(markdown: str) -> dict[str, int]:
    """figures/NAME -> the line that shows it, outside of blocks."""
    inside = {n for b in blocks(markdown) for n in range(b.line - 1, b.end + 1)}
    lines = ["" if n in inside else text for n, text in enumerate(markdown.splitlines(), start=1)]
    prose = "\n".join(lines)
    return {found[1]: prose.count("\n", 0, found.end()) + 1 for found in FIGURE.finditer(prose)}


class ChapterError(Exception):
    """What stopped a chapter: FILE:LINE and why, with the traceback or the output below it."""


def simulate_devices() -> None:
    """As `tests/conftest.py`: before anything imports jax."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg", "SOURCE_DATE_EPOCH": "0", "COLUMNS": "100"}
    os.environ |= {"MATPLOTLIBRC": str(DOCS / "course" / "matplotlibrc"), "NO_COLOR": "1", "TERM": "dumb"}
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    warnings.simplefilter("error")
    import jax

    from jaxscale.parallel.mesh import give_threads

    give_threads(8)
    jax.config.update("jax_num_cpu_devices", 8)


def run_python(block: Block, chapter: Path, namespace: dict) -> str:
    """What it prints. Its lines are numbered as in the chapter, so that tracebacks show the chapter's own."""
    printed = io.StringIO()
    try:
        source = compile("\n" * (block.line - 1) + block.text, str(chapter), "exec")
        with contextlib.redirect_stdout(printed):
            exec(source, namespace)
    except BaseException as error:
        raise ChapterError(explain(error, chapter, block, printed.getvalue())) from error
    return printed.getvalue()


def explain(error: BaseException, chapter: Path, block: Block, printed: str) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(chapter)]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else block.line
    why = f"{type(error).__name__}: {error}" if str(error) else f"{type(error).__name__}: {statement(chapter, line)}"
    rest = "".join(traceback.format_exception(error)).rstrip()
    return f"{shown(chapter)}:{line}: {why}\n\n{printed}{rest}"


def statement(chapter: Path, line: int | None) -> str:
    """The innermost statement that a line of the chapter belongs to: a bare `assert` has no other words."""
    for block in blocks(chapter.read_text()):
        if block.language == "python" and block.line <= (line or 0) < block.end:
            nodes = ast.walk(ast.parse("\n" * (block.line - 1) + block.text))
            inside = [n for n in nodes if isinstance(n, ast.stmt) and n.lineno <= (line or 0) <= (n.end_lineno or 0)]
            return ast.unparse(max(inside, key=lambda n: n.lineno)) if inside else ""
    return ""


def run_bash(block: Block, chapter: Path) -> str:
    """What it prints, on stdout and stderr. The trap tells the line, numbered as in the chapter."""
    script = Path(tempfile.mkdtemp()) / "block.sh"
    script.write_text("trap 'echo \"$LINENO\" >&9' ERR" + "\n" * (block.line - 1) + block.text)
    with tempfile.TemporaryFile("w+") as failed:
        command = ["bash", "-c", f"exec bash -eo pipefail {script} 9>&{failed.fileno()}"]
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                             text=True, pass_fds=[failed.fileno()], check=False)  # fmt: skip
        failed.seek(0)
        line = (failed.read().split() or [block.line])[0]
    shutil.rmtree(script.parent)
    if ran.returncode:
        raise ChapterError(f"{shown(chapter)}:{line}: exit code {ran.returncode}\n\n{ran.stdout}")
    return ran.stdout


def check_figures(chapter: Path, markdown: str) -> None:
    """Every figure that is shown was made here and now, none was made that is not shown, and names do not collide."""
    wanted = figures(markdown)
    made = {p.as_posix() for p in Path("figures").glob("*")}
    for name, line in wanted.items():
        if name not in made:
            raise ChapterError(f"{shown(chapter)}:{line}: {name} was not made by this chapter's code")
        if not name.startswith(f"figures/{chapter.name[:2]}-"):
            raise ChapterError(f"{shown(chapter)}:{line}: {name}: begin its name with {chapter.name[:2]}-")
    if stray := sorted(made - set(wanted)):
        raise ChapterError(f"{shown(chapter)}:1: made but not shown: {', '.join(stray)}")


def run(chapter: Path, out: Path, *, say=print) -> dict:
    """Run a chapter in a temporary directory; returns its namespace. Raises ChapterError at the first error."""
    markdown, results = chapter.read_text(), []
    module = types.ModuleType("chapter")
    sys.modules["chapter"] = module
    shutil.rmtree(out, ignore_errors=True)  # nothing of an earlier run is left where this one fails
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        here = Path(directory).resolve()
        Path("figures").mkdir()
        for block in blocks(markdown):
            if block.language not in RUNS:
                continue
            start = time.perf_counter()
            is_python = block.language == "python"
            text = run_python(block, chapter, module.__dict__) if is_python else run_bash(block, chapter)
            text = tidy(text.replace(f"{here}/", ""))
            seconds = time.perf_counter() - start
            results.append({"line": block.line, "output": text, "seconds": round(seconds, 2)})
            say(f"--- {shown(chapter)}:{block.line}  {seconds:.1f} s\n{text}", end="")
        check_figures(chapter, markdown)
        shutil.copytree("figures", out / "figures")
        (out / "pages").mkdir()
        for page in Path().glob("*.html"):
            shutil.copy(page, out / "pages")
    total = round(time.perf_counter() - began, 1)
    (out / "outputs.json").write_text(json.dumps({"seconds": total, "blocks": results}, indent=1) + "\n")
    say(f"--- {shown(chapter)}: {total} s")
    return module.__dict__


def tidy(text: str) -> str:
    """Without colours, and without what a progress line wrote over."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return "".join(line.split("\r")[-1].rstrip() + "\n" for line in text.replace("\r\n", "\n").splitlines())


def shown(chapter: Path) -> str:
    return chapter.relative_to(DOCS.parent).as_posix() if chapter.is_relative_to(DOCS.parent) else str(chapter)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chapters", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=BUILD, help="where outputs and figures go; default build/course")
    parser.add_argument("--figures", action="store_true", help="also copy the figures to the chapter's own figures/")
    parser.add_argument("-i", "--interactive", action="store_true", help="then a prompt with the chapter's variables")
    arguments = parser.parse_args()
    if len(arguments.chapters) > 1:  # each in a process of its own: JAX starts once
        options = ["--out", str(arguments.out), *(["--figures"] if arguments.figures else [])]
        commands = [[sys.executable, __file__, *options, str(c)] for c in arguments.chapters]
        return max(subprocess.run(command, check=False).returncode for command in commands)
    chapter = arguments.chapters[0].resolve()
    simulate_devices()
    try:
        namespace = run(chapter, arguments.out.resolve() / chapter.stem)
    except (ChapterError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.figures:
        for figure in (arguments.out.resolve() / chapter.stem / "figures").glob("*"):
            shutil.copy(figure, chapter.parent / "figures")
    if arguments.interactive:
        code.interact(local=namespace)
    return 0


if __name__ == "__main__":
    sys.exit(main())
