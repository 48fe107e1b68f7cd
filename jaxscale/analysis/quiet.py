"""Keeping what compilers write on stderr from the terminal. No jax: its import may already make them speak."""

import contextlib
import faulthandler
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(verbose: bool = False) -> Iterator[None]:
    """Inside, stderr of this process goes nowhere (unless `verbose`), and Ctrl-C ends it: compilers do not listen.

    A compiler that crashes is heard all the same: where it was, in Python's words.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL) if main else None
    try:
        if verbose:
            yield
            return
        sys.stderr.flush()
        saved = os.dup(2)
        hears = not faulthandler.is_enabled()
        if hears:
            faulthandler.enable(saved)
        with tempfile.TemporaryFile() as sink:
            os.dup2(sink.fileno(), 2)
            try:
                yield
            finally:
                if hears:
                    faulthandler.disable()
                sys.stderr.flush()
                os.dup2(saved, 2)
                os.close(saved)
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)
