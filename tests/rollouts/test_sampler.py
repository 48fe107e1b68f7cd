"""Sampling for rollouts: programs are held, a row is its own, rows stay split, and the trainer agrees."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import Setup, make_config, random_params

from jaxscale.blueprint.decoding import Need, bucket
from jaxscale.objectives.token_values import token_values
from jaxscale.parallel.sharding import on_mesh
from jaxscale.rollouts.choose import Dials, draw, row_keys
from jaxscale.rollouts.layouts import device_memory
from jaxscale.rollouts.sampler import Sampler

V, NEW = 250, 12
EXPERTS = {"moe": {"num_experts": 8, "top_k": 2, "mlp_dim": 32}, "num_kv_heads": 8}
LATENT = {
    "num_kv_heads": 8,
    "head_dim": 24,
    "latent": {"kv_rank": 16, "q_rank": 24, "nope_head_dim": 16, "rope_head_dim": 8, "value_head_dim": 12},
}
MESHES = [{"data": 8}, {"fsdp": 8}, {"tensor": 2, "data": 4}, {"data": 2, "fsdp": 2, "tensor": 2}]
rng = np.random.default_rng(0)
PROMPTS = [rng.integers(0, V, n).tolist() for n in (5, 2, 7, 1, 16, 30, 3, 9, 4, 11)]  # 10: eight devices do not divide
STOPS = list(range(0, 40, 2))


class Made:
    """A sampler on a mesh, with the trainer's arrays in the trainer's layout."""

    def __init__(self, mesh=None, model=None, *, unroll=False, **options):
        step = {"remat": "full", "unroll_layers": unroll}
        self.config = make_config(mesh, model=model or {}, data={"batch_size": 16}, step=step)
        self.setup = Setup(self.config)
        layouts = jax.tree.map(lambda x: x.sharding, self.setup.program.abstract.params)
        self.params = jax.device_put(random_params(self.config, std=0.2), layouts)
        self.sampler = Sampler(self.config, self.setup.mesh, self.setup.rules, **options)

    def __call__(self, prompts=PROMPTS, numbers=None, *, seed=3, **options):
        keys = row_keys(seed, numbers or range(len(prompts)), [0] * len(prompts))
        return self.sampler(self.params, prompts, keys=keys, **{"max_new": NEW, "stop_ids": STOPS} | options)


def assert_same(a, b, *, atol=1e-5):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_array_equal(a.lengths, b.lengths)
    np.testing.assert_array_equal(a.stopped, b.stopped)
    np.testing.assert_allclose(a.log_probs, b.log_probs, atol=atol)


@pytest.fixture(scope="module")
def one():
    return Made()


def test_the_stop_token_is_counted(one):
    found = one()
    assert found.tokens.shape == found.log_probs.shape == (len(PROMPTS), NEW)
    assert (found.tokens.dtype, found.log_probs.dtype, found.lengths.dtype) == (np.int32, np.float32, np.int32)
    assert found.stopped.any()
    assert not found.stopped.all()
    for tokens, log_probs, n, stopped in zip(*found, strict=True):
        assert stopped == (tokens[n - 1] in STOPS)
        assert stopped or n == NEW
        assert not set(tokens[: n - 1]) & set(STOPS)
        assert (log_probs[:n] < 0).all()
        assert not tokens[n:].any()
        assert not log_probs[n:].any()
    assert [len(row) for row in found.rows()] == found.lengths.tolist()
    assert [len(row) for row in found.rows(stop=False)] == (found.lengths - found.stopped).tolist()


def test_a_second_call_of_the_same_shapes_compiles_nothing(one):
    first = one(top_p=0.9)
    events = []

    def listen(name, seconds, **_):
        events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        other = [prompt[::-1] for prompt in PROMPTS]
        again = one(other, temperature=0.5, top_p=0.8, seed=9, stop_ids=[*STOPS[1:], 249])
        assert not [e for e in events if "compile" in e], events
        assert not np.array_equal(first.tokens, again.tokens)
        one(other, max_new=NEW + 1)
        assert [e for e in events if "compile" in e]  # the listener hears of a new shape
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_rows_sample_is_its_own(one):
    """Alone, in another order, among more rows, with dummies beside it."""
    found = one()
    for row in (0, 5):
        alone = one([PROMPTS[row]], [row])
        assert_same(alone, type(found)(*(x[row : row + 1] for x in found)))
    order = [7, 2, 5, 0]
    some = one([PROMPTS[i] for i in order], order, rows=9)
    assert_same(some, type(found)(*(x[order] for x in found)))
    twice = one([PROMPTS[0]] * 2, [0, 1])
    assert not np.array_equal(*twice.tokens)


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_samples_the_same(one, mesh, gather):
    """Ten rows: where the batch axes do not divide them, finished rows fill up."""
    made = Made(mesh, gather=gather)
    assert_same(made(), one(), atol=2e-5)
    assert_same(made(PROMPTS[:1]), one(PROMPTS[:1]), atol=2e-5)


OTHERS = [
    ({"expert": 4, "fsdp": 2}, EXPERTS),
    ({"expert": 2, "tensor": 2}, EXPERTS),
    ({"fsdp": 2, "tensor": 2}, LATENT),
    ({"context": 2, "fsdp": 2}, {}),
    ({"pipeline": 2, "fsdp": 2}, {}),
]


@pytest.mark.parametrize("gather", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("mesh", "model"), OTHERS, ids=str)
def test_other_models_and_axes_sample_the_same(mesh, model, gather):
    assert_same(Made(mesh, model, gather=gather)(), Made(None, model)(), atol=2e-5)


@pytest.mark.parametrize(
    "model", [EXPERTS | {"num_layers": 3}, LATENT, {"pattern": [{"sliding_window": 4}, {}]}], ids=str
)
def test_layers_apart_sample_as_layers_stacked(model):
    """As on a CPU by default: each layer's cache by itself."""
    assert_same(Made({"fsdp": 2}, model, unroll=True)(), Made(None, model)(), atol=2e-5)


def test_tokens_are_drawn_by_their_probabilities():
    """300 tokens in three blocks, some without a chance: 40,000 draws, within four standard deviations each."""
    rng, n = np.random.default_rng(1), 40_000
    scores = (2 * rng.standard_normal(300)).astype(np.float32)
    scores[rng.random(300) < 0.3] = -np.inf
    scores[128:200] = -np.inf
    wanted = np.exp(scores - scores.max())
    wanted /= wanted.sum()
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), n))
    found = np.bincount(jax.jit(jax.vmap(draw, (0, None, None)))(keys, scores, 5), minlength=300)
    assert not found[wanted == 0].any()
    assert (np.abs(found - n * wanted) <= 4 * np.sqrt(n * wanted) + 1).all()


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("mesh", [{"data": 8}, {"fsdp": 8}, {"fsdp": 4, "tensor": 2}], ids=str)
def test_whole_logits_of_all_rows_are_on_no_device(mesh, gather):
    made = Made(mesh, gather=gather)
    shapes = shapes_of(made)
    rows = 16 // (mesh.get("data", 1) * mesh.get("fsdp", 1))
    assert (rows, V) in shapes
    assert not [s for s in shapes if s[0] == 16 and s[-1] in (V, 256) and len(s) > 1]


def test_the_reader_of_shapes_sees_whole_logits():
    assert (16, V) in shapes_of(Made())


def shapes_of(made):
    """Shapes of float32 arrays of one device, in the compiled program of sixteen rows."""
    made([PROMPTS[0]] * 16)
    ((shape, run),) = made.sampler.programs.items()
    ids, mask = np.zeros((2, 16, shape.prompt), np.int32)
    dials = Dials(np.float32(1), np.float32(1))
    arguments = (ids, mask, np.ones(16, bool), np.zeros((16, 3), np.uint32), dials, np.asarray(STOPS, np.int32))
    with on_mesh(made.setup.mesh, made.sampler.rules):
        text = run.lower(made.params, *arguments).compile().as_text()
    return {tuple(map(int, s.split(","))) for s in re.findall(r"f32\[([\d,]+)\]", text)}


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("mesh", [{"data": 1}, *MESHES[1:]], ids=str)
def test_the_trainer_gives_the_same_log_probabilities(mesh, temperature):
    """One pass over prompt and completion, as a training step makes it."""
    made = Made(mesh)
    found = made(temperature=temperature)
    values = teacher_forced(made, found, temperature)
    for row, n in enumerate(found.lengths):
        np.testing.assert_allclose(found.log_probs[row, :n], values[row][:n], atol=1e-4)
    wrong = teacher_forced(made, found, 0.6 if temperature == 1 else 1.0)
    assert max(abs(found.log_probs[0, 0] - w[0]) for w in wrong[:1]) > 1e-3


def teacher_forced(made, found, temperature):
    rows = [[*p, *t] for p, t in zip(PROMPTS, found.rows(), strict=True)]
    tokens, targets = np.zeros((2, 16, 64), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row) - 1], targets[i, : len(row) - 1] = row[:-1], row[1:]
    merge, how = made.setup.program.merge, {"vocab_size": V, "chunk": 16, "temperature": temperature}
    with made.setup.context():
        layout = jax.NamedSharding(made.setup.mesh, jax.P(*made.setup.batch_sharding.spec[1:]))
        batch = {k: jax.device_put(x, layout) for k, x in (("tokens", tokens), ("targets", targets))}
        values = jax.device_get(jax.jit(lambda p, b: token_values(merge(p), b, **how))(made.params, batch))["log_p"]
    return [values[i, len(p) - 1 :] for i, p in enumerate(PROMPTS)]


def test_greedy_has_the_models_own_log_probabilities(one):
    found = one(temperature=0.0)
    for row, n in enumerate(found.lengths):
        np.testing.assert_allclose(found.log_probs[row, :n], teacher_forced(one, found, 1.0)[row][:n], atol=1e-4)


def test_parameters_are_left_as_they_are():
    """The trainer's arrays are read where they lie, in bfloat16 too, and none is donated."""
    made = Made({"fsdp": 4, "tensor": 2})
    before = jax.device_get(made.params)
    made()
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, made.params)), strict=True))


def test_weights_are_gathered_first_where_they_fit(monkeypatch):
    made = Made({"fsdp": 8})
    made()
    (shape,) = made.sampler.programs
    assert made.sampler.gathers_first(shape)
    need = made.sampler.need(shape)
    whole = sum(x.size * 4 for x in jax.tree.leaves(made.params))
    assert need.weights == whole
    assert need.held < whole / 7
    assert need.cache == 2 * 2 * 2 * 2 * (bucket(30) + NEW) * 4 * 4  # k and v, layers, rows, heads, tokens, head size
    for memory, wanted in ((2.0 * need.total, True), (0.5 * need.total, False)):
        monkeypatch.setattr("jaxscale.rollouts.sampler.device_memory", lambda device, m=memory: m)
        assert made.sampler.gathers_first(shape) is wanted
    assert not Need(1, 1, 1, 1).fits(None)
    assert device_memory(jax.devices()[0]) == float("inf")


def test_a_gathered_weight_has_the_compute_dtype():
    config = make_config({"fsdp": 8}, step={"compute_dtype": "bfloat16"}, model=EXPERTS)
    setup = Setup(config)
    sampler = Sampler(config, setup.mesh, setup.rules)
    kept, gathered = sampler.kept["layers"], sampler.gathered["layers"]
    assert kept["attention"]["q"].dtype == jnp.float32
    assert gathered["attention"]["q"].dtype == jnp.bfloat16
    assert gathered["mlp"]["router"].dtype == jnp.float32  # whose scores are made in float32
    assert not any(gathered["attention"]["q"].sharding.spec)


def test_buckets_are_few_and_waste_little():
    assert [bucket(n) for n in (1, 16, 17, 100, 128, 129, 160, 161, 1000, 1025)] == [
        16, 16, 32, 128, 128, 160, 160, 192, 1024, 1280,
    ]  # fmt: skip
    assert len({bucket(n) for n in range(1, 8193)}) < 30
    assert all(n <= bucket(n) <= max(16, 2 * n) for n in range(1, 8193))


def test_keys_are_checked(one):
    with pytest.raises(ValueError, match="seed or number -1 of a key"):
        row_keys(-1, [0])
    with pytest.raises(ValueError, match="3 keys for 10 prompts"):
        one.sampler(one.params, PROMPTS, keys=row_keys(0, range(3)), max_new=2)
    assert row_keys(7, [1, 2], [3, 4]).tolist() == [[7, 1, 3], [7, 2, 4]]
