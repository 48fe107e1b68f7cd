"""Whole runs on real text: learning, resuming bit by bit, another mesh, another model, bad numbers."""

import itertools
import json
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import Listener, make_config

import jaxscale
from jaxscale.files.jsonl import read_records
from jaxscale.parallel.sharding import spec
from jaxscale.training.trainer import train

MODEL = {"vocab_size": 257, "num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 64}
MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def run_config(stdlib, out, mesh=None, *, steps=20, **sections):
    sizes = MESH if mesh is None else mesh
    sections = {
        "model": MODEL,
        "data": {"kind": "tokens", "path": str(stdlib), "batch_size": 8, "seq_len": 64},
        "runtime": {"platform": "cpu", "simulated_devices": math.prod(sizes.values()), "compilation_cache": None},
        "checkpoint": {"every": 10},
        "optimizer": {"learning_rate": 5e-3, "schedule": "constant"},
        "evaluation": {"batches": 2},
        "metrics": {"tensorboard": False},
    } | sections
    return make_config(sizes, steps=steps, out=str(out), **sections)


@pytest.fixture(scope="module")
def straight(stdlib, tmp_path_factory):
    """Twenty steps in one go."""
    return train(run_config(stdlib, tmp_path_factory.mktemp("straight")))


def equal(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


def leaves(state):
    plain = state._replace(rng=jax.random.key_data(state.rng))
    return [np.asarray(x) for x in jax.tree.leaves(jax.device_get(plain))]


def test_training_on_real_text_learns_and_writes_what_it_did(straight):
    assert straight.loss < 0.8 * straight.losses[1]
    assert straight.validation_loss < 0.8 * straight.losses[1]
    records = read_records(straight.out / "metrics.jsonl")
    steps = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in steps] == list(range(1, 21))
    assert {
        "loss",
        "grad_norm",
        "learning_rate",
        "tokens_per_second",
        "step_seconds",
        "step_seconds_p95",
        "data_wait_seconds",
        "mfu",
    } <= set(steps[-1])
    assert [r["step"] for r in records if r["kind"] == "checkpoint"] == [10, 20]
    assert "measured" in straight.peak.source
    environment = json.loads((straight.out / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    assert jaxscale.load_config(straight.out / "config.yaml").model.num_layers == 2


def read_events(out):
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


def test_events_tell_where_the_time_went(straight):
    """Whatever starts ends, nothing overlaps, and every step is there once with its seconds."""
    events = read_events(straight.out)
    assert {e["attempt"] for e in events} == {1}
    assert [e["time"] for e in events] == sorted(e["time"] for e in events)
    assert [e["step"] for e in events if e["event"] == "step"] == list(range(1, 21))
    assert (events[0]["event"], events[-1]["event"]) == ("run", "run")
    open_event = None
    for e in events[1:-1]:
        if e["phase"] == "start":
            assert open_event is None, f"{e['event']} starts inside {open_event}"
            open_event = e["event"]
        elif e["event"] != "step":
            assert e["event"] == open_event
            open_event = None
    names = {e["event"] for e in events}
    assert names == {"run", "devices", "data", "init", "data wait", "compile", "step", "evaluation", "checkpoint"}
    steps = [
        (e["time"] - before["time"], e["seconds"]) for before, e in itertools.pairwise(events) if e["event"] == "step"
    ]
    # a step begins where whatever came before it ended; a busy machine may pause between two looks at a clock
    assert sum(seconds >= between + 1e-3 for between, seconds in steps) <= 2
    assert statistics.median(between - seconds for between, seconds in steps) < 1e-3
    written = {
        r["step"]: r["step_seconds"] for r in read_records(straight.out / "metrics.jsonl") if r["kind"] == "train"
    }
    assert written == {e["step"]: e["seconds"] for e in events if e["event"] == "step"}


def test_stop_and_resume_is_bitwise_the_straight_run(stdlib, tmp_path, straight):
    first = train(run_config(stdlib, tmp_path, steps=10))
    listener = Listener()
    second = train(run_config(stdlib, tmp_path, steps=20), watcher=listener)
    assert any("resuming from step 10" in line for line in listener.lines)
    assert first.losses | second.losses == straight.losses
    assert equal(second.state, straight.state)
    assert [r["step"] for r in read_records(tmp_path / "metrics.jsonl") if r["kind"] == "train"] == list(range(1, 21))


@pytest.mark.parametrize("mesh", [{"fsdp": 4, "tensor": 2}, {"data": 1}], ids=["fsdp=4,tensor=2", "one device"])
def test_resume_on_another_mesh_agrees(stdlib, tmp_path, straight, mesh):
    train(run_config(stdlib, tmp_path, steps=10))
    second = train(run_config(stdlib, tmp_path, mesh, steps=20))
    np.testing.assert_allclose(
        [second.losses[s] for s in range(11, 21)], [straight.losses[s] for s in range(11, 21)], rtol=1e-5
    )


def test_the_last_n_and_every_kth_checkpoint_are_kept(stdlib, tmp_path):
    result = train(run_config(stdlib, tmp_path, steps=12, checkpoint={"every": 2, "keep_last": 2, "keep_every": 6}))
    kept = sorted(int(p.name) for p in (result.out / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == [6, 10, 12]


def test_documents_off_and_no_validation_split(tmp_path):
    config = make_config(
        {"data": 8},
        steps=2,
        out=str(tmp_path),
        runtime={"simulated_devices": 8},
        data={"kind": "synthetic", "batch_size": 8, "seq_len": 16, "mask_documents": False},
    )
    result = train(config)
    assert result.step == 2
    assert np.isfinite(result.validation_loss)  # synthetic data has one


class Spoiled(nnx.Module):
    """Logits that turn NaN once a parameter has moved."""

    def __init__(self, rngs):
        self.table = nnx.Param(0.02 * jax.random.normal(rngs.params(), (256, 256)), out_sharding=("norm", "norm"))

    def __call__(self, tokens):
        logits = self.table[...].at[tokens].get(out_sharding=spec("batch", "sequence", None))
        return logits + jnp.where(jnp.abs(self.table[...]).max() > 0.2, jnp.nan, 0.0)


def spoiled_config(tmp_path, **changes):
    return make_config(
        {"data": 2},
        steps=30,
        out=str(tmp_path),
        model=MODEL | {"vocab_size": 256},
        runtime={"simulated_devices": 2},
        data={"kind": "synthetic", "batch_size": 8, "seq_len": 16},
        optimizer={"learning_rate": 1e-2, "schedule": "constant"},
        checkpoint={"every": 4},
        **changes,
    )


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"loss nan.* at step \d+: stopped; the last good checkpoint is step \d+"):
        train(spoiled_config(tmp_path), model=Spoiled)
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    bad = next(r["step"] for r in read_records(tmp_path / "metrics.jsonl") if r["kind"] == "nonfinite")
    assert kept
    assert max(kept) < bad


def test_nan_updates_can_be_skipped(tmp_path):
    listener = Listener()
    result = train(spoiled_config(tmp_path, on_nonfinite="skip"), model=Spoiled, watcher=listener)
    assert result.step == 30
    assert any("update skipped" in line for line in listener.lines)
    assert all(np.isfinite(x).all() for x in leaves(result.state))


class Mixer(nnx.Module):
    """An MLP-mixer for text: tokens mix through one causal matrix, channels through a small MLP."""

    def __init__(self, rngs: nnx.Rngs, vocab: int = 257, T: int = 64, D: int = 32, F: int = 64):
        def make(shape, axes):
            return nnx.Param(shape[0] ** -0.5 * jax.random.normal(rngs.params(), shape), out_sharding=axes)

        self.embedding = make((vocab + 127, D), ("vocab", "embed"))
        self.mix = make((T, T), ("positions", "positions"))
        self.up, self.down = make((D, F), ("embed", "mlp")), make((F, D), ("mlp", "embed"))
        self.head = make((D, vocab + 127), ("embed", "vocab"))

    def __call__(self, tokens):
        x = jaxscale.lookup(self.embedding[...], tokens, dtype=jnp.float32)
        x = jaxscale.shard(x, "batch", "sequence", "embed")
        x = x + jaxscale.einsum("btd,st->bsd", x, jnp.tril(self.mix[...]), out=("batch", "sequence", "embed"))
        h = jax.nn.gelu(jaxscale.einsum("btd,df->btf", x, self.up[...], out=("batch", "sequence", "mlp")))
        x = x + jaxscale.einsum("btf,fd->btd", h, self.down[...], out=("batch", "sequence", "embed"))
        return jaxscale.einsum("btd,dv->btv", x, self.head[...], out=("batch", "sequence", "vocab"))


def test_a_model_of_ones_own_trains_alike_on_every_mesh(stdlib, tmp_path):
    many = jaxscale.train(run_config(stdlib, tmp_path / "many", steps=8), model=Mixer)
    one = jaxscale.train(run_config(stdlib, tmp_path / "one", {"data": 1}, steps=8), model=Mixer)
    np.testing.assert_allclose(list(many.losses.values()), list(one.losses.values()), rtol=1e-5)
    assert many.loss < many.losses[1] - 0.2
    layout = many.state.params["up"].sharding.spec
    assert layout == jax.P("fsdp", "tensor")
    assert many.speed.mfu is None  # nobody said how many FLOPs it takes


def test_a_model_without_logical_axes_is_refused(stdlib, tmp_path):
    class Bare(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jnp.ones((4, 4)))

    with pytest.raises(ValueError, match="parameter w has no logical axes"):
        train(run_config(stdlib, tmp_path), model=Bare)


def test_chunked_loss_is_refused_for_a_model_that_cannot(stdlib, tmp_path):
    with pytest.raises(ValueError, match=r"loss.chunk=32 needs a model with hidden\(\)"):
        train(run_config(stdlib, tmp_path, loss={"chunk": 32}), model=Mixer)
