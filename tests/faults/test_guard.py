"""Steps that cannot be right: spikes of the loss, losses that are no number, computations that differ."""

import contextlib
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults.processes import Group
from support import Listener, make_config

from jaxscale.checkpoint.fingerprint import fingerprints
from jaxscale.data.prepare import prepare
from jaxscale.data.sources import text_source
from jaxscale.data.tokens import Synthetic
from jaxscale.files.jsonl import read_records
from jaxscale.parallel.sharding import on_mesh
from jaxscale.report.goodput import goodput
from jaxscale.training.feed import Feed
from jaxscale.training.guard import Corrupt, Guard, minority
from jaxscale.training.spikes import judge, no_losses
from jaxscale.training.step import batch_sharding
from jaxscale.training.trainer import train

ROWS, LENGTH, BAD_STEP = 8, 32, 66


@pytest.fixture(scope="module")
def strange(tmp_path_factory) -> Path:
    """Easy text, but for the batch of step 66, which is noise: read in order, its loss stands out."""
    folder = tmp_path_factory.mktemp("strange")
    step = ROWS * LENGTH
    text = bytearray(b"all work and no play makes jack a dull boy\n" * (100 * step // 43 + 1))
    noise = np.random.default_rng(0).integers(32, 127, step, dtype=np.uint8).tobytes()
    start = (BAD_STEP - 1) * step - 1  # the separator comes first
    text[start : start + step] = noise
    (folder / "text.txt").write_bytes(bytes(text))
    prepare(text_source([str(folder / "text.txt")]), "byte", folder / "data", progress=lambda p: None)
    return folder / "data"


def config(out, data, *, steps=80, **sections):
    sections = {
        "model": {"vocab_size": 257},
        "data": {"kind": "tokens", "path": str(data), "batch_size": ROWS, "seq_len": LENGTH, "shuffle": False},
        "runtime": {"simulated_devices": 2},
        "optimizer": {"learning_rate": 3e-3, "schedule": "constant"},
        "checkpoint": {"every": 20},
    } | sections
    return make_config({"data": 2}, steps=steps, out=str(out), **sections)


def test_a_spike_is_left_out_inside_the_step(strange, tmp_path):
    listener = Listener()
    left_out = train(config(tmp_path / "a", strange, guard={"spike": 2.5}), watcher=listener)
    records = read_records(tmp_path / "a" / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "spike"] == [BAD_STEP]
    assert any(f"step {BAD_STEP}: loss" in line and "update skipped (1 so far)" in line for line in listener.lines)
    taken = train(config(tmp_path / "b", strange, guard={"spike": 1e9}))
    assert taken.losses[BAD_STEP] == left_out.losses[BAD_STEP] > 3 * taken.losses[BAD_STEP - 1]
    assert left_out.losses[BAD_STEP + 1] < taken.losses[BAD_STEP + 1]


def test_going_back_reads_none_of_the_batches_again(strange, tmp_path):
    listener = Listener()
    result = train(config(tmp_path, strange, guard={"spike": 2.5, "on_spike": "rollback"}), watcher=listener)
    records = read_records(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["from"], r["batches_skipped"]) for r in records if r["kind"] == "rollback"] == [(60, 66, 6)]
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 81))  # each once
    assert any("back to step 60, past 6 batches" in line for line in listener.lines)
    assert max(loss for step, loss in result.losses.items() if step > 60) < result.losses[60] * 1.5
    # a run that goes on from a later checkpoint still leaves them out
    more = train(config(tmp_path, strange, steps=81, guard={"spike": 2.5}))
    assert more.step == 81
    found = goodput(read_records(tmp_path / "events.jsonl"))
    assert (found.attempts, found.steps_lost, found.steps_counted) == (2, 6, 81)  # 61 to 66 were done again


def test_without_a_checkpoint_to_go_back_to_it_stops(strange, tmp_path):
    later = config(tmp_path, strange, guard={"spike": 2.5, "on_spike": "rollback"}, checkpoint={"every": 0})
    with pytest.raises(ValueError, match=rf"at step {BAD_STEP}: stopped; there is no checkpoint yet"):
        train(later)


@pytest.mark.parametrize(("mean", "deviation"), [(2.5, 1e-2), (2.5, 1e-3), (10.0, 1e-2), (1e-3, 1e-4)])
def test_quiet_losses_are_no_spikes(mean, deviation):
    """Late in training losses differ in their fourth digit: the variance must not drown in float32."""
    asked = make_config({"data": 1}, guard={"spike": 6.0})
    losses = jnp.asarray(np.random.default_rng(0).normal(mean, deviation, 2000), jnp.float32).at[1500].set(2 * mean)

    def step(spikes, loss):
        _, spikes, metrics = judge(asked, {"loss": loss}, spikes)
        return spikes, metrics["spike"]

    _, found = jax.lax.scan(step, no_losses(), losses)
    assert list(np.flatnonzero(found)) == [1500]


# --- silent data corruption -------------------------------------------------------------------------------------


def test_steps_computed_twice_agree(strange, tmp_path):
    result = train(config(tmp_path / "a", strange, steps=40, guard={"recompute_every": 20}))
    records = read_records(tmp_path / "a" / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "recomputed"] == [20, 40]
    plain = train(config(tmp_path / "b", strange, steps=40))
    assert fingerprints(plain.state) == fingerprints(result.state)  # looking changes nothing


def test_a_flipped_bit_in_one_copy_names_its_device(tmp_path):
    small = make_config(
        {"data": 4}, steps=2, out=str(tmp_path), runtime={"simulated_devices": 4}, guard={"recompute_every": 100}
    )
    result = train(small)
    state, mesh = result.state, result.mesh
    key = jax.tree_util.tree_leaves_with_path(state.params)[0][0]

    def spoil(path, x):
        if path != key:
            return x
        copies = [np.array(s.data) for s in x.addressable_shards]
        copies[2].view(np.uint32).ravel()[3] ^= 1 << 7
        placed = [jax.device_put(c, s.device) for c, s in zip(copies, x.addressable_shards, strict=True)]
        return jax.make_array_from_single_device_arrays(x.shape, x.sharding, placed)

    spoiled = state._replace(params=jax.tree_util.tree_map_with_path(spoil, state.params))
    rows = Synthetic(small.model.vocab_size, small.data.seq_len, seed=0)
    with on_mesh(mesh, result.rules), contextlib.closing(Feed(rows, small, batch_sharding(mesh))) as feed:
        batch, written = next(feed), []
        journal = types.SimpleNamespace(record=lambda *record: written.append(record))
        guard = Guard(small, result.program, mesh, journal)
        guard.recompute(100, state, batch)
        assert [kind for kind, *_ in written] == ["recomputed"]
        with pytest.raises(Corrupt, match=rf"copies of params.* differ: process 0 \(cpu:{mesh.devices.flat[2].id}\)"):
            guard.recompute(100, spoiled, batch)


def test_the_odd_one_out():
    sums = np.array([5, 5, 7, 5], np.uint32)
    assert minority(sums, [0, 1, 2, 3]) == [2]
    assert minority(sums, [0, 1, 3]) == []
    assert minority(sums, [0, 2]) == [0, 2]  # of two nobody knows which


TWICE = """
import sys, jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, {tests!r})
from flax import nnx
from jax.sharding import PartitionSpec as P
from support import make_config
from jaxscale.cluster.codes import CORRUPT
from jaxscale.parallel.sharding import spec
from jaxscale.training.trainer import train

calls = 0

def device(x, rank):
    # what a bad multiplier would do: once, on the device of process 1, one element comes out wrong
    global calls
    calls += 1
    if int(rank) == 1 and calls == 2:
        x = np.array(x)
        x.ravel()[0] += 1.0
    return np.asarray(x)

class Faulty(nnx.Module):
    def __init__(self, rngs):
        self.table = nnx.Param(0.02 * jax.random.normal(rngs.params(), (256, 256)), out_sharding=("norm", "norm"))

    def __call__(self, tokens):
        logits = self.table[...].at[tokens].get(out_sharding=spec("batch", "sequence", None))
        def local(x):
            like, rank = jax.ShapeDtypeStruct(x.shape, x.dtype), jax.lax.axis_index("data")
            y = jax.pure_callback(device, like, jax.lax.stop_gradient(x), rank)
            return x + jax.lax.stop_gradient(y - x)
        return jax.shard_map(local, in_specs=P("data"), out_specs=P("data"), check_vma=False)(logits)

config = make_config({{"data": 2}}, steps=20, out={out!r}, model={{"vocab_size": 256}},
    data={{"kind": "synthetic", "batch_size": 4, "seq_len": 8}},
    runtime={{"simulated_devices": 2}}, guard={{"recompute_every": 1}}, checkpoint={{"every": 0}})
train(config, model=Faulty)
"""


def test_the_process_that_computed_otherwise_is_named(tmp_path):
    script = TWICE.format(tests=str(Path(__file__).parents[1]), out=str(tmp_path / "run"))
    with Group(["-c", script], tmp_path / "logs") as both:
        codes = both.wait(120)
    assert codes == [78, 78], both.texts()
    assert "computed twice differs in activations: process 1 (cpu:" in both.texts()
