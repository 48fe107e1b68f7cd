"""einsum and gather: the four cases of a sharded matmul, their results, their gradients, and what they send."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY, collectives, make_config

from jaxscale import config as cfg
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.sharding import align, einsum, fit_rules, gather, make_rules, on_mesh, shard

RNG = np.random.default_rng(0)
X, W_UP, W_DOWN = RNG.normal(size=(8, 16, 32)), RNG.normal(size=(32, 64)), RNG.normal(size=(64, 32))


@pytest.fixture
def mesh():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with on_mesh(mesh):
        yield mesh


def put(x, *spec):
    return jax.device_put(jnp.asarray(x, jnp.float32), jax.P(*spec))


def compiled(f, mesh, *args):
    return collectives(jax.jit(f).lower(*args).compile().as_text(), mesh)


def test_nothing_split_alike_sends_nothing(mesh):
    x, w = put(X, ("data", "fsdp"), None, None), put(W_UP, None, "tensor")

    def f(x, w):
        return einsum("btd,df->btf", x, w, out=("batch", "sequence", "mlp"))

    np.testing.assert_allclose(jax.jit(f)(x, w), X @ W_UP, rtol=1e-4, atol=1e-4)
    assert not compiled(f, mesh, x, w)


def test_fsdp_gathers_the_weight(mesh):
    x, w = put(X, ("data", "fsdp"), None, None), put(W_UP, "fsdp", "tensor")

    def f(x, w):
        return einsum("btd,df->btf", x, w, out=("batch", "sequence", "mlp"))

    y = jax.jit(f)(x, w)
    assert jax.typeof(y).sharding.spec == jax.P(("data", "fsdp"), None, "tensor")
    np.testing.assert_allclose(y, X @ W_UP, rtol=1e-4, atol=1e-4)
    assert compiled(f, mesh, x, w) == {("all-gather", ("fsdp",)): 1}


def test_contracting_a_split_dim_reduces_once(mesh):
    h, w = put(X @ W_UP, ("data", "fsdp"), None, "tensor"), put(W_DOWN, "tensor", None)

    def f(h, w):
        return einsum("btf,fd->btd", h, w, out=("batch", "residual_sequence", "embed"))

    y = jax.jit(f)(h, w)
    assert jax.typeof(y).sharding.spec == jax.P(("data", "fsdp"), "tensor", None)
    np.testing.assert_allclose(y, X @ W_UP @ W_DOWN, rtol=1e-4, atol=1e-3)
    # the CPU compiler writes a reduce-scatter as an all-reduce of which each device takes its part
    assert compiled(f, mesh, h, w) == {("all-reduce", ("tensor",)): 1}


def test_sequence_parallel_gathers_the_activation_once_for_two_matmuls(mesh):
    x, up = put(X, ("data", "fsdp"), "tensor", None), put(W_UP, None, "tensor")

    def f(x, a, b):
        whole = gather(x, "batch", "sequence", "embed", over="mlp")
        out = ("batch", "sequence", "mlp")
        return jnp.sum(einsum("btd,df->btf", whole, a, out=out) * einsum("btd,df->btf", whole, b, out=out))

    forward = compiled(f, mesh, x, up, up)
    assert forward == {("all-gather", ("tensor",)): 1}
    backward = compiled(jax.grad(f), mesh, x, up, up)
    # both matmuls' partial gradients are added before they are sent
    assert backward == {("all-gather", ("tensor",)): 1, ("all-reduce", ("tensor",)): 1}


def test_gradients_of_a_weight_are_scattered_over_fsdp_then_reduced_over_data(mesh):
    x, w = put(X, ("data", "fsdp"), None, None), put(W_UP, "fsdp", "tensor")

    def f(w, x):
        return jnp.sum(einsum("btd,df->btf", x, w, out=("batch", "sequence", "mlp")) ** 2)

    grad = jax.jit(jax.grad(f))(w, x)
    assert jax.typeof(grad).sharding.spec == jax.P("fsdp", "tensor")
    wanted = np.einsum("btd,btf->df", X, 2 * (X @ W_UP))
    np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-2)
    found = compiled(jax.grad(f), mesh, w, x)
    assert found == {("all-gather", ("fsdp",)): 1, ("all-reduce", ("fsdp",)): 1, ("all-reduce", ("data",)): 1}


def test_a_loss_summed_in_chunks_sends_its_weight_gradient_once(mesh):
    x, w = put(X, ("data", "fsdp"), None, None), put(W_UP, "fsdp", "tensor")
    out = ("batch", "sequence", "mlp")

    def f(w, x):
        whole = align("btd,df->btf", x, w, out=out)[1]

        def body(total, i):
            part = jax.lax.dynamic_slice_in_dim(x, i * 4, 4, 1)
            return total + jnp.sum(einsum("btd,df->btf", part, whole, out=out) ** 2), None

        return jax.lax.scan(body, jnp.zeros(()), jnp.arange(4))[0]

    hlo = jax.jit(jax.grad(f)).lower(w, x).compile().as_text()
    bodies = [block for block in hlo.split("\n\n") if "body" in block.split("{")[0]]
    assert bodies
    assert not any("all-reduce(" in b or "all-gather(" in b for b in bodies if "ENTRY" not in b)


def test_shard_moves_to_the_named_layout(mesh):
    x = shard(put(X, None, None, None), "batch", "residual_sequence", "embed")
    assert jax.typeof(x).sharding.spec == jax.P(("data", "fsdp"), "tensor", None)


def test_user_rules_override_the_tables():
    rules = make_rules(cfg.Sharding(parameters={"embed": ["data", "fsdp"]}, activations={"residual_sequence": None}))
    assert rules.parameters["embed"] == ("data", "fsdp")
    assert rules.activations["residual_sequence"] == ()
    assert rules.parameters["mlp"] == ("tensor",)


@pytest.mark.parametrize(
    ("sharding", "message"),
    [
        ({"parameters": {"embd": "fsdp"}}, "no logical axis embd; did you mean embed?"),
        ({"activations": {"batch": "dta"}}, "no mesh axis dta"),
    ],
)
def test_bad_rules_are_refused(sharding, message):
    with pytest.raises(ValueError, match=message):
        make_rules(cfg.Sharding(**sharding))


@pytest.mark.parametrize(
    ("model", "mesh", "message"),
    [
        (
            {"num_heads": 6, "head_dim": 8, "num_kv_heads": 2},
            {"tensor": 4},
            r"num_heads 6 is not divisible by 4 \(tensor=4",
        ),
        (
            {"num_heads": 12, "head_dim": 8, "num_kv_heads": 3},
            {"tensor": 4},
            "num_kv_heads 3 neither divides nor is divided by the 4",
        ),
        ({"mlp_dim": 100}, {"tensor": 8}, "mlp_dim 100 is not divisible by 8"),
        ({"embed_dim": 36, "head_dim": 8}, {"fsdp": 8}, "embed_dim 36 is not divisible by 8"),
        ({}, {"data": 16}, "rows of a microbatch .* 8 is not divisible by 16 .*; try 16"),
        ({"vocab_multiple": 3, "vocab_size": 300}, {"tensor": 8}, "padded vocab_size .* 300 is not divisible by 8"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_numbers(model, mesh, message):
    config = make_config(mesh, model=TINY | model)
    with pytest.raises(ValueError, match=message):
        fit_rules(make_rules(config.sharding), config.mesh.sizes(None), config)


def test_few_kv_heads_are_kept_whole_and_repeated():
    config = make_config({"tensor": 8})  # 2 kv heads
    rules = fit_rules(make_rules(config.sharding), config.mesh.sizes(None), config)
    assert rules.parameters["kv_heads"] == ()
    assert rules.activations["kv_heads"] == ("tensor",)
