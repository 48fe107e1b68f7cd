"""A loop over layers of several kinds is the loop that one would write; and a model of them is the same everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import Setup, assert_gradients_equal, make_batch, make_config, random_params

from jaxscale import config as cfg
from jaxscale.models import pattern
from jaxscale.training.step import gradients

# --- the loop -------------------------------------------------------------------------------------------------


def layer(carry, x, kind):
    """Another function for each kind, and an output beside the carry."""
    carry = jnp.tanh(kind * carry @ x["w"] + x["b"])
    return carry, {"sum": carry.sum(), "b": x["b"] * kind}


def by_hand(carry, xs, kinds, *, reverse=False):
    outs, layers = [], range(len(xs["b"]))
    for i in reversed(layers) if reverse else layers:
        carry, out = layer(carry, jax.tree.map(lambda x, i=i: x[i], xs), kinds[i % len(kinds)])
        outs.append(out)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *(outs[::-1] if reverse else outs))


def scan(layer, carry, xs, kinds, **options):
    """The loop over one stack."""
    runs = [([("", kind) for kind in kinds], len(xs["b"]))]
    carry, outs = pattern.scan_runs(layer, carry, {"": xs}, runs, **options)
    return carry, outs[""]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("layers", "period"), [(1, 1), (4, 1), (4, 2), (5, 2), (7, 3), (8, 3), (2, 3), (3, 3)])
def test_the_loop_is_the_one_that_one_would_write(layers, period, reverse):
    rng = np.random.default_rng(0)
    xs = {"w": jnp.asarray(rng.normal(size=(layers, 4, 4))), "b": jnp.asarray(rng.normal(size=(layers, 4)))}
    carry, kinds = jnp.asarray(rng.normal(size=(2, 4))), [1.0, 0.5, -2.0][:period]

    def total(run, xs):
        last, outs = run(carry, xs, kinds, reverse=reverse)
        return (last**2).sum() + (jnp.arange(1.0, layers + 1) * outs["sum"]).sum() + outs["b"].var(), (last, outs)

    runs = functools.partial(scan, layer), by_hand
    with Setup(make_config()).context():
        xs = jax.device_put(xs, jax.P())
        (got, wanted) = (jax.jit(jax.value_and_grad(functools.partial(total, run), has_aux=True))(xs) for run in runs)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, wanted)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    "runs",
    [[("a", 1), ("ab", 4)], [("ab", 5)], [("abb", 8)], [("ba", 1), ("abb", 7)], [("aab", 2)], [("a", 2), ("b", 3)]],
    ids=str,
)
def test_layers_of_several_stacks_are_taken_in_their_order(runs, reverse):
    """Stack a has a bias, and stack b has none and returns something else."""
    rng = np.random.default_rng(0)
    names = [period[i % len(period)] for period, layers in runs for i in range(layers)]
    stacks = {n: {"w": jnp.asarray(rng.normal(size=(names.count(n), 4, 4)))} for n in sorted(set(names))}
    if "a" in stacks:
        stacks["a"]["b"] = jnp.asarray(rng.normal(size=(names.count("a"), 4)))
    periods = [([(name, float(ord(name))) for name in period], layers) for period, layers in runs]

    def own(carry, x, kind):
        carry = jnp.tanh(carry @ x["w"] * kind / 97 + x.get("b", 0))
        return carry, {"sum": carry.sum()} if "b" in x else {}

    def total(run, stacks):
        last, outs = run(jnp.ones((2, 4)), stacks)
        sums = outs["a"]["sum"] if "a" in outs else jnp.zeros(1)
        return (last**2).sum() + (jnp.arange(1.0, len(sums) + 1) * sums).sum()

    def one_by_one(carry, stacks):
        sums: dict[int, jax.Array] = {}
        for at in reversed(range(len(names))) if reverse else range(len(names)):
            place = names[:at].count(names[at])
            carry, out = own(carry, jax.tree.map(lambda x, i=place: x[i], stacks[names[at]]), float(ord(names[at])))
            sums |= {place: out["sum"]} if out else {}
        return carry, {"a": {"sum": jnp.stack([sums[i] for i in sorted(sums)])}} if sums else {}

    loop = functools.partial(pattern.scan_runs, own, runs=periods, reverse=reverse)
    with Setup(make_config()).context():
        stacks = jax.device_put(stacks, jax.P())
        got, wanted = (
            jax.jit(jax.value_and_grad(functools.partial(total, run)))(stacks)
            for run in (lambda carry, stacks: loop(carry, stacks), one_by_one)
        )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, wanted)


def test_a_loop_over_whole_periods_is_one_loop():
    """The program of 12 layers is as long as that of 6."""

    def text(layers):
        xs = {"w": jnp.zeros((layers, 4, 4)), "b": jnp.zeros((layers, 4))}
        return jax.jit(lambda xs: scan(layer, jnp.ones((2, 4)), xs, [1.0, 2.0, 3.0])).lower(xs).as_text()

    with Setup(make_config()).context():
        assert len(text(12).splitlines()) == len(text(6).splitlines())


# --- models ---------------------------------------------------------------------------------------------------

KINDS = [{"layers": 2, "sliding_window": 9, "rope_theta": 100.0}, {"rope": False}]
GEMMA = {
    "pattern": KINDS, "norm_at": "both", "norm_plus_one": True, "qk_norm": True, "mlp": "geglu",
    "embedding_multiplier": 3.0, "attention_multiplier": 0.1, "attention_softcap": 20.0, "logits_softcap": 10.0,
}  # fmt: skip
OLMO = {"pattern": KINDS, "norm_at": "after", "qk_norm": "all_heads", "attention_bias": "qkv",
        "residual_multiplier": 0.5, "logits_scaling": 2.0,
        "rope_scaling": {"kind": "linear", "factor": 4.0}}  # fmt: skip
MODELS = {"gemma": GEMMA | {"num_layers": 5}, "olmo": OLMO | {"num_layers": 6}}


def gradients_of(name, mesh=None, *, microbatches=1, **step):
    step = {"microbatches": microbatches} | step
    config = make_config(mesh, model=MODELS[name], data={"batch_size": 16}, step=step)
    setup = Setup(config, batch=make_batch(config))
    with setup.context():
        placed = jax.device_put(start(name), jax.tree.map(lambda x: x.sharding, setup.program.abstract.params))
        grad = jax.jit(functools.partial(gradients, config, setup.program.merge))
        return jax.device_get(grad(placed, setup.batch, jax.random.key(0)))


@functools.cache
def start(name):
    return random_params(make_config(model=MODELS[name]))


@functools.cache
def right(name):
    return gradients_of(name)


MESHES = [
    ("gemma", {"fsdp": 2, "tensor": 2, "data": 2}, {"remat": "dots"}),
    ("gemma", {"context": 2, "tensor": 2, "fsdp": 2}, {}),  # tokens in zigzag order, for the layers without a window
    ("gemma", {"context": 4, "data": 2}, {"context_attention": "ring", "remat": "full"}),
    ("olmo", {"tensor": 8}, {}),  # kv heads are repeated, and their norm is over all of them
    ("olmo", {"fsdp": 4, "context": 2}, {"unroll_layers": True}),
    ("olmo", {"pipeline": 2, "tensor": 2, "data": 2}, {"remat": "full", "microbatches": 4}),
]


@pytest.mark.parametrize(("name", "mesh", "step"), MESHES, ids=str)
def test_every_mesh_gives_the_gradients_of_one_device(name, mesh, step):
    grads, metrics = gradients_of(name, mesh, **step)
    wanted, wanted_metrics = right(name)
    np.testing.assert_allclose(metrics["loss"], wanted_metrics["loss"], rtol=1e-5)
    assert_gradients_equal(grads, wanted)


def test_a_pattern_of_equal_kinds_is_none():
    same = make_config(model={"pattern": [{"layers": 2}, {"sliding_window": None}]})
    assert len(same.model.kinds) == 1
    assert same.model.windows == {None: 2}


def test_stages_begin_with_the_first_kind():
    values = {"pattern": KINDS, "num_layers": 6}
    with pytest.raises(ValueError, match=r"^pipeline=4.*|num_layers 6"):
        Setup(make_config({"pipeline": 4}, model=values | {"num_layers": 8}, step={"remat": "full", "microbatches": 4}))


def test_a_file_with_a_pattern_reads_as_it_was_written(tmp_path):
    config = make_config(model=GEMMA | {"num_layers": 5})
    path = tmp_path / "config.yaml"
    path.write_text(cfg.dump_config(config))
    again = cfg.load_config(path)
    assert again.model == config.model
    assert [k.sliding_window for k in again.model.kinds] == [9, 9, None]
    assert [k.rope_theta for k in again.model.kinds] == [100.0, 100.0, 10_000.0]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"pattern": [{"rope": True}, {}], "position": "learned"}, "a kind has rope: true, and position is learned"),
        ({"pattern": [{}, {"experts": True}]}, "a kind has experts: true, and the model has none"),
        ({"pattern": [{"experts": False}], "moe": {"num_experts": 4, "top_k": 2, "mlp_dim": 8}},
         "no layer has experts, and the model has moe"),
        ({"norm": "layernorm", "norm_at": "after"}, "norm_at and norm_plus_one are of rmsnorm"),
    ],
    ids=["rope", "no experts", "all dense", "norm"],
)  # fmt: skip
def test_what_cannot_be_is_refused(values, says):
    with pytest.raises(ValueError, match=says):
        make_config(model=values)
