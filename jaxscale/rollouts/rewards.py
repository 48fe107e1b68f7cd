"""Rewards by a function of the user's, in processes of their own: one that raises, hangs or dies stops no run.

A function is called as TRL calls one: `f(prompts, completions, **columns)`, lists of the same length, to a list of
numbers or None. Its code runs: so only a config or a command line may name it, no dataset and no checkpoint.
The processes know nothing of JAX.
"""

import importlib
import importlib.util
import math
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

Columns = dict[str, list[Any]]
PIECE = 64  # samples of one call of the function, at most
START_SECONDS = 60.0  # for importing it


def is_function(name: str) -> bool:
    """Is it `module:function` or `file.py:function`, and not a run's directory?"""
    head, colon, tail = name.rpartition(":")
    return bool(colon and head) and tail.isidentifier()


def usable_cores() -> int:
    """Of this process; macOS and Windows only know those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_function(name: str) -> Callable[..., Any]:
    """The function itself. Raises ValueError, in one line, where it is not there."""
    head, _, tail = name.rpartition(":")
    try:
        if head.endswith(".py"):
            spec = importlib.util.spec_from_file_location("jaxscale_reward", Path(head).expanduser())
            if spec is None or spec.loader is None:
                raise ImportError(f"{head} is no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            if os.getcwd() not in sys.path:
                sys.path.insert(0, os.getcwd())
            module = importlib.import_module(head)
    except BaseException as error:
        raise ValueError(f"reward {name}: {head} cannot be imported ({one_line(error)})") from None
    function: Callable[..., Any] | None = getattr(module, tail, None)
    if not callable(function):
        raise ValueError(f"reward {name}: {head} has no function {tail}")
    return function


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")


# --- the processes --------------------------------------------------------------------------------------------


def serve(name: str, connection: Connection) -> None:
    """Answer calls until the other side hangs up: (True, values) or (False, what went wrong)."""
    try:
        function = find_function(name)
    except ValueError as error:
        connection.send((False, str(error)))
        return
    connection.send((True, None))
    while True:
        try:
            prompts, completions, columns = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            connection.send((True, checked(function(prompts, completions, **columns), len(prompts))))
        except KeyboardInterrupt:
            return
        except BaseException as error:
            connection.send((False, one_line(error)))


def checked(values: Any, count: int) -> list[float | None]:
    """What a function gave, as plain numbers; what is none is None. Raises ValueError for another length."""
    rewards = list(values)
    if len(rewards) != count:
        raise ValueError(f"{len(rewards)} rewards for {count} samples")
    return [float(v) if is_number(v) else None for v in rewards]


def is_number(value: Any) -> bool:
    try:
        return value is not None and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


class Worker:
    """One process, and what it is asked."""

    def __init__(self, name: str):
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(name, other), daemon=True)
        with without_main():
            self.process.start()
        other.close()
        self.piece: slice | None = None
        self.until = 0.0

    def receive(self) -> tuple[bool, Any]:
        """Raises EOFError where the process has died."""
        answer: tuple[bool, Any] = self.connection.recv()
        return answer

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


class without_main:
    """A spawned process does not run the caller's main script again, which would load JAX and train."""

    def __enter__(self) -> None:
        main = sys.modules["__main__"]
        self.kept: dict[str, Any] = {n: main.__dict__.pop(n) for n in ("__file__", "__spec__") if n in main.__dict__}
        main.__spec__ = None

    def __exit__(self, *_: Any) -> None:
        sys.modules["__main__"].__dict__.update(self.kept)


class Function:
    """A reward function in some processes. Call it with samples; what has no reward is None, and is counted.

    Attributes:
        failures: cause -> how many samples have had no reward by it, since `told`.
    """

    def __init__(self, name: str, seconds: float, processes: int):
        self.name, self.seconds = name, seconds
        self.failures: Counter[str] = Counter()
        self.workers = [Worker(name) for _ in range(processes)]
        for worker in self.workers:
            self.await_start(worker)

    def await_start(self, worker: Worker) -> None:
        """ValueError where the function cannot be imported there."""
        if not worker.connection.poll(START_SECONDS):
            self.close()
            raise ValueError(f"reward {self.name}: its import takes longer than {START_SECONDS:g} s; make it faster")
        try:
            good, cause = worker.receive()
        except (EOFError, OSError):
            good, cause = False, f"reward {self.name}: its process died as it was imported"
        if not good:
            self.close()
            raise ValueError(cause)

    def __call__(self, prompts: list[str], completions: list[str], columns: Columns) -> list[float | None]:
        """Rewards in the samples' order; a piece that takes longer than `seconds` has none, and its process ends."""
        rewards: list[float | None] = [None] * len(prompts)
        size = max(1, min(PIECE, math.ceil(len(prompts) / len(self.workers))))
        waiting = [slice(i, min(i + size, len(prompts))) for i in range(0, len(prompts), size)][::-1]

        def ask(worker: Worker) -> None:
            worker.piece = waiting.pop() if waiting else None
            if worker.piece is not None:
                part = {name: values[worker.piece] for name, values in columns.items()}
                worker.until = time.monotonic() + self.seconds
                try:
                    worker.connection.send((prompts[worker.piece], completions[worker.piece], part))
                except OSError:
                    ask(self.replaced(worker, "its process died"))

        for worker in self.workers:
            ask(worker)
        while busy := [w for w in self.workers if w.piece is not None]:
            ready = wait([w.connection for w in busy], timeout=max(0.0, min(w.until for w in busy) - time.monotonic()))
            for worker in busy:
                if worker.connection in ready:
                    ask(self.answered(worker, rewards))
                elif time.monotonic() >= worker.until:
                    ask(self.replaced(worker, f"no answer within {self.seconds:g} s"))
        return rewards

    def answered(self, worker: Worker, rewards: list[float | None]) -> Worker:
        """Take its values; the worker that goes on."""
        assert worker.piece is not None
        try:
            good, values = worker.receive()
        except (EOFError, OSError):
            return self.replaced(worker, "its process died")
        if good:
            rewards[worker.piece] = values
            self.count("NaN, infinite or no number", sum(v is None for v in values))
        else:
            self.count(values, worker.piece.stop - worker.piece.start)
        return worker

    def replaced(self, worker: Worker, cause: str) -> Worker:
        """A fresh process in its place."""
        assert worker.piece is not None
        self.count(cause, worker.piece.stop - worker.piece.start)
        worker.end()
        fresh = Worker(self.name)
        self.workers[self.workers.index(worker)] = fresh
        self.await_start(fresh)
        return fresh

    def count(self, cause: str, samples: int) -> None:
        if samples:
            self.failures[cause] += samples

    def told(self) -> str | None:
        """A line on what has had no reward since it was last asked; None: nothing."""
        if not self.failures:
            return None
        causes = "; ".join(f"{n:,} of them: {cause}" for cause, n in self.failures.most_common(3))
        line = f"{self.name}: no reward for {self.failures.total():,} samples ({causes})"
        self.failures.clear()
        return line

    def close(self) -> None:
        for worker in self.workers:
            worker.end()
        self.workers = []


def open_function(name: str, *, seconds: float, processes: int | None = None) -> Function:
    """The function of this name, `module:function` or `file.py:function`, in processes of its own.

    Args:
        seconds: that it has for at most 64 samples.
        processes: None: as many as this process has cores, 8 at most.

    Raises:
        ValueError: it is not there, or cannot be imported.
    """
    return Function(name, seconds, processes or min(8, usable_cores()))
