"""Commands of jaxscale, each in a process of its own, as the demos run them."""

import os
import subprocess
import sys
import time

from jaxscale.cluster.local import die_with


def jaxscale(*words: object, kept: bool = False) -> str:
    """Run a command, which has said why where it fails. `kept`: return what it prints in place of showing it."""
    shown = [str(word) for word in words]
    print("\n$ jaxscale", *(repr(w) if " " in w else w for w in shown), flush=True)
    started = time.perf_counter()
    command, out = [sys.executable, "-m", "jaxscale.cli", *shown], subprocess.PIPE if kept else None
    try:
        done = subprocess.run(command, stdout=out, text=True, check=False, preexec_fn=die_with(os.getpid()))
    except KeyboardInterrupt:  # the command has had it too, and saves
        sys.exit(130)
    if done.returncode:
        sys.exit(done.returncode)
    print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    return done.stdout or ""
