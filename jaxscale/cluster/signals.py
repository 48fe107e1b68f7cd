"""How a run ends that does not reach its last step: by signals (Ctrl-C; SIGTERM or SIGUSR1, as schedulers send before
they take a machine), or by an error that the other processes must hear of."""

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from jaxscale import config as cfg
from jaxscale.cluster.beats import Missing
from jaxscale.cluster.codes import BROKEN, INTERRUPTED, MENDABLE, PREEMPTED
from jaxscale.cluster.monitor import Monitor
from jaxscale.cluster.start import Place

# Windows has no SIGUSR1
PREEMPTING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and has saved; `code` is the exit code that says so."""

    def __init__(self, message: str, name: str):
        super().__init__(message)
        self.code = INTERRUPTED if name == "SIGINT" else PREEMPTED


@contextlib.contextmanager
def stop_signals(monitor: Monitor) -> Iterator[None]:
    """The first of these signals has all processes stop after one step; a second Ctrl-C ends this one at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if monitor.signal is None:
            more = "; Ctrl-C again leaves at once" if name == "SIGINT" else ""
            os.write(2, f"\n{name}: stopping after this step{more}\n".encode())  # print may not be called in a handler
        monitor.ask_to_stop(name)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, *PREEMPTING)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def watched(config: cfg.Config, place: Place) -> Iterator[Monitor]:
    """A monitor for the run inside, and its signals. Where there are several processes an error of one ends it here,
    once the others have been told; a failed collective first waits for the process that is missing to be named."""
    monitor = Monitor(config.watch, config.out_dir, place)
    try:
        with stop_signals(monitor):
            yield monitor
    except Exception as error:
        if isinstance(error, Missing):
            monitor.blame()
        if monitor.many:
            mendable = isinstance(error, ValueError | OSError) and not isinstance(error, Missing)
            if not mendable:
                traceback.print_exc()
            monitor.leave(getattr(error, "code", MENDABLE if mendable else BROKEN), str(error) or type(error).__name__)
        raise
    finally:
        monitor.close()
