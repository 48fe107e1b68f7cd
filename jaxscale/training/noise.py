"""Tracebacks that nobody needs: of writes in the background, whose failure is raised where one waits for them."""

import contextlib
import sys
import threading
import traceback
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
