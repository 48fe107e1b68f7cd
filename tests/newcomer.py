"""A newcomer's half hour: README's lines as they stand, in a fresh clone and from the wheel in an empty environment.

    python tests/newcomer.py          # needs git, make and the package index; about six minutes on two cores
    python tests/newcomer.py --here   # in this checkout, which is a fresh clone already

Lines of README's ```bash blocks, and lines after `$ ` in its ```text blocks, are commands. Each must end with code 0,
and print what README shows below it: numbers may differ, words may not.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(bash|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WITHOUT_NUMBERS = re.compile(r"[\d.,:+-]+")
PROMPT = "$ "


def commands(readme: str) -> list[tuple[str, list[str]]]:
    """(command, the lines that are shown below it) in order."""
    found: list[tuple[str, list[str]]] = []
    for language, text in BLOCK.findall(readme):
        for line in text.splitlines():
            if language == "bash" or line.startswith(PROMPT):
                command = line.removeprefix(PROMPT).partition("  #")[0].strip()
                if command:
                    found.append((command, []))
            elif found:
                found[-1][1].append(line)
    return found


def words(line: str) -> list[str]:
    return [word for word in WITHOUT_NUMBERS.sub(" ", line).split() if any(c.isalpha() for c in word)]


def missing(shown: list[str], printed: str) -> list[str]:
    """Lines whose words no printed line has."""
    there = [set(words(line)) for line in printed.splitlines()]
    return [line for line in shown if not any(set(words(line)) <= own for own in there)]


def run(command: str, where: Path, path: Path | None = None) -> str:
    """Output of a command, which is also printed; ends this process where it fails."""
    print(f"$ {command}", flush=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "XLA_FLAGS", "EXTRAS")}
    environment["COLUMNS"] = "160"
    if path:
        environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    began = time.monotonic()
    ran = subprocess.run(
        ["bash", "-c", command], cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(ran.stdout, f"--- {time.monotonic() - began:.0f} s", sep="", flush=True)
    if ran.returncode:
        sys.exit(f"{command}: exit code {ran.returncode}")
    return ran.stdout


def from_a_clone(clone: Path) -> None:
    """README in a clone: each line as it stands, and what it shows of their outputs."""
    typed = [one for one in commands((clone / "README.md").read_text()) if one[0] != "make test"]  # a stage of its own
    assert typed[0][0] == "make quickstart"
    wrong = []
    for command, shown in typed:
        printed = run(command, clone, clone / ".venv" / "bin")
        wrong += [f"{command}: README shows {line!r}" for line in missing(shown, printed)]
    if wrong:
        sys.exit("\n".join(wrong))


def from_the_wheel(where: Path) -> None:
    """The built wheel in an environment with nothing else."""
    run(f"{sys.executable} -m venv {where / 'env'}", where)
    own = where / "env" / "bin"
    run(f"{own / 'pip'} wheel --quiet --no-deps --wheel-dir {where} {ROOT}", where)
    run(f"{own / 'pip'} install --quiet --no-compile {next(where.glob('jaxscale-*.whl'))}", where)
    elsewhere = where / "elsewhere"
    elsewhere.mkdir()
    run("jaxscale --version", elsewhere, own)
    run("jaxscale quickstart steps=20 optimizer.warmup_steps=5", elsewhere, own)
    run("jaxscale init --text data/stdlib --machine h100:8 --hours 1", elsewhere, own)
    run("jaxscale explain quickstart --compiler none -o explain.html", elsewhere, own)
    run("python -m jaxscale report runs/quickstart -o report.html", elsewhere, own)


def main() -> None:
    where = Path(tempfile.mkdtemp(prefix="newcomer-"))
    try:
        clone = ROOT
        if "--here" not in sys.argv[1:]:
            clone = where / "jaxscale"
            run(f"git clone --quiet --no-hardlinks {ROOT} {clone}", where)
        from_a_clone(clone)
        from_the_wheel(where)
    finally:
        shutil.rmtree(where, ignore_errors=True)


if __name__ == "__main__":
    main()
