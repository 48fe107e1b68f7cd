"""What else a machine is busy with: the load average, and the cores that other processes use (Linux). No jax."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

INTERVAL = 0.25  # seconds over which other processes are watched
PROC = Path("/proc")


@dataclass(frozen=True)
class Load:
    """At one moment.

    Attributes:
        average: the load average of the last minute; None where the system does not tell.
        others: cores that other processes keep busy, likewise.
        names: of those that use most, the busiest first.
    """

    average: float | None = None
    others: float | None = None
    names: list[str] = field(default_factory=list)


def read_load(interval: float = INTERVAL) -> Load:
    """Look for `interval` seconds; this process and its children should be idle meanwhile."""
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    try:
        before, started = ticks(), time.perf_counter()
        time.sleep(interval)
        after, seconds = ticks(), time.perf_counter() - started
    except (OSError, ValueError, IndexError):
        return Load(average)
    per_core = seconds * os.sysconf("SC_CLK_TCK")
    busy = {pid: (used - before.get(pid, (used, ""))[0], name) for pid, (used, name) in after.items()}
    whole = busy.pop(0)[0] - sum(busy.pop(pid, (0, ""))[0] for pid in family(os.getpid()))
    names = sorted(((n, name) for n, name in busy.values() if n > 0.1 * per_core), reverse=True)
    return Load(average, max(0.0, whole / per_core), [name for _, name in names[:3]])


def ticks() -> dict[int, tuple[int, str]]:
    """Clock ticks of work and name of each process; 0: the whole machine. Raises OSError where there is no /proc."""
    cpu = [int(x) for x in (PROC / "stat").read_text().splitlines()[0].split()[1:9]]
    by_process = {0: (sum(cpu) - cpu[3] - cpu[4], "")}  # without idle and waiting for disks
    for path in PROC.glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:  # it has ended
            continue
        user, system = rest.split()[11:13]
        by_process[int(path.parent.name)] = (int(user) + int(system), name)
    return by_process


def family(pid: int) -> set[int]:
    """This process and its children, as far as they still run."""
    members, waiting = set(), [pid]
    while waiting:
        members.add(one := waiting.pop())
        for path in PROC.glob(f"{one}/task/*/children"):
            try:
                waiting += map(int, path.read_text().split())
            except OSError:
                continue
    return members
