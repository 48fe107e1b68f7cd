"""Whole runs with sequences split over context: the feed, resuming, other meshes, generation, what is refused."""

import math

import jax
import numpy as np
import pytest
from flax import nnx
from support import Listener, Setup, collectives, make_config

from jaxscale.blueprint.sequence import order
from jaxscale.data.tokens import Synthetic, load_rows, row_indices
from jaxscale.training.feed import Feed
from jaxscale.training.trainer import train

MODEL = {"vocab_size": 257, "num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 64}
MESH = {"fsdp": 2, "context": 2, "tensor": 2}


def run_config(stdlib, out, mesh, *, steps, **sections):
    sections = {
        "model": MODEL, "step": {"remat": "full"}, "loss": {"chunk": 32},
        "data": {"kind": "tokens", "path": str(stdlib), "batch_size": 8, "seq_len": 64},
        "runtime": {"platform": "cpu", "simulated_devices": math.prod(mesh.values()), "compilation_cache": None},
        "checkpoint": {"every": 5}, "optimizer": {"learning_rate": 5e-3, "schedule": "constant"},
        "evaluation": {"batches": 2}, "metrics": {"tensorboard": False},
    } | sections  # fmt: skip
    return make_config(mesh, steps=steps, out=str(out), **sections)


@pytest.fixture(scope="module")
def straight(stdlib, tmp_path_factory):
    return train(run_config(stdlib, tmp_path_factory.mktemp("straight"), MESH, steps=10))


def leaves(state):
    plain = state._replace(rng=jax.random.key_data(state.rng))
    return [np.asarray(x) for x in jax.tree.leaves(jax.device_get(plain))]


def test_a_run_is_that_of_one_device(straight, stdlib, tmp_path):
    """On real text, with documents, and an evaluation."""
    alone = train(run_config(stdlib, tmp_path, {"data": 1}, steps=10))
    assert list(straight.losses) == list(alone.losses)
    np.testing.assert_allclose(list(straight.losses.values()), list(alone.losses.values()), rtol=2e-5)
    np.testing.assert_allclose(straight.validation_loss, alone.validation_loss, rtol=2e-5)


def test_a_run_resumes_bit_by_bit_and_on_any_other_mesh(straight, stdlib, tmp_path):
    train(run_config(stdlib, tmp_path, MESH, steps=5))
    other = train(run_config(stdlib, tmp_path / "other", {"context": 8}, steps=5))
    again = train(run_config(stdlib, tmp_path, MESH, steps=10))
    assert all(np.array_equal(a, b) for a, b in zip(leaves(again.state), leaves(straight.state), strict=True))
    moved = train(run_config(stdlib, tmp_path / "other", {"fsdp": 8}, steps=10))
    assert other.step == 5
    np.testing.assert_allclose(moved.loss, straight.loss, rtol=1e-4)


@pytest.mark.parametrize(("window", "wanted"), [(None, order(32, 4)), (5, np.arange(32))])
def test_the_feed_gives_each_device_its_chunks(window, wanted):
    """All columns in one order; under a sliding window in reading order."""
    config = make_config({"context": 4, "tensor": 2}, model={"sliding_window": window})
    source = Synthetic(250, 32, seed=1)
    setup = Setup(config)
    with setup.context():
        feed = Feed(source, config, setup.batch_sharding, start_step=3)
        batch = next(feed)
        feed.close()
    rows = load_rows(source, row_indices(config.seed, 3, 8, len(source)))
    for name, array in batch.items():
        assert array.sharding.spec == jax.P(None, None, "context")
        np.testing.assert_array_equal(np.asarray(array)[0], rows[name][:, wanted])


WEIGHTS, KEYS = 7, 2  # q, k, v, out, gate, up and down of a layer; keys and values
NORMS = 2


@pytest.mark.parametrize("remat", ["none", "full"])
def test_keys_are_gathered_twice_and_their_gradients_scattered_once(remat):
    """Weights are split over context too, and gathered twice whatever remat keeps."""
    config = make_config(
        {"context": 8}, model={"num_kv_heads": 8}, optimizer={"clip_norm": None}, step={"remat": remat}
    )
    setup = Setup(config)
    documents, others = 1, 2  # once for all layers; the unembedding and the token ids
    assert collectives(setup.hlo(), setup.mesh) == {
        ("all-gather", ("context",)): 2 * (WEIGHTS + KEYS) + documents + others,
        ("reduce-scatter", ("context",)): KEYS,
        ("all-reduce", ("context",)): WEIGHTS + 1 + NORMS + 1,  # the unembedding and the last norm too
        ("all-to-all", ("context",)): 2,  # looked-up rows
    }


def test_a_ring_gathers_weights_alone_and_a_window_sends_to_its_neighbours():
    for sections in ({"step": {"context_attention": "ring", "remat": "full"}},
                     {"step": {"remat": "full"}, "model": {"num_kv_heads": 8, "sliding_window": 3}}):  # fmt: skip
        config = make_config({"context": 8}, **{"model": {"num_kv_heads": 8}} | sections, optimizer={"clip_norm": None})
        setup = Setup(config)
        hlo = setup.hlo()
        kinds = collectives(hlo, setup.mesh)
        assert kinds["all-gather", ("context",)] == 2 * WEIGHTS + 2
        assert kinds["reduce-scatter", ("context",)] == 0
        assert hlo.count(" collective-permute(") > 2


# --- what is refused ------------------------------------------------------------------------------------------------


WINDOW = {"sliding_window": 8}
CHUNKS = "data.seq_len 36 is not divisible by 2 * 4: each device of a split sequence holds two chunks; try 32 or 40"
REFUSED = [
    ({"data": {"seq_len": 36}}, CHUNKS),
    ({"data": {"seq_len": 34}, "model": WINDOW}, "data.seq_len 34 is not divisible by 4; try 32 or 36"),
    ({"loss": {"chunk": 2}}, "loss.chunk 2 is not divisible by 4 (context=4, sharding.activations.sequence); try 4"),
    (
        {"step": {"context_attention": "ring"}, "model": WINDOW},
        "step.context_attention=ring: it knows no sliding window",
    ),
    ({"sharding": {"activations": {"residual_sequence": "tensor"}}}, "residual_sequence: it must begin with context"),
]


@pytest.mark.parametrize(("sections", "says"), REFUSED)
def test_what_cannot_be_is_said_in_one_line(sections, says):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Setup(make_config({"context": 4, "tensor": 2}, **sections))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


class Bigram(nnx.Module):
    """Takes no positions."""

    def __init__(self, rngs: nnx.Rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (256, 256)), out_sharding=(None, "vocab"))

    def __call__(self, tokens_BT):
        return self.table[...].at[tokens_BT].get(out_sharding=jax.P(None, "context", None))


def test_a_model_that_takes_no_positions_is_refused():
    setup = Setup(make_config({"context": 4}), model=Bigram)
    with (
        setup.context(),
        pytest.raises(ValueError, match=r"context splits the sequences, and Bigram takes no positions"),
    ):
        setup.program.step.lower(setup.program.abstract, setup.batch)


def test_generation_says_that_the_axis_is_not_used(straight):
    from jaxscale.serving.serve import continue_texts

    listener = Listener()
    overrides = ["runtime.simulated_devices=8"]
    texts = continue_texts(straight.out, ["def "], overrides, say=listener.say, max_new_tokens=8, temperature=0.0)
    alone = continue_texts(
        straight.out, ["def "], ["mesh={data: 1}", "runtime.simulated_devices=1"], max_new_tokens=8, temperature=0.0
    )
    assert texts == alone
    assert "context=2 splits no single token: devices along it do the same" in listener.lines
