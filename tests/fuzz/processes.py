"""The same inputs, given to a real `jaxscale` process: its exit code and its words."""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from hypothesis import strategies as st

from fuzz import checkpoints
from fuzz.reports import measured_cases, record_cases, records, run_cases
from fuzz.targets import REPOSITORY, RUN, Case, Target, config_cases, override_cases
from fuzz.tokens import index_cases, tokenizer_cases

SECONDS = 120  # of one process, to find hangs: some import jax and compile
TEXT = b"def one():\n    return 1\n" * 50
TINY = {
    "name": "tiny", "out": "out", "steps": 1, "model": checkpoints.SMALL, "mesh": {"data": 1},
    "data": {"path": "data", "batch_size": 1, "seq_len": 8}, "metrics": {"tensorboard": False},
    "runtime": {"platform": "cpu", "compilation_cache": None},
}  # fmt: skip


def cases(folder: Path) -> st.SearchStrategy[Case]:
    """A case of another target, and the words of a verb that reads its files."""
    run, tiny = (yaml.safe_dump(values).encode() for values in (RUN, TINY))
    whole = checkpoints.run_files(folder / "made")
    sources = [
        (config_cases(folder), {}, ["show", "run.yaml", "--devices", "4"]),
        (config_cases(folder), {}, ["plan", "run.yaml", "--topology", "h100:8"]),
        (override_cases(folder), {}, ["plan", "run.yaml", "--topology", "v5p:2x2x2"]),
        (index_cases(folder / "tokens"), {"tiny.yaml": tiny}, ["train", "tiny.yaml"]),
        (tokenizer_cases(folder / "bpe"), {"text/a.txt": TEXT},
         ["data", "prepare", "--text", "text", "--tokenizer", "tokenizer.json", "--out", "made"]),
        (run_cases(), {}, ["report", "run", "-o", "page.html"]),
        (record_cases(records()), {}, ["report", ".", "-o", "page.html"]),
        (record_cases(records()), {}, ["bench", "compare", "a.json", "b.json"]),
        (measured_cases(folder), {"run.yaml": run},
         ["plan", "run.yaml", "--topology", "h100:8", "--measured", "links.json"]),
        (checkpoints.cases(whole), {}, ["generate", "run", "--max-new-tokens", "2", "--prompt", "a"]),
    ]  # fmt: skip

    def given(case: Case, files: dict[str, bytes], words: list[str]) -> Case:
        overrides = case.arguments if words[-1] == "v5p:2x2x2" else ()
        return Case({**files, **case.files}, (*words, *overrides))

    return st.one_of([source.map(lambda case, f=files, w=words: given(case, f, w)) for source, files, words in sources])


def read(directory: Path, *words: str) -> None:
    """ValueError for what the process refuses in one line; RuntimeError for any other way to fail."""
    if any("\0" in word or word.encode("utf-8", "replace").decode() != word for word in words):
        return  # no process can be given such words
    home = directory.parent / "home"
    home.mkdir(exist_ok=True)
    env = os.environ | {"HOME": str(home), "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "jaxscale.cli", *words]
    done = subprocess.run(command, cwd=directory, env=env, capture_output=True, timeout=SECONDS, check=False)
    out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    if "Traceback" in out + err or done.returncode not in (0, 1, 2):
        raise RuntimeError(f"{words}: exit code {done.returncode}: {(out + err)[-1500:]}")
    if done.returncode == 2:
        *_, last = err.splitlines() or [""]
        if not last.startswith("error: "):
            raise RuntimeError(f"{words}: exit code 2 without an error: {err[-500:]!r}")
        raise ValueError(last)


TARGETS = [Target("process", 50, cases, read, ("",), outside_may_be_read=True, seconds=SECONDS + 20)]
