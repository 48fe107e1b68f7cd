"""Saving and restoring a run's state: how long training is held up, how long until it is on disk, and back again.

A save looks at the state's arrays until they are written. On CPU devices that is where they are, and the next step,
which is given them, copies what is being looked at: a part of its own, as it holds training up too.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxscale import config as cfg
from jaxscale.bench.record import Figure, Row, measured
from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.data.tokens import Synthetic
from jaxscale.training.build import build
from jaxscale.training.feed import Feed
from jaxscale.training.step import TrainState


def measure(config: cfg.Config, devices: list[jax.Device], folder: Path, *, repeats: int) -> Iterator[Row]:
    """Save the state of `config` `repeats` times into `folder` (the disk that is measured), and restore each.

    The first save stands apart: it makes directories and starts orbax's threads.
    """
    setup = build(config, devices)
    program = setup.program
    blocking, copying, background, restoring = [], [], [], []
    with setup.context():
        rows = Synthetic(config.model.vocab_size, config.data.seq_len, seed=0)
        feed = Feed(rows, config, setup.batch_sharding, stop_step=1, microbatches=config.step.microbatches)
        with contextlib.closing(feed):  # one step, so that the moments are no zeros, which compress to nothing
            state, _ = jax.block_until_ready(program.step(program.init(), next(feed)))
        size = sum(x.nbytes for x in jax.tree.leaves(state._replace(rng=jax.random.key_data(state.rng))))
        with tempfile.TemporaryDirectory(prefix="jaxscale-bench-", dir=folder) as inside:
            checkpointer = Checkpointer(Path(inside), config.checkpoint)
            state, _ = changed(state)  # compiled
            try:
                for step in range(1, repeats + 2):
                    state, alone = changed(state)
                    start = time.perf_counter()
                    blocking.append(checkpointer.save(step, state, config, {}))
                    state, after = changed(state)
                    copying.append(max(0.0, after - alone))
                    if failed := checkpointer.settle():
                        raise ValueError(failed)
                    background.append(time.perf_counter() - start - blocking[-1])
                    start = time.perf_counter()
                    jax.block_until_ready(checkpointer.restore(step, program.abstract))
                    restoring.append(time.perf_counter() - start)
            finally:
                checkpointer.close()
    whole = [a + b for a, b in zip(blocking, background, strict=True)]
    parts = {"save, blocking": blocking, "save, copies in the next step": copying}
    parts |= {"save, in the background": background, "save, whole": whole, "restore": restoring}
    for part, seconds in parts.items():
        figures = {
            "seconds": measured(seconds[1:], "s"),
            "first_seconds": Figure(value=seconds[0], unit="s"),
            "bytes": Figure(value=size, unit="bytes"),
        }
        if part in ("save, whole", "restore"):
            figures["bytes_per_second"] = measured([size / s for s in seconds[1:]], "bytes/s")
        yield Row(labels={"part": part}, figures=figures)


@functools.partial(jax.jit, donate_argnums=0)
def add(state: TrainState, value: jax.Array) -> TrainState:
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: x if is_key(x) else x + value.astype(x.dtype), state)


def changed(state: TrainState) -> tuple[TrainState, float]:
    """The state after a program that is given its arrays and writes each, as a step does, and the seconds of that."""
    start = time.perf_counter()
    state = jax.block_until_ready(add(state, jnp.float32(0)))
    return state, time.perf_counter() - start
