"""Keeping what compilers and plugins write on stderr from the terminal. No jax: its import already makes them speak."""

import contextlib
import faulthandler
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

DRIVERS = ("/dev/nvidiactl", "/dev/accel0", "/dev/vfio/0")  # of NVIDIA GPUs and of TPUs


@contextlib.contextmanager
def quiet(verbose: bool = False) -> Iterator[None]:
    """Inside, stderr of this process goes nowhere (unless `verbose`).

    A crash is heard all the same: where it was, in Python's words.
    """
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


def quiet_logs() -> None:
    """Libraries' lines about what is told anyway: orbax's of saves, asyncio's of reads that a damaged file ended."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def quiet_inside() -> Iterator[None]:
    """As `quiet_logs`, and afterwards the loggers are as loud as before: for a process that is not ours alone."""
    before = {name: logging.getLogger(name).level for name in ("absl", "asyncio")}
    quiet_logs()
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def quiet_plugins() -> contextlib.AbstractContextManager[None]:
    """For jax's first look at devices: plugins that are here to compile complain of every driver that is missing.

    On a machine with a driver they are let speak: there it says why a device is not found.
    """
    return quiet(verbose=any(Path(name).exists() for name in DRIVERS))
