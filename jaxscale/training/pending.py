"""A dispatched step until its metrics are read, and when it was done.

The host may dispatch a step and go on at once, or may be held until the step is done (one CPU device). So the time of a
read says nothing by itself: two steps can be read at once that were done one after the other.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax


@dataclass
class Pending:
    """A step in flight.

    Attributes:
        wait: seconds that the host waited for its batch.
        done: when it was done, by `time.perf_counter`; None: not known yet.
    """

    step: int
    metrics: Any
    wait: float
    done: float | None = None

    def ready(self) -> bool:
        return all(leaf.is_ready() for leaf in jax.tree.leaves(self.metrics))

    def look(self) -> None:
        """Note the time if the step is done. Called before the next dispatch, which may hold the host for a step."""
        if self.done is None and self.ready():
            self.done = time.perf_counter()

    def finish(self, since: float, later: "Pending | None") -> float:
        """Wait for the step and return when it was done.

        Args:
            since: when whatever came before it was done.
            later: the step dispatched after it. If both turn out to be done, they share the time since then: the host
                was away for longer than a step and cannot tell where the first one ended.
        """
        jax.block_until_ready(self.metrics)
        if self.done is None:
            now = time.perf_counter()
            self.done = (since + now) / 2 if later and later.ready() else now
        return self.done
