"""Saving and restoring a run's state: how long training is held up, how long until it is on disk, and back again."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxscale import config as cfg
from jaxscale.bench.record import Figure, Row, measured
from jaxscale.data.tokens import Synthetic
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.sharding import fit_rules, make_rules, on_mesh
from jaxscale.training.checkpoint import Checkpointer
from jaxscale.training.feed import Feed
from jaxscale.training.step import batch_sharding, make_program


def measure(config: cfg.Config, devices: list[jax.Device], folder: Path, *, repeats: int) -> Iterator[Row]:
    """Save the state of `config` `repeats` times into `folder` (the disk that is measured), and restore each.

    The first save stands apart: it makes directories and starts orbax's threads.
    """
    mesh = make_mesh(config.mesh, devices)
    blocking, background, restoring = [], [], []
    with on_mesh(mesh, fit_rules(make_rules(config.sharding), mesh.shape, config)):
        program = make_program(config)
        rows = Synthetic(config.model.vocab_size, config.data.seq_len, seed=0)
        feed = Feed(rows, config, batch_sharding(mesh), stop_step=1, microbatches=config.step.microbatches)
        with contextlib.closing(feed):  # one step, so that the moments are no zeros, which compress to nothing
            state, _ = jax.block_until_ready(program.step(program.init(), next(feed)))
        size = sum(x.nbytes for x in jax.tree.leaves(state._replace(rng=jax.random.key_data(state.rng))))
        with tempfile.TemporaryDirectory(prefix="jaxscale-bench-", dir=folder) as inside:
            checkpointer = Checkpointer(Path(inside), config.checkpoint)
            try:
                for step in range(1, repeats + 2):
                    start = time.perf_counter()
                    blocking.append(checkpointer.save(step, state, config, {}))
                    if failed := checkpointer.settle():
                        raise ValueError(failed)
                    background.append(time.perf_counter() - start - blocking[-1])
                    start = time.perf_counter()
                    jax.block_until_ready(checkpointer.restore(step, program.abstract))
                    restoring.append(time.perf_counter() - start)
            finally:
                checkpointer.close()
    whole = [a + b for a, b in zip(blocking, background, strict=True)]
    for part, seconds in {"save, blocking": blocking, "save, in the background": background, "save, whole": whole,
                          "restore": restoring}.items():  # fmt: skip
        figures = {
            "seconds": measured(seconds[1:], "s"),
            "first_seconds": Figure(value=seconds[0], unit="s"),
            "bytes": Figure(value=size, unit="bytes"),
        }
        if part in ("save, whole", "restore"):
            figures["bytes_per_second"] = measured([size / s for s in seconds[1:]], "bytes/s")
        yield Row(labels={"part": part}, figures=figures)
