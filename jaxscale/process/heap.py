"""How the process takes memory from its operating system. No jax."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8  # from malloc.h


def keep_heap() -> None:
    """Have glibc keep the memory that XLA's CPU backend frees after each step; to be called before jax runs.

    XLA takes its temporaries (700 MB in a small model's step) by one malloc a step. glibc maps and unmaps so much each
    time, and the page faults were up to a third of the step's CPU time (160,000 a step, none with this). It changes the
    allocator of the whole process, so the command line does it, and `import jaxscale` does not. Elsewhere than on
    glibc it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # Windows takes no None
        return
    most = 2**31 - 1
    for option, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, most), (M_TRIM_THRESHOLD, most), (M_TOP_PAD, 2**26)):
        mallopt(option, value)


def peak_bytes() -> int | None:
    """The most memory that this process held so far; None on Windows, which keeps it elsewhere."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
