"""A compile in a process of its own: a compiler that dies takes only that one with it. No jax here.

The child (`compiled.aot.main`) reads one JSON line on stdin, writes its answer to a file, and ends when stdin does.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxscale import config as cfg
from jaxscale.compiled.store import Compiled, from_values
from jaxscale.hardware.topology import Topology

ROOT = Path(__file__).parent.parent.parent
GLOG = re.compile(r"^([FEW])\d{4} [\d:.]+\s+\d+ [\w./-]+:\d+\] ")  # `F0000 00:00:1795.5 2493 flags.cc:234] `
STACK = re.compile(
    r"^\s*(@|#\d|\*\*\*|PC:|File \"|Current thread|Thread 0x|Extension modules|Fatal Python error|-{9,}$|"
    r"For simplicity, JAX has removed|$)"
)


def compile_apart(config: cfg.Config, topology: Topology, *, save: Path | None, verbose: bool) -> Compiled:
    """What `aot.compile_step` gives, from a fresh interpreter.

    Raises ValueError with the child's own words where it refuses, and with its last ones where it dies.
    """
    request = {
        "config": config.model_dump(mode="json"),
        "topology": replace(topology, slices=1).name,
        "slices": topology.slices,
        "save": save and str(save.absolute()),
    }
    return from_values(ask("jaxscale.compiled.aot", request, f"the compiler for {topology.name}", verbose=verbose))


def ask(module: str, request: dict[str, Any], who: str, *, verbose: bool) -> dict[str, Any]:
    """The answer of a module to a request, from a fresh interpreter; `who` that is, in an error."""
    with tempfile.TemporaryDirectory(prefix="jaxscale-") as folder, tempfile.TemporaryFile() as heard:
        out = Path(folder) / "answer.json"
        code = run(module, request | {"out": str(out)}, None if verbose else heard)
        if code or not out.exists():
            heard.seek(0)
            reason = last_words(heard.read().decode(errors="replace"))
            raise ValueError(f"{who} ended by {how_it_ended(code)}{reason and ': ' + reason}")
        answer = json.loads(out.read_text())
    if "refused" in answer:
        raise ValueError(answer["refused"])
    return answer


def run(module: str, request: dict[str, Any], stderr: Any) -> int:
    """The child's exit code. stdin stays open until it ends, so that it ends with us."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert child.stdin
    try:
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
        return child.wait()
    except BrokenPipeError:
        return child.wait()
    finally:
        child.kill()  # after Ctrl-C; compilers do not listen
        child.wait()
        with contextlib.suppress(BrokenPipeError):  # what was written and never read
            child.stdin.close()


def how_it_ended(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def last_words(text: str) -> str:
    """The line that says why: a fatal one of the log, or else the last that is of no stack trace."""
    lines = [line.strip() for line in text.splitlines() if not STACK.match(line)]
    fatal = [line for line in lines if (match := GLOG.match(line)) and match[1] == "F"]
    line = (fatal or lines or [""])[-1]
    return GLOG.sub("", line)[:300]
