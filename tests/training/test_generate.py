"""Decoding with a cache: greedy equals greedy without one, on any mesh; sampling obeys its settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import Setup, make_config, random_params

from jaxscale.rollouts.choose import Dials, Way, choose, keys_of, row_keys
from jaxscale.rollouts.sampler import Sampler

PROMPTS = [[3, 14, 15, 92, 6], [5, 35], [89, 79, 32, 38, 46, 26, 43], [249]]
MODELS = {
    "llama": {},
    "gpt2": {"position": "learned", "norm": "layernorm", "mlp": "gelu", "attention_bias": True, "tie_embeddings": True},
    "mistral": {"sliding_window": 4},
    "qwen": {"qk_norm": True},
    "gemma": {
        "num_layers": 3,
        "pattern": [{"sliding_window": 4}, {"rope": False}],
        "norm_at": "both",
        "mlp": "geglu",
        "attention_multiplier": 0.3,
        "residual_multiplier": 0.5,
    },
    "latent": {
        "num_kv_heads": 8,
        "head_dim": 24,
        "sliding_window": 6,
        "attention_multiplier": 0.3,
        "latent": {"kv_rank": 16, "q_rank": 24, "nope_head_dim": 16, "rope_head_dim": 8, "value_head_dim": 12},
    },
    "mixture": {
        "num_layers": 3,
        "moe": {"num_experts": 8, "top_k": 2, "mlp_dim": 32, "shared_mlp_dim": 16, "dense_layers": 1},
    },
    "mixture in every second layer": {
        "num_layers": 5,
        "pattern": [{"experts": False, "sliding_window": 4}, {}],
        "moe": {"num_experts": 8, "top_k": 2, "mlp_dim": 32},
    },
}


def decode(model, mesh, prompts=PROMPTS, *, seed=0, gather=None, **sampling):
    config = make_config(mesh, model=model)
    setup = Setup(config)
    params = random_params(config, std=0.3)
    options = {"max_new": 10, "temperature": 0.0, "keys": row_keys(seed, range(len(prompts)))} | sampling
    sampler = Sampler(config, setup.mesh, setup.rules, gather=gather)
    return sampler(jax.device_put(params, layouts(setup)), prompts, **options).rows(stop=False)


def layouts(setup):
    return jax.tree.map(lambda x: x.sharding, setup.program.abstract.params)


def without_cache(model, prompts=PROMPTS, count=10):
    """The whole text through the model again for every token."""
    config = make_config(model=model)
    setup = Setup(config)
    params = random_params(config, std=0.3)
    run = jax.jit(lambda p, t: setup.program.merge(p)(t))
    out = []
    with setup.context():
        for prompt in prompts:
            text = np.zeros((1, 24), np.int32)  # causal: what is behind does not matter
            text[0, : len(prompt)] = prompt
            for i in range(len(prompt), len(prompt) + count):
                text[0, i] = np.argmax(run(params, jnp.asarray(text))[0, i - 1, :250])
            out.append(text[0, len(prompt) : len(prompt) + count].tolist())
    return out


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_greedy_with_the_cache_is_greedy_without_it(model):
    assert decode(model, {"data": 1}) == without_cache(model)


@pytest.mark.parametrize(
    "mesh", [{"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 8}, {"fsdp": 8}, {"fsdp": 2, "context": 4}], ids=str
)
def test_every_mesh_decodes_the_same(mesh):
    assert decode({}, mesh) == decode({}, {"data": 1})


@pytest.mark.parametrize(
    "mesh", [pytest.param({"expert": 4, "tensor": 2}, marks=pytest.mark.slow), {"fsdp": 2, "expert": 4}], ids=str
)
def test_every_mesh_decodes_the_same_of_experts(mesh):
    """Four prompts are split over four devices along expert; over eight they are not, and no more are the experts."""
    model = MODELS["mixture"] | {"num_kv_heads": 8}
    assert decode(model, mesh) == decode(model, {"data": 1})


def test_a_sequence_ends_before_the_separator():
    free = decode({}, {"data": 1})
    stop = free[0][4]
    for row, whole in zip(decode({}, {"data": 1}, stop_ids=[stop]), free, strict=True):
        assert row == (whole[: whole.index(stop)] if stop in whole else whole)


def test_a_sequence_ends_before_the_first_of_several_tokens():
    free = decode({}, {"data": 1})
    stops = [free[0][6], free[0][4], free[1][2]]
    for row, whole in zip(decode({}, {"data": 1}, stop_ids=stops), free, strict=True):
        ends = [i for i, token in enumerate(whole) if token in stops]
        assert row == whole[: min(ends, default=len(whole))]


def test_the_seed_decides():
    a, b, c = (decode({}, {"data": 1}, temperature=1.0, seed=s) for s in (1, 1, 2))
    assert a == b != c


PROBABILITIES = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
TRUNCATED = [
    ({}, {0, 1, 2, 3}),
    ({"top_k": 2}, {0, 1}),
    ({"top_p": 0.6}, {0, 1}),  # the fewest that hold 0.6
    ({"top_p": 0.5}, {0}),
    ({"greedy": True}, {0}),
]


@pytest.mark.parametrize(("settings", "wanted"), TRUNCATED, ids=str)
def test_top_k_and_top_p_leave_only_likely_tokens(settings, wanted):
    """With log-probabilities of the distribution that is left; greedy decoding has the model's own."""
    logits = jnp.log(jnp.broadcast_to(PROBABILITIES, (200, 4)))
    way = Way(4, settings.get("greedy", False), settings.get("top_k"), "top_p" in settings)
    dials = Dials(np.float32(1), np.float32(settings.get("top_p", 1)))
    with Setup(make_config()).context():
        run = jax.jit(lambda x, n, dials: choose(way, x, keys_of(n), 0, dials))
        tokens, log_probs = jax.device_get(run(logits, row_keys(0, range(200)), dials))
    assert set(tokens.tolist()) == wanted
    left = 1.0 if way.greedy else PROBABILITIES[list(wanted)].sum()
    np.testing.assert_allclose(log_probs, np.log(PROBABILITIES[tokens] / left), rtol=1e-5)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 is no number"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 2.0}, "top_p=2.0"),
        ({"max_new": 0}, "max_new_tokens=0"),
        ({"prompts": [[250]]}, "prompt token 250 is beyond"),
        ({"prompts": [[]]}, "empty"),
    ],
)
def test_impossible_settings_are_refused(sampling, message):
    with pytest.raises(ValueError, match=message):
        decode({}, {"data": 1}, **sampling)


ALONE = [({"data": 1}, name) for name in MODELS] + [({"tensor": 2}, "llama"), ({"data": 2}, "llama")]


@pytest.mark.parametrize(("mesh", "name"), ALONE, ids=str)
def test_one_prompt_alone_is_decoded_as_among_others(mesh, name):
    assert decode(MODELS[name], mesh, prompts=PROMPTS[:1]) == decode(MODELS[name], {"data": 1})[:1]
