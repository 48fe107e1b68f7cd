"""The process that grades: one file after another from stdin, events and verdicts as JSON lines.

Memory beyond what jax itself needs is limited; a file that is not done in time ends the process, with Python's stack
on stderr; and it ends when its parent does.
"""

import faulthandler
import json
import os
import resource
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import jax

from jaxscale.parallel.mesh import give_threads
from jaxscale.puzzles.catalogue import Puzzle, find
from jaxscale.puzzles.grader.errors import MEMORY, NOT_YET, Stop, tell
from jaxscale.puzzles.grader.judge import judge
from jaxscale.puzzles.grader.tasks import DEVICES
from jaxscale.puzzles.verdict import Verdict


def main() -> None:
    pipe, seconds = int(sys.argv[1]), float(sys.argv[2])
    os.set_inheritable(pipe, False)
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # input() finds nothing, and takes no request away
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    start_devices()
    limit_memory()
    before = dict(jax.config.values)
    with os.fdopen(pipe, "w") as events:
        for line in requests:
            request = json.loads(line)
            faulthandler.dump_traceback_later(seconds, exit=True)
            verdict = grade(request, events)
            faulthandler.cancel_dump_traceback_later()
            say(events, verdict=asdict(verdict), spoilt=dict(jax.config.values) != before)


def end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def start_devices() -> None:
    give_threads(DEVICES)
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.devices()


def limit_memory() -> None:
    """Of data, as the kernel counts it now, and what a puzzle may need; no core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = Path("/proc/self/status")
    if status.exists():  # elsewhere the kernel does not hold this limit
        (data_bytes,) = (
            int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmData")
        )
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes + MEMORY, data_bytes + MEMORY))


def say(events: IO[str], **values: Any) -> None:
    events.write(json.dumps(values) + "\n")
    events.flush()


def grade(request: dict[str, str], events: IO[str]) -> Verdict:
    """Load a file and judge it; whatever it raises becomes a line."""
    puzzle, path = find(request["puzzle"]), request["file"]
    try:
        checks = judge(puzzle, lambda: load(path, puzzle, events), lambda what: say(events, doing=what))
        return Verdict(request["shown"], puzzle.name, tuple(checks))
    except BaseException as error:  # SystemExit and MemoryError too: the learner's code may raise anything
        problem = tell(error, path, puzzle)
        return Verdict(request["shown"], puzzle.name, problem=problem, not_yet=problem.startswith(NOT_YET))


def load(path: str, puzzle: Puzzle, events: IO[str]) -> ModuleType:
    """The learner's file as a module, under no name that anybody imports."""
    say(events, doing="while its own lines ran")
    module = ModuleType("exercise")
    module.__file__ = path
    exec(compile(Path(path).read_text(encoding="utf-8"), path, "exec"), module.__dict__)
    if not callable(getattr(module, puzzle.function, None)):
        raise Stop(
            f"defines no function {puzzle.function}; `jaxscale puzzle get {puzzle.name} -o FILE` writes a fresh file"
        )
    return module


if __name__ == "__main__":
    main()
