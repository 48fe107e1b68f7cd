"""Sums and averages keep float32 whatever the parameters are stored in: looked at array by array.

A norm over the whole model would hide one small array that is wrong.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import Setup, make_batch, make_config, place

from jaxscale.training.average import add_to_sum, average, empty_sum
from jaxscale.training.optimizer import make_optimizer, make_schedule
from jaxscale.training.step import gradients

ROUNDING = 2**-8  # of bfloat16: an array that is rounded once or twice differs by less
KINDS = {
    "llama": {"qk_norm": True},
    "gpt2": {"position": "learned", "norm": "layernorm", "mlp": "gelu", "attention_bias": True, "mlp_bias": True,
             "tie_embeddings": True, "num_kv_heads": 8},
    "experts": {"moe": {"num_experts": 8, "top_k": 2, "mlp_dim": 32, "linear_bias": True}},
    # in bfloat16 a token whose scores are close goes to another expert; here each goes to all
    "all experts": {"moe": {"num_experts": 4, "top_k": 4, "mlp_dim": 32, "shared_mlp_dim": 32, "score": "sigmoid"}},
}  # fmt: skip
LONG = {"batch_size": 8, "seq_len": 512}  # 4,096 tokens, half of them one token
WHOLE = {"data": 1}
CUT = {"data": 2, "fsdp": 2, "tensor": 2}
EXPERTS = {"fsdp": 2, "expert": 2, "tensor": 2}


def skewed_batch(config):
    """Half of all tokens are one token, as spaces are in a text: its row's gradient has 2,000 parts."""
    batch = make_batch(config, padding=0.1)
    rng = np.random.default_rng(1)
    batch["tokens"] = np.where(rng.random(batch["tokens"].shape) < 0.5, 7, batch["tokens"]).astype(np.int32)
    return batch


def gradient(kind: str, mesh: dict, dtype: str, **step):
    """Gradients by path, in float64, at the same parameters (those that bfloat16 can hold)."""
    step = {"param_dtype": dtype, "remat": "full"} | step
    config = make_config(mesh, model=KINDS[kind] | {"max_seq_len": 512}, data=LONG, step=step)
    setup = Setup(config, batch=skewed_batch(config))
    with setup.context():
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(dtype), start(kind, dtype))
        params = jax.device_put(params, jax.tree.map(lambda x: x.sharding, setup.program.abstract.params))
        run = jax.jit(lambda p, b: gradients(config, setup.program.merge, p, b, jax.random.key(0))[0])
        grads = jax.device_get(run(params, setup.batch))
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    return {jax.tree_util.keystr(path): np.asarray(x, np.float64) for path, x in leaves}


def start(kind: str, dtype: str):
    from support import random_params

    config = make_config(model=KINDS[kind] | {"max_seq_len": 512}, data=LONG, step={"param_dtype": dtype})
    return random_params(config, std=0.05)


@functools.cache
def right(kind: str):
    """One device, everything in float32, the batch whole: 1e-6 of float64, far below what is looked for."""
    return gradient(kind, WHOLE, "float32")


@pytest.mark.parametrize(
    ("kind", "mesh", "microbatches"),
    [
        ("llama", WHOLE, 1),
        ("gpt2", WHOLE, 4),
        ("gpt2", CUT, 1),
        ("llama", CUT, 2),
        pytest.param("experts", EXPERTS, 1, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_bfloat16_parameters_have_gradients_that_are_rounded_and_no_more(kind, mesh, microbatches):
    low = gradient(kind, mesh, "bfloat16", microbatches=microbatches)
    wanted = right(kind)
    scale = max(np.linalg.norm(w) / np.sqrt(w.size) for w in wanted.values())
    for name, w in wanted.items():
        size = max(np.linalg.norm(w), 1e-3 * scale * np.sqrt(w.size))  # what is zero in exact arithmetic is noise
        error = np.linalg.norm(low[name] - w) / size
        assert error < ROUNDING, f"{name}: {error:.2%} off"


@pytest.mark.parametrize(("kind", "mesh"), [("gpt2", WHOLE), ("all experts", EXPERTS)], ids=str)
def test_no_array_is_far_worse_than_the_others_in_bfloat16_compute(kind, mesh):
    low, wanted = gradient(kind, mesh, "float32", compute_dtype="bfloat16"), right(kind)
    skipped = "['layers']['attention']['k_bias']"  # zero in exact arithmetic
    errors = {n: np.linalg.norm(low[n] - w) / np.linalg.norm(w) for n, w in wanted.items() if n != skipped}
    assert max(errors.values()) < 2.5 * np.median(list(errors.values())), errors


# --- the optimizer's state and the average ----------------------------------------------------------------------

AXES = {"w": ("embed", "mlp"), "b": ("norm",)}


def draws(count: int) -> list[dict]:
    rng = np.random.default_rng(0)
    shapes = {"w": (16, 32), "b": (16,)}
    return [{k: rng.normal(size=s).astype(np.float32) * 10.0 ** rng.integers(-3, 1) for k, s in shapes.items()}
            for _ in range(count)]  # fmt: skip


def optimizer_state(name: str, dtype: str, grads: list[dict]) -> tuple[dict, dict]:
    """Parameters and the optimizer's floating-point arrays after all of `grads`."""
    options = {"name": name, "clip_norm": None, "b2": 0.999, "weight_decay": 0.1, "learning_rate": 1e-2}
    transform = make_optimizer(make_config(optimizer=options).optimizer, AXES, steps=100)
    params = {k: jnp.asarray(v, jnp.bfloat16).astype(dtype) for k, v in draws(1)[0].items()}
    setup = Setup(make_config())  # muon and adafactor want a mesh in context
    with setup.context():
        layout = jax.NamedSharding(setup.mesh, jax.P())
        params, state = jax.device_put((params, transform.init(params)), layout)

        @jax.jit
        def update(params, state, grads):
            updates, state = transform.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        for g in grads:
            params, state = update(params, state, jax.device_put(g, layout))
    return params, {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(state)}


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "adafactor"])
def test_the_optimizer_keeps_its_state_in_float32_under_bfloat16_parameters(name):
    params, state = optimizer_state(name, "bfloat16", draws(2))
    assert {str(x.dtype) for x in params.values()} == {"bfloat16"}
    assert {str(x.dtype) for x in state.values() if jnp.issubdtype(x.dtype, jnp.floating)} == {"float32"}


def test_adams_moments_are_those_of_float64():
    grads = draws(60)
    _, state = optimizer_state("adamw", "bfloat16", grads)
    first = {k: np.zeros_like(v, np.float64) for k, v in grads[0].items()}
    second = {k: np.zeros_like(v, np.float64) for k, v in grads[0].items()}
    for g in grads:
        for k, x in g.items():
            first[k] = 0.9 * first[k] + 0.1 * np.float64(x)
            second[k] = 0.999 * second[k] + 0.001 * np.float64(x) ** 2
    for moment, wanted in ((".mu", first), (".nu", second)):
        for k, w in wanted.items():
            (name,) = [n for n in state if moment in n and f"['{k}']" in n]
            np.testing.assert_allclose(state[name], w, rtol=2e-5, atol=1e-6 * np.abs(w).max(), err_msg=name)


@pytest.mark.parametrize("decay", [0.5, 0.99, 0.9999])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_average_is_that_of_float64_and_holds_no_random_start(decay, dtype):
    history = [{k: jnp.asarray(v).astype(dtype) for k, v in d.items()} for d in draws(40)]
    total, exact = empty_sum(history[0]), {k: np.zeros(v.shape) for k, v in history[0].items()}
    add = jax.jit(add_to_sum, static_argnums=2)
    for params in history:
        total = add(total, params, decay)
        exact = {k: decay * e + (1 - decay) * np.asarray(params[k], np.float64) for k, e in exact.items()}
    found = average(total, history[-1], decay, len(history))
    for k, e in exact.items():
        wanted = e + decay ** len(history) * np.asarray(history[-1][k], np.float64)
        np.testing.assert_allclose(found[k], wanted, rtol=1e-4, atol=2e-6 * np.abs(wanted).max(), err_msg=k)
    start = average(empty_sum(history[0]), history[0], decay, 0)
    for k, p in history[0].items():
        np.testing.assert_array_equal(start[k], p.astype(jnp.float32))


# --- one count for the learning rate -----------------------------------------------------------------------------


@functools.cache
def lion():
    """Lion without decay moves every weight by exactly the learning rate: what was applied can be seen."""
    options = {"name": "lion", "weight_decay": 0.0, "schedule": "linear", "warmup_steps": 3, "final_fraction": 0.0}
    setup = Setup(make_config(steps=12, on_nonfinite="skip", optimizer=options | {"learning_rate": 0.5}))
    bad = make_batch(setup.config)
    bad["weights"] = bad["weights"] * np.nan
    return setup, place(bad, setup.batch_sharding)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(["good", "bad", "back"]), min_size=8, max_size=13))
def test_the_reported_learning_rate_is_the_applied_one_over_skips_and_rollbacks(events):
    setup, bad = lion()
    schedule = make_schedule(setup.config.optimizer, steps=setup.config.steps)
    with setup.context():
        kept = None
        state = setup.program.init()
        for event in events:
            if event == "back" and kept is not None:
                state = jax.tree.map(jnp.copy, kept)
                continue
            kept = jax.tree.map(jnp.copy, state) if kept is None or event == "back" else kept
            step, before = int(state.step), np.asarray(state.params["embedding"])
            state, metrics = setup.program.step(state, bad if event == "bad" else setup.batch)
            moved = np.abs(np.asarray(state.params["embedding"]) - before).max()
            assert int(state.step) == step + 1
            np.testing.assert_allclose(metrics["learning_rate"], schedule(step), rtol=1e-6)
            np.testing.assert_allclose(moved, 0 if event == "bad" else schedule(step), rtol=1e-5, atol=1e-6)
