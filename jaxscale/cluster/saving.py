"""All processes wait for each other in a save, and one that could not write ends the waiting of the others.

orbax waits with JAX's barriers, which nobody can leave before their time is up: 20 minutes in which a run stood still
where one host's disk was full. Here the waiting goes over the key-value store, under `saving/<number>`:

    <key>/at/<rank>    this process has come so far                each process
    <key>/word/go      all have                                    process 0
    failed/<rank>      why this process could not write            any process

A barrier that was passed is open for the rest of its save. orbax comes to one again at the end, to note that no save is
under way, also where a process failed: it has to get past it, to say so.
"""

import time

import jax

from jaxscale.cluster.start import client, prefix

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds between two looks, growing


class SaveBarrier:
    """Called by orbax as its `barrier_sync_fn`; `begin` counts the saves, alike on all processes."""

    def __init__(self) -> None:
        self.number = 0

    def begin(self) -> None:
        self.number += 1
        if (store := client()) and jax.process_index() == 0 and self.number > 2:
            store.key_value_delete(f"{prefix()}/saving/{self.number - 2}/")  # everybody has left that one

    def fail(self, why: str) -> None:
        """This process gives the save up."""
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
            if failed := store.key_value_dir_get(f"{folder}/failed/"):
                name, why = failed[0]
                raise RuntimeError(f"process {name.rsplit('/', 1)[1]} could not write it: {why}")
            if time.monotonic() > until:
                raise TimeoutError(f"not all processes have written it within {timeout_ms / 1000:.0f} s")
            if jax.process_index() == 0:
                here = store.key_value_dir_get(f"{folder}/{key}/at/")
                if len(here) == jax.process_count():
                    store.key_value_set(f"{folder}/{key}/word/go", "all", allow_overwrite=True)
                    return
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)
