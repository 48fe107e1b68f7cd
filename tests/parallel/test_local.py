"""The door to shard_map: under a vmap over a mesh axis it gives what a Python loop gives, and sends what that sends."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from support import Setup, collectives, make_batch, make_config, place, random_params

import jaxscale
from jaxscale.parallel.local import on_each_device, over_axis
from jaxscale.parallel.sharding import on_mesh, with_vectors
from jaxscale.training.step import gradients

P = jax.P
RNG = np.random.default_rng(0)
N = 2  # slices
PACKAGE = Path(jaxscale.__file__).parent


@pytest.fixture
def wide():
    """The vmapped axis and two more."""
    mesh = jax.make_mesh((N, 2, 2), ("pipeline", "fsdp", "tensor"))
    with on_mesh(mesh):
        yield mesh


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def put(x, *spec):
    return jax.device_put(x, P(*spec))


def one(x, i):
    """Slice i of an array, in the layout of its other dims."""
    return put(np.asarray(x)[i], *jax.typeof(x).sharding.spec[1:])


def assert_trees_equal(got, wanted):
    """Within 1e-6 of each array's largest element: sums over devices may come in another order."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * max(1, np.abs(b).max()))


def slices(f, *args, shared=()):
    """What f gives for each slice by itself, stacked; the arguments in `shared` are the same for all."""
    run = jax.jit(f)
    each = [run(*(x if k in shared else one(x, i) for k, x in enumerate(args))) for i in range(N)]
    return jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *each)


def compiled(f, *args):
    return jax.jit(f).lower(*args).compile().as_text()


def permuted(hlo):
    """(source, target) of all collective-permutes."""
    pairs = [re.findall(r"\{(\d+),(\d+)\}", line) for line in re.findall(r"source_target_pairs=\{(\S*)\}", hlo)]
    return [(int(a), int(b)) for found in pairs for a, b in found]


# --- by itself ------------------------------------------------------------------------------------------------


def every_collective(check_vma):
    """(x [8, 16], w [16, 8], v [16], segments [8]) -> a number, its parts: split, whole, and integers."""

    def body(x, w, v, segments):
        w = lax.all_gather(w, "fsdp", axis=0, tiled=True)
        if check_vma:
            v = lax.pcast(v, ("fsdp", "tensor"), to="varying")
        y = jnp.sin((x * v) @ w) * (1 + segments[:, None])
        y = lax.psum_scatter(y, "tensor", scatter_dimension=0, tiled=True)
        y = y + lax.ppermute(jnp.cos(y), "fsdp", [(0, 1), (1, 0)])
        y = lax.all_to_all(y, "fsdp", split_axis=1, concat_axis=0, tiled=True)
        return y, lax.psum(jnp.cos(y).sum(), ("fsdp", "tensor")), segments + lax.psum(segments.max(), "fsdp")

    specs = (P("fsdp", None), P("fsdp", "tensor"), P(), P("fsdp"))
    run = on_each_device(body, specs, (P("tensor", "fsdp"), P(), P("fsdp")), check_vma=check_vma)

    def f(x, w, v, segments):
        y, total, counts = run(x, w, v, segments)
        return jnp.square(y).sum() + total * (counts * segments).sum(), (y, total, counts)

    return f


def arguments():
    return (
        put(normal(N, 8, 16), "pipeline", "fsdp", None),
        put(normal(N, 16, 8), "pipeline", "fsdp", "tensor"),
        put(normal(N, 16), "pipeline", None),
        put(RNG.integers(0, 3, (N, 8)).astype(np.int32), "pipeline", "fsdp"),
    )


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("remat", [False, True])
def test_values_gradients_and_what_is_sent_are_those_of_a_loop(wide, check_vma, remat):
    def f(*args):
        run = lambda *args: every_collective(check_vma)(*args)  # noqa: E731  made anew, inside the vmap
        return jax.value_and_grad(jax.checkpoint(run) if remat else run, argnums=(0, 1, 2), has_aux=True)(*args)

    args = arguments()
    mapped = over_axis(f, "pipeline")
    assert_trees_equal(jax.jit(mapped)(*args), slices(f, *args))
    together = compiled(mapped, *args)
    narrow = jax.make_mesh((2, 2), ("fsdp", "tensor"), devices=jax.devices()[:4])
    with on_mesh(narrow):
        alone = compiled(f, *(one(x, 0) for x in args))
    assert kinds(together, wide) == kinds(alone, narrow)
    assert permuted(together)
    assert all(a // 4 == b // 4 for a, b in permuted(together))  # the vmapped axis is the slowest
    assert together.count(" collective-permute(") == alone.count(" collective-permute(")


def kinds(hlo, mesh):
    """What is sent, and never along the vmapped axis."""
    found = collectives(hlo.replace("[1]", "[]"), mesh)  # a slice's scalar is an array of one
    assert found
    assert not any("pipeline" in axes for _, axes in found)
    return found


@pytest.mark.parametrize("check_vma", [True, False])
def test_an_argument_that_all_slices_share_has_a_gradient_in_each(wide, check_vma):
    x, w, v, segments = arguments()
    w, v = one(w, 0), one(v, 0)

    def f(*args):
        return jax.grad(every_collective(check_vma), argnums=(0, 1, 2), has_aux=True)(*args)

    got = jax.jit(over_axis(f, "pipeline", in_axes=(0, None, None, 0)))(x, w, v, segments)
    assert_trees_equal(got, slices(f, x, w, v, segments, shared=(1, 2)))


@pytest.mark.parametrize("check_vma", [True, False])
def test_arguments_that_are_all_shared(wide, check_vma):
    """Only the gradient that comes back differs between slices."""
    *args, scale = *(one(x, 0) for x in arguments()), put(normal(N), "pipeline")

    def f(scale, *args):
        return jax.grad(lambda *args: every_collective(check_vma)(*args)[0] * scale, argnums=(0, 1, 2))(*args)

    got = jax.jit(over_axis(f, "pipeline", in_axes=(0, None, None, None, None)))(scale, *args)
    assert_trees_equal(got, slices(f, scale, *args, shared=(1, 2, 3, 4)))


def test_inside_a_loop_and_a_jitted_function_that_was_called_before(wide):
    """jax keeps what it traced: the program of a call outside is not the one to vmap."""
    args = arguments()
    inner = jax.jit(lambda *args: every_collective(True)(*args)[0])

    def f(x, *rest):
        def step(shift, _):
            value, found = jax.value_and_grad(jax.checkpoint(inner), argnums=(0, 1, 2))(x + shift, *rest)
            return shift + 1e-5 * value, found

        return lax.scan(step, 0 * x.sum(), None, length=3)

    def on_slices(*args):
        return f(*args)

    wanted = slices(on_slices, *args)
    assert_trees_equal(jax.jit(over_axis(f, "pipeline"))(*args), wanted)
    assert "pipeline" not in str(kinds(compiled(over_axis(f, "pipeline"), *args), wide))
    inner(*(one(x, 0) for x in args))
    assert_trees_equal(slices(on_slices, *args), wanted)


def test_one_function_called_with_two_shapes(wide):
    def f(x, y):
        run = on_each_device(lambda x: jnp.sin(x) * jnp.exp(x), (P("tensor"),), P("tensor"))
        return jax.grad(lambda x, y: (run(x).sum() * run(y)).sum(), argnums=(0, 1))(x, y)

    args = put(normal(N, 8, 4).astype(jnp.bfloat16), "pipeline", "tensor"), put(normal(N, 16), "pipeline", "tensor")
    assert_trees_equal(jax.jit(over_axis(f, "pipeline"))(*args), slices(f, *args))


def test_a_gradient_that_is_the_same_for_all_slices(wide):
    """The backward pass of a sum has nothing from the forward one, and yet each slice has its own."""

    def f(x):
        body = lambda x: lax.psum_scatter(x, "tensor", scatter_dimension=0, tiled=True)  # noqa: E731
        run = on_each_device(body, (P(None, "fsdp"),), P("tensor", "fsdp"), check_vma=False)
        return jax.grad(lambda x: run(x).sum())(x)

    x = put(normal(N, 8, 16), "pipeline", None, "fsdp")
    assert_trees_equal(jax.jit(over_axis(f, "pipeline"))(x), slices(f, x))


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_gradient_of_the_whole(wide, check_vma):
    """Of what all slices share it is the sum over them."""
    x, w, v, segments = arguments()
    w, v = one(w, 0), one(v, 0)

    def f(*args):
        return every_collective(check_vma)(*args)[0]

    def total(*args):
        return over_axis(f, "pipeline", in_axes=(0, None, None, 0))(*args).sum()

    got = jax.jit(jax.grad(jax.checkpoint(total), argnums=(0, 1, 2)))(x, w, v, segments)
    dx, dw, dv = slices(jax.grad(f, argnums=(0, 1, 2)), x, w, v, segments, shared=(1, 2))
    assert_trees_equal(got, (dx, dw.sum(0), dv.sum(0)))


def test_one_axis_inside_another():
    mesh = jax.make_mesh((N, 2, 2), ("pipeline", "data", "tensor"))
    with on_mesh(mesh):
        x = put(normal(N, 2, 8, 16), "pipeline", "data", "tensor", None)
        w = put(normal(N, 16, 8), "pipeline", None, "tensor")

        def body(x, w):
            y = lax.all_gather(x, "tensor", axis=0, tiled=True) @ lax.all_gather(w, "tensor", axis=1, tiled=True)
            return lax.psum_scatter(jnp.sin(y), "tensor", scatter_dimension=0, tiled=True)

        def f(x, w):
            run = on_each_device(body, (P("tensor", None), P(None, "tensor")), P("tensor", None))
            return jax.value_and_grad(lambda *args: jnp.square(run(*args)).sum(), argnums=(0, 1))(x, w)

        mapped = over_axis(over_axis(f, "data", in_axes=(0, None)), "pipeline")
        got = jax.jit(mapped)(x, w)
        wanted = [slices(f, one(x, i), one(w, i), shared=(1,)) for i in range(N)]
        assert_trees_equal(got, jax.tree.map(lambda *xs: np.stack(xs), *wanted))
        assert {axes for _, axes in collectives(compiled(mapped, x, w), mesh)} == {("tensor",)}


def test_an_array_that_is_reduced_over_an_axis(wide):
    """Its gradient leaves as partial sums, and is added up where the mark was set."""
    x, w = put(normal(N, 8, 16), "pipeline", "tensor", None), put(normal(N, 16, 8), "pipeline", None, None)

    def f(x, w):
        reduced = P(None, None, reduced={"tensor"})
        run = on_each_device(lambda x, w: jnp.sin(x @ w), (P("tensor", None), reduced), P("tensor", None))
        return jax.value_and_grad(lambda x, w: jnp.square(run(x, jax.reshard(w, reduced))).sum(), argnums=(0, 1))(x, w)

    mapped = over_axis(f, "pipeline")
    assert_trees_equal(jax.jit(mapped)(x, w), slices(f, x, w))
    assert kinds(compiled(mapped, x, w), wide) == {("all-reduce", ("tensor",)): 1}


def test_vectors_cross_the_mesh_in_their_own_dtype(wide):
    x, v = put(normal(N, 8, 16).astype(jnp.bfloat16), "pipeline", "fsdp", None), put(normal(N, 16), "pipeline", None)
    v = v.astype(jnp.float32)

    def f(x, v):
        return jax.grad(lambda x, v: with_vectors(lambda x, v: x * v, x, v).astype(jnp.float32).sum(), 1)(x, v)

    mapped = over_axis(f, "pipeline")
    assert_trees_equal(jax.jit(mapped)(x, v), slices(f, x, v))
    text = jax.jit(mapped).lower(x, v).as_text()
    reduced = re.findall(r'"?stablehlo\.all_reduce"?.*?\}\) : \(tensor<([^>]*)>\)', text, flags=re.DOTALL)
    assert reduced == ["1x16xf32"] or reduced == ["16xf32"]


# --- in a decoder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("remat", "model"),
    [
        ("full", {"num_kv_heads": 2, "qk_norm": True}),
        ("none", {"num_kv_heads": 2, "norm": "layernorm", "attention_bias": True, "tie_embeddings": True}),
    ],
)
def test_a_decoders_gradients_with_documents(wide, remat, model):
    """Lookup, norms, attention, matmuls and loss: equal to a step on the mesh of one slice, in what is sent too."""
    config = make_config({"fsdp": 2, "tensor": 2}, model=model, step={"remat": remat})
    alone = Setup(config)
    batches = [make_batch(config, seed=i, padding=0.2 + 0.3 * i) for i in range(N)]
    params = [random_params(config, seed=i) for i in range(N)]

    def f(params, batch):
        return gradients(config, alone.program.merge, params, batch, jax.random.key(0))

    with alone.context():
        layouts = jax.tree.map(lambda x: x.sharding.spec, alone.program.abstract.params)
        run, wanted = jax.jit(f), []
        for p, b in zip(params, batches, strict=True):
            args = jax.tree.map(lambda x, s: put(x, *s), p, layouts), place(b, alone.batch_sharding)
            wanted.append(jax.device_get(run(*args)))
        sent = kinds(compiled(f, *args), alone.mesh)
    with on_mesh(wide, alone.rules):
        stacked = jax.tree.map(lambda s, *xs: put(np.stack(xs), "pipeline", *s), layouts, *params)
        rows = alone.batch_sharding.spec
        batch = {k: put(np.stack([b[k][None] for b in batches]), "pipeline", *rows) for k in batches[0]}
        mapped = over_axis(f, "pipeline")
        got = jax.device_get(jax.jit(mapped)(stacked, batch))
        assert kinds(compiled(mapped, stacked, batch), wide) == sent
    assert_trees_equal(got, jax.tree.map(lambda *xs: np.stack(xs), *wanted))


# --- elsewhere ------------------------------------------------------------------------------------------------


def test_outside_a_vmap_it_is_shard_map(wide):
    def body(x, w):
        return lax.psum_scatter(x @ w, "tensor", scatter_dimension=0, tiled=True)

    specs, out = (P(None, "tensor"), P("tensor", None)), P("tensor", None)
    args = put(normal(8, 16), None, "tensor"), put(normal(16, 8), "tensor", None)
    door, plain = on_each_device(body, specs, out), jax.shard_map(body, in_specs=specs, out_specs=out)
    program = [str(jax.make_jaxpr(jax.grad(lambda *args, f=f: f(*args).sum()))(*args)) for f in (door, plain)]
    assert program[0] == program[1]


def test_another_vmap_inside_is_refused(wide):
    def f(x):
        return jax.vmap(on_each_device(jnp.sin, (P("fsdp"),), P("fsdp")))(x)

    with pytest.raises(ValueError, match="a dim of 2, split over None; with over_axis all its vmaps are over_axis"):
        jax.jit(over_axis(f, "pipeline"))(put(normal(N, 2, 8), "pipeline", None, "fsdp"))


@pytest.mark.parametrize(("size", "split"), [(2, "fsdp"), (4, "pipeline")])
def test_a_dim_that_is_not_one_slice_a_device_is_refused(wide, size, split):
    f = lambda x: on_each_device(jnp.sin, (P("tensor"),), P("tensor"))(x)  # noqa: E731
    with pytest.raises(ValueError, match=f"a dim of {size}, split over {split}; .* as long as its mesh axis"):
        jax.jit(over_axis(f, "pipeline"))(put(normal(size, 8), split, "tensor"))


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if "puzzles/exercises" not in p.as_posix()]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_every_shard_map_goes_through_the_door(path):
    """One that did not would gather a pipeline's stages in silence."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {f"{n.value.id}.{n.attr}" for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    names |= {f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}
    found = {name for name in names if re.fullmatch(r"jax.*\b(shard_map|smap|pmap)\b.*", name)}
    assert found == ({"jax.shard_map"} if path == PACKAGE / "parallel/local.py" else set())
