"""Schedules, decay masks and every optimizer: on a mesh as on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import Setup, make_config

from jaxscale import config as cfg
from jaxscale.training.optimizer import decay_mask, make_optimizer, make_schedule, muon_dims
from jaxscale.training.step import used_parameters


def rates(steps=100, **settings):
    schedule = make_schedule(cfg.Optimizer(learning_rate=1.0, **settings), steps=steps)
    return [float(schedule(s)) for s in range(steps + 1)]


def test_schedules_have_their_shapes():
    cosine = rates(schedule="cosine", warmup_steps=10)
    assert cosine[0] == 0
    assert cosine[5] == pytest.approx(0.5)
    assert max(cosine) == cosine[10] == 1
    assert cosine[55] == pytest.approx(0.55)
    assert cosine[100] == pytest.approx(0.1)
    linear = rates(schedule="linear", final_fraction=0.0)
    assert linear[50] == pytest.approx(0.5)
    assert linear[100] == 0
    wsd = rates(schedule="wsd", warmup_steps=10, decay_steps=30, final_fraction=0.0)
    assert wsd[10:71] == [1.0] * 61
    assert wsd[85] == pytest.approx(0.5)
    assert wsd[100] == pytest.approx(0)
    assert rates(schedule="constant") == [1.0] * 101


@pytest.mark.parametrize(
    "settings", [{"warmup_steps": 100}, {"schedule": "wsd", "warmup_steps": 50, "decay_steps": 60}]
)
def test_schedules_longer_than_the_run_are_refused(settings):
    with pytest.raises(ValueError, match="optimizer"):
        rates(**settings)


EVERYTHING = {"norm": "layernorm", "position": "learned", "mlp": "gelu", "attention_bias": True, "mlp_bias": True,
              "qk_norm": True}  # fmt: skip


@pytest.mark.parametrize("model", [{}, EVERYTHING])
def test_the_default_takes_what_its_words_are_part_of(model):
    """Every norm's scale and every bias of every decoder, and nothing else."""
    mask = decay_mask(Setup(make_config(model=model)).program.axes, list(cfg.NO_DECAY))
    for path, decays in jax.tree_util.tree_leaves_with_path(mask):
        text = jax.tree_util.keystr(path)
        assert decays != ("norm" in text or "bias" in text), text


def test_norms_and_biases_do_not_decay_and_muon_takes_matrices():
    setup = Setup(make_config(model={"attention_bias": True}))
    mask = decay_mask(setup.program.axes, ["norm", "bias"])
    assert mask["embedding"]
    assert mask["layers"]["attention"]["q"]
    assert not mask["layers"]["attention"]["q_bias"]
    assert not mask["layers"]["mlp_norm"]["scale"]
    named = decay_mask(setup.program.axes, ["embedding", "q", "attention"])
    assert not named["embedding"]
    assert named["unembedding"], "another name, though it ends alike"
    assert not named["layers"]["attention"]["out"]
    assert named["layers"]["attention_norm"]["scale"]
    dims = muon_dims(setup.program.axes)
    assert dims["embedding"] is None
    assert dims["layers"]["attention_norm"]["scale"] is None
    assert dims["layers"]["attention"]["q_bias"] is None
    assert dims["layers"]["attention"]["q"] == optax.contrib.MuonDimensionNumbers((1,), (2, 3))
    assert dims["layers"]["attention"]["out"] == optax.contrib.MuonDimensionNumbers((1, 2), (3,))


@pytest.mark.parametrize("name", ["lion", "adafactor", "muon"])
def test_every_optimizer_learns_alike_on_a_mesh(name):
    rate = {"lion": 1e-3, "adafactor": 1e-1, "muon": 1e-2}[name]
    optimizer = {"name": name, "learning_rate": rate, "schedule": "constant"}
    one = Setup(make_config(optimizer=optimizer)).steps(4)
    many = Setup(make_config({"data": 2, "fsdp": 2, "tensor": 2}, optimizer=optimizer)).steps(4)
    np.testing.assert_allclose(many[0], one[0], rtol=2e-5)
    assert one[0][-1] < one[0][0]


def test_the_moving_average_follows_the_parameters():
    setup = Setup(make_config(optimizer={"ema": 0.5}))
    with setup.context():
        state = setup.program.init()
        state, _ = setup.program.step(state, setup.batch)
        first = np.asarray(state.params["embedding"])
        state, _ = setup.program.step(state, setup.batch)
        second = np.asarray(state.params["embedding"])
        used = used_parameters(setup.config, state)["embedding"]
    np.testing.assert_allclose(state.ema["embedding"], first / 4 + second / 2, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(used, (first + 3 * second) / 4, rtol=1e-6, atol=1e-8)


def test_bfloat16_compute_keeps_float32_parameters_and_moments():
    setup = Setup(make_config({"fsdp": 2, "tensor": 4}, step={"compute_dtype": "bfloat16"}))
    losses, _, state = setup.steps(3)
    assert {str(x.dtype) for x in jax.tree.leaves(state.params)} == {"float32"}
    assert {str(x.dtype) for x in jax.tree.leaves(state.opt_state) if x.ndim} == {"float32"}
    full = Setup(make_config()).steps(3)[0]
    np.testing.assert_allclose(losses, full, rtol=2e-2)
    assert "bf16" in setup.hlo()


def test_muon_orthogonalises_each_expert_by_itself():
    """All experts of a layer at once as each of them alone."""
    axes = ("layers", "experts", "expert_embed", "expert_mlp")
    config = cfg.Optimizer(name="muon", learning_rate=1e-2, warmup_steps=0, schedule="constant", clip_norm=None)
    rng = np.random.default_rng(0)
    weights, gradients = (rng.standard_normal((2, 4, 8, 16)).astype(np.float32) for _ in range(2))

    def updated(weight, gradient, names):
        optimizer = make_optimizer(config, {"w": names}, steps=10)
        params = {"w": jnp.asarray(weight)}
        return np.asarray(optimizer.update({"w": jnp.asarray(gradient)}, optimizer.init(params), params)[0]["w"])

    with Setup(make_config({"data": 1})).context():
        together = updated(weights, gradients, axes)
        alone = [
            [updated(w, g, axes[2:]) for w, g in zip(*layer, strict=True)]
            for layer in zip(weights, gradients, strict=True)
        ]
    np.testing.assert_allclose(together, np.stack([np.stack(layer) for layer in alone]), atol=1e-6)
