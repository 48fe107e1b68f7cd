"""What the processes of a run say to each other: a beat, and JAX's key-value store that carries it."""

import os
import sys
import threading
import time
from typing import Any

import jax

from jaxscale.cluster.start import prefix

Missing = jax.errors.JaxRuntimeError  # what a call of the key-value store raises


class Beat:
    """What one process said last, and when this one heard it."""

    def __init__(self, text: str):
        self.heard = time.monotonic()
        self.read(text)

    def read(self, text: str) -> None:
        self.text = text
        count, step, self.doing, seconds, late, self.where = text.split(" ", 5)
        self.count, self.step, self.seconds, self.late = int(count), int(step), float(seconds), late == "late"

    def hear(self, text: str) -> None:
        if text != self.text:
            self.heard = time.monotonic()
            self.read(text)

    def __str__(self) -> str:
        return f"at step {self.step}, {self.doing} for {self.seconds:.0f} s, in {self.where}"


class Store:
    """JAX's key-value store, below this run's prefix."""

    def __init__(self, kv: Any):
        self.kv = kv

    def put(self, key: str, value: str) -> None:
        self.kv.key_value_set(f"{prefix()}/{key}", value, allow_overwrite=True)

    def all(self, folder: str) -> dict[str, str]:
        """Name -> value below a folder."""
        path = f"{prefix()}/{folder}/"
        return {key.removeprefix(path): value for key, value in self.kv.key_value_dir_get(path)}


def here() -> str:
    """Where the main thread is, as `feed.py:88 __next__`: its innermost frame in this package, or the one it calls."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    package = f"{os.sep}jaxscale{os.sep}"
    while frame is not None and package not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}" if frame else "-"
