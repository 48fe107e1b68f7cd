"""Faults that toolkits have had, one test each: what must not change a loss, and what a loss must come to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from learned import KINDS, batch_of, configured, pairs, run
from support import Setup, make_config, random_params

from jaxscale import config as cfg
from jaxscale.objectives import make_objective
from jaxscale.objectives.policy import surrogate
from jaxscale.objectives.token_values import token_values
from jaxscale.parallel.sharding import on_mesh


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_that_counts_nothing_has_a_gradient_of_exactly_zero(name):
    config = configured(name)
    batch = batch_of(config)
    for column in ("weights", "ends"):
        if column in batch:
            batch[column] = np.zeros_like(batch[column])
    metrics, grads = run(config, random_params(config), batch)
    assert metrics["loss"] == 0
    assert all((g == 0).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", ["sigmoid", "grpo", "gspo"])
def test_garbage_in_the_vocabularys_padding_changes_nothing(name):
    config = configured(name, loss={"chunk": 8})
    params = random_params(config)
    other = jax.tree.map(np.copy, params)
    assert config.model.padded_vocab_size == 256
    other["embedding"][250:] = 1e3
    other["unembedding"][:, 250:] = -1e3
    (metrics, grads), (others, other_grads) = run(config, params), run(config, other)
    assert metrics["loss"] == others["loss"]
    np.testing.assert_array_equal(grads["layers"]["attention"]["q"], other_grads["layers"]["attention"]["q"])


def test_the_chosen_text_does_not_see_the_rejected_one():
    config = configured("sigmoid")
    params, batch = random_params(config), batch_of(config)
    rejected = batch["segments"] % 2 == 0
    other = {**batch, "tokens": np.where(rejected, (batch["tokens"] + 7) % 250, batch["tokens"]).astype(np.int32)}
    found = []
    for columns in (batch, other):
        setup = Setup(config, batch=columns)
        with setup.context():
            part = jax.tree.map(lambda x: x[0], setup.batch)
            model = setup.program.merge(jax.device_put(params))
            found.append(np.asarray(token_values(model, part, vocab_size=250, chunk=None)["log_p"]))
    chosen = batch["weights"] > 0
    np.testing.assert_array_equal(found[0][chosen], found[1][chosen])
    assert (found[0][batch["weights"] < 0] != found[1][batch["weights"] < 0]).any()


@pytest.mark.parametrize("name", ["sigmoid", "grpo", "gspo"])
def test_no_gradient_flows_through_what_is_given(name):
    """Reference, old log-probabilities and advantages are data: shifting both sides alike leaves DPO as it is."""
    config = configured(name)
    params, batch = random_params(config), batch_of(config)
    if name == "sigmoid":
        shifted = {**batch, "reference": batch["reference"] + 3.0}
        chosen, rejected = ((batch["weights"] * sign > 0).sum(1) for sign in (1, -1))
        equal = chosen == rejected
        assert not equal.all()  # a constant a token cancels only where lengths are equal
        assert run(config, params, batch)[0]["loss"] != run(config, params, shifted)[0]["loss"]
        return
    none = {**batch, "advantages": np.zeros_like(batch["advantages"])}
    kl_free = make_config(data={"batch_size": 16}, init={"from": "runs/base"},
                          objective={**KINDS[name], "kl": 0.0})  # fmt: skip
    _, grads = run(kl_free, params, {n: x for n, x in none.items() if n != "reference"})
    assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_dpo_of_the_reference_itself_is_the_logarithm_of_two():
    config = configured("hinge")
    config = config.model_copy(update={"objective": cfg.Objective(kind="dpo")})
    params, batch = random_params(config), {name: pairs()[name] for name in make_objective(config).columns}
    setup = Setup(config, batch=batch)
    with setup.context():
        part = jax.tree.map(lambda x: x[0], setup.batch)
        model = setup.program.merge(jax.device_put(params))
        batch["reference"] = np.asarray(token_values(model, part, vocab_size=250, chunk=None)["log_p"])
    metrics, _ = run(config, params, batch)
    assert metrics["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert metrics["margin"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_the_side_of_the_clip(ratio, advantage):
    """min(r A, clip(r) A): a gradient wherever a move back would help, none where the ratio has gone far enough."""
    own = cfg.Objective(kind="grpo", reward="a:b", updates=2, clip=(0.2, 0.28))
    columns = {"weights": np.ones((1, 1), np.float32), "advantages": np.full((1, 1), advantage, np.float32),
               "old": np.zeros((1, 1), np.float32)}  # fmt: skip
    with on_one_device():
        loss, slope = jax.value_and_grad(lambda x: surrogate(x, columns, own)["loss"])(jnp.full((1, 1), np.log(ratio)))
    clipped = min(max(ratio, 0.8), 1.28)
    assert loss == pytest.approx(-min(ratio * advantage, clipped * advantage), rel=1e-6)
    stopped = (ratio == 2.0 and advantage > 0) or (ratio == 0.5 and advantage < 0)
    assert slope.item() == pytest.approx(0 if stopped else -ratio * advantage, rel=1e-6)


def on_one_device():
    setup = Setup(make_config())
    return on_mesh(setup.mesh, setup.rules)


class Table(nnx.Module):
    """A model of five symbols: logits of each, given the token before; token 5 stands before the first."""

    def __init__(self, logits):
        self.logits = nnx.Param(logits, out_sharding=("norm", "norm"))

    def __call__(self, tokens_BT):
        return self.logits[...][tokens_BT]


def test_the_optimum_under_a_divergence_is_the_reference_times_an_exponential():
    """By enumeration of all 25 texts of two of five symbols: pi = pi_0 e^(r / beta) / Z, to 1e-3.

    The divergence is that of each token given those before it, whose later tokens it does not see. So the reference's
    symbols are independent here, and the reward is a sum over them.
    """
    rng, beta = np.random.default_rng(0), 0.5
    first, second = np.divmod(np.arange(25), 5)
    reward = rng.normal(0, 0.5, 5)[first] + rng.normal(0, 0.5, 5)[second]
    begin = np.tile(np.log(rng.dirichlet(np.ones(5) * 3)), (6, 1))
    begin[5] = np.log(rng.dirichlet(np.ones(5) * 3))
    own = cfg.Objective(kind="grpo", reward="a:b", kl=beta, updates=2, clip=(10.0, 10.0), max_new=2)
    config = make_config(model={"vocab_size": 5}, init={"from": "runs/base"}, objective=own.model_dump())
    objective = make_objective(config)
    tokens = np.stack([np.full(25, 5), first], 1).astype(np.int32)
    targets = np.stack([first, second], 1).astype(np.int32)

    def log_p(logits):
        table = jax.nn.log_softmax(logits, -1)
        return table[tokens, targets]

    fixed = {"tokens": jnp.asarray(tokens), "targets": jnp.asarray(targets), "reference": log_p(jnp.asarray(begin))}
    fixed["advantages"] = jnp.asarray(np.repeat(reward[:, None], 2, 1))

    @jax.jit
    def step(logits):
        old = log_p(logits)
        batch = {**fixed, "old": old, "weights": jnp.exp(old.sum(1, keepdims=True)) * jnp.ones((1, 2))}
        slope = jax.grad(lambda x: objective.sums(Table(x), batch)["objective"])(logits)
        return logits - 0.5 * slope

    with on_one_device():
        logits = jnp.asarray(begin, jnp.float32)
        for _ in range(3000):
            logits = step(logits)
        found = np.exp(np.asarray(log_p(logits)).sum(1))
    wanted = np.exp(np.asarray(fixed["reference"]).sum(1) + reward / beta)
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=1e-3)
    assert np.abs(found - np.exp(np.asarray(fixed["reference"]).sum(1))).max() > 0.05  # it had to move
