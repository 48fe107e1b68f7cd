"""What the demos share: commands of jaxscale, each in a process of its own, and answers side by side."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxscale.cluster.local import die_with


def jaxscale(*words: object, kept: bool = False) -> str:
    """Run a command, which has said why where it fails. `kept`: return what it prints in place of showing it."""
    shown = [str(word) for word in words]
    print("\n$ jaxscale", *(repr(w) if " " in w else w for w in shown), flush=True)
    started = time.perf_counter()
    command, out = [sys.executable, "-m", "jaxscale.cli", *shown], subprocess.PIPE if kept else None
    try:
        done = subprocess.run(command, stdout=out, text=True, check=False, preexec_fn=die_with(os.getpid()))
    except KeyboardInterrupt:  # the command has had it too, and saves
        sys.exit(130)
    if done.returncode:
        sys.exit(done.returncode)
    print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    return done.stdout or ""


def continued(run: Path, prompts: Sequence[str], *options: object) -> list[str]:
    """What a run continues each of the prompts with, greedily."""
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    text = jaxscale("generate", run, *words, "--temperature", 0, *options, "--json", kept=True)
    return [one["text"] for one in json.loads(text)]


def begin(doc: str, *, out: str, steps: int) -> argparse.Namespace:
    """`--out`, emptied, and `--steps`, with these values where they are not given; `doc` is the demo's own."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(out), help="made anew; about 2 GB")
    parser.add_argument("--steps", type=int, default=steps)
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    return given


def show_answers(questions: Sequence[str], found: Mapping[str, Sequence[str]]) -> None:
    """Under each question the answer of each that was asked."""
    for i, question in enumerate(questions):
        print(f"\n{question}")
        for name, texts in found.items():
            print(f"  {name:>12}: {texts[i].strip()!r}")
