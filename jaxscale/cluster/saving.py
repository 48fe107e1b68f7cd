"""All processes wait for each other in a save, and one that could not write ends the waiting of the others.

orbax waits with JAX's barriers, which nobody can leave before their time is up: 20 minutes in which a run stood still
where one host's disk was full. Here the waiting goes over the key-value store, under `saving/<number>`:

    <key>/at/<rank>    this process has come so far                each process
    <key>/word/go      all have                                    process 0
    failed/<rank>      why this process could not write            any process
    sums/<rank>        what it adds to the sums of the arrays      each process, for process 0

A barrier that was passed is open for the rest of its save. orbax comes to one again at the end, to note that no save is
under way, also where a process failed: it has to get past it, to say so.
"""

import time
from typing import Any

import jax

from jaxscale.cluster.start import client, prefix

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds between two looks, growing
PATIENCE = 1200.0  # seconds, as orbax has


class SaveBarrier:
    """Called by orbax as its `barrier_sync_fn`; `begin` counts the saves, alike on all processes."""

    def __init__(self) -> None:
        self.number = 0
        self.given_up = 0  # the number of the last save that this process gave up

    def begin(self) -> None:
        self.number += 1
        if (store := client()) and jax.process_index() == 0 and self.number > 2:
            store.key_value_delete(f"{prefix()}/saving/{self.number - 2}/")  # everybody has left that one

    def fail(self, why: str) -> None:
        """This process gives the save up."""
        self.given_up = self.number
        if store := client():
            store.key_value_set(
                f"{prefix()}/saving/{self.number}/failed/{jax.process_index()}", why, allow_overwrite=True
            )

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Return once all processes are here; RuntimeError where one has failed, TimeoutError after `timeout_ms`."""
        store = client()
        if store is None:  # one process
            return
        folder, pause = f"{prefix()}/saving/{self.number}", FIRST_PAUSE
        store.key_value_set(f"{folder}/{key}/at/{jax.process_index()}", "here", allow_overwrite=True)
        until = time.monotonic() + timeout_ms / 1000
        while not store.key_value_dir_get(f"{folder}/{key}/word/"):
            if jax.process_index() == 0 and here(store, f"{folder}/{key}/at/") == jax.process_count():
                store.key_value_set(f"{folder}/{key}/word/go", "all", allow_overwrite=True)
                return
            pause = wait(store, folder, until, pause)

    def gather(self, number: int, value: str) -> list[str] | None:
        """The values of all processes by rank, on process 0, once they are there; None on the others.

        RuntimeError where one has failed, TimeoutError after 20 minutes.
        """
        store = client()
        if store is None:
            return [value]
        folder, pause = f"{prefix()}/saving/{number}", FIRST_PAUSE
        store.key_value_set(f"{folder}/sums/{jax.process_index()}", value, allow_overwrite=True)
        if jax.process_index():
            return None
        until = time.monotonic() + PATIENCE
        while here(store, f"{folder}/sums/") < jax.process_count():
            pause = wait(store, folder, until, pause)
        values = {int(name.rsplit("/", 1)[1]): text for name, text in store.key_value_dir_get(f"{folder}/sums/")}
        return [values[rank] for rank in sorted(values)]


def here(store: Any, folder: str) -> int:
    """How many processes have said something in a folder."""
    return len(store.key_value_dir_get(folder))


def wait(store: Any, folder: str, until: float, pause: float) -> float:
    """Sleep until the next look, and how long before the one after it; raises where there is nothing to wait for."""
    if failed := store.key_value_dir_get(f"{folder}/failed/"):
        name, why = failed[0]
        raise RuntimeError(f"process {name.rsplit('/', 1)[1]} could not write it: {why}")
    if time.monotonic() > until:
        raise TimeoutError("not all processes have written it in time")
    time.sleep(pause)
    return min(1.5 * pause, LONGEST_PAUSE)
