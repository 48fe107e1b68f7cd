"""What libraries raise and print where a checkpoint cannot be read or written: one exception, and no traceback that
nobody needs."""

import contextlib
import gc
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any


def quiet_writes() -> contextlib.ExitStack:
    """Until it is closed: no traceback of orbax's threads, nor of tensorstore answering one that has given up."""
    of_threads, of_main, stack = threading.excepthook, sys.excepthook, contextlib.ExitStack()

    def thread_hook(arguments: Any) -> None:
        frames = traceback.walk_tb(arguments.exc_traceback)
        if not any("/orbax/checkpoint/" in frame.f_code.co_filename for frame, _ in frames):
            of_threads(arguments)

    def hook(kind: type[BaseException], value: BaseException, trace: Any) -> None:
        if not (isinstance(value, RuntimeError) and str(value) == "Event loop is closed"):
            of_main(kind, value, trace)

    def restore() -> None:
        threading.excepthook, sys.excepthook = of_threads, of_main

    threading.excepthook, sys.excepthook = thread_hook, hook
    stack.callback(restore)
    return stack


class Damaged(Exception):
    """A checkpoint that cannot be read; its text is the cause."""


def reading(read: Callable[..., Any], *arguments: Any) -> Any:
    """read(*arguments); Damaged for whatever orbax, tensorstore or JSON raise where a checkpoint is.

    A failed read leaves half-run coroutines, of whose end Python would print a traceback each: they end here, unheard.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        try:
            return read(*arguments)
        except Exception as error:  # each library has its own ways to say "damaged"
            cause = reason(error)
        time.sleep(0.2)  # for the reads of other arrays that are under way
        gc.collect()
    finally:
        sys.unraisablehook = hook
    raise Damaged(cause)


def reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else f"{text[:60]} ... {text[-120:]}"  # tensorstore's cause comes last
    return f"{type(error).__name__}: {text}"
