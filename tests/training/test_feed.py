"""The global batch does not depend on how many processes read it, and padding does not move the loss."""

import jax
import numpy as np
import pytest
from support import Setup, make_batch, make_config

from jaxscale.data.tokens import Synthetic, load_rows, row_indices
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.sharding import on_mesh
from jaxscale.training.feed import Feed
from jaxscale.training.places import rows_needed
from jaxscale.training.step import batch_sharding


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_together_read_the_global_batch(processes, microbatches):
    """What each process would read, by its devices; replicas over tensor read the same rows."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with on_mesh(mesh):
        sharding = batch_sharding(mesh)
    source = Synthetic(1000, 16, seed=3)
    shape = (microbatches, 16 // microbatches, 16)
    whole = load_rows(source, row_indices(7, 5, 16, len(source)))["tokens"]
    seen = np.zeros(16, int)
    for devices in np.array_split(mesh.devices.ravel(), processes):
        rows = rows_needed(sharding, shape, set(devices))
        mine = load_rows(source, row_indices(7, 5, 16, len(source), rows=rows))["tokens"]
        np.testing.assert_array_equal(mine, whole[rows])
        seen[rows] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_feed_puts_each_row_where_it_belongs(microbatches):
    config = make_config({"data": 4, "tensor": 2}, step={"microbatches": microbatches})
    source = Synthetic(250, 32, seed=1)
    setup = Setup(config)
    with setup.context():
        feed = Feed(source, config, setup.batch_sharding, start_step=3, microbatches=microbatches)
        batch = next(feed)
        feed.close()
    wanted = load_rows(source, row_indices(config.seed, 3, 8, len(source)))
    assert set(batch) == {"tokens", "targets", "weights"}  # no documents: no mask to build
    for name, array in batch.items():
        np.testing.assert_array_equal(np.asarray(array).reshape(8, 32), wanted[name])
        assert array.sharding.spec == jax.P(None, "data", None)


def test_the_loss_is_the_mean_over_real_tokens_however_padding_falls():
    """Rows of padding only, all in one microbatch and one data shard, change nothing."""
    batch = make_batch(make_config())
    batch["weights"][4:] = 0
    half = {name: array[:4] for name, array in batch.items()}
    wanted = Setup(make_config(data={"batch_size": 4}), batch=half).steps(2)
    got = Setup(make_config({"data": 4, "tensor": 2}, step={"microbatches": 2}), batch=batch).steps(2)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], wanted[1], rtol=1e-5)
