"""Where rows go: every pair of token and expert arrives once, sorted, and comes back; forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.blueprint.experts import most_rows, way
from jaxscale.models.dispatch import Way, numbers_to_experts, route, to_experts, to_tokens
from jaxscale.parallel.local import on_each_device

S, D = 6, 3  # tokens of a shard
SPLIT = jax.P("expert")


def on_shards(run, shards: int, *arrays):
    """`run` on each of these devices, with its part of the arrays; the results stacked."""
    mesh = jax.make_mesh((shards,), ("expert",), devices=jax.devices()[:shards])
    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, jax.NamedSharding(mesh, SPLIT)) for a in arrays]
        return jax.device_get(jax.jit(on_each_device(run, [SPLIT] * len(arrays), SPLIT))(*placed))


def choices(kind: str, tokens: int, num_experts: int, top_k: int) -> np.ndarray:
    """Each token's experts [N, K], none twice."""
    rng = np.random.default_rng(len(kind))
    if kind == "one":
        return np.tile(np.arange(top_k)[::-1] + num_experts - top_k, (tokens, 1)).astype(np.int32)
    return np.stack([rng.permutation(num_experts)[:top_k] for _ in range(tokens)]).astype(np.int32)


CASES = [(4, 8, 2), (2, 8, 3), (8, 8, 1), (4, 4, 4)]  # shards, experts, experts of a token


@pytest.mark.parametrize("how", ["all_to_all", "gather"])
@pytest.mark.parametrize("kind", ["random", "one"])
@pytest.mark.parametrize(("shards", "num_experts", "top_k"), CASES)
def test_rows_arrive_sorted_and_come_back(shards, num_experts, top_k, kind, how):
    there = Way(how, ("expert",), "cpu", shards, num_experts, S, top_k)
    index = choices(kind, shards * S, num_experts, top_k)
    x = np.random.default_rng(0).standard_normal((shards * S, D)).astype(np.float32)
    numbers = np.arange(1.0, index.size + 1, dtype=np.float32).reshape(index.shape)

    def local(x, index, numbers):
        path = route(index, there)
        rows = to_experts(x, there, path)
        owned = jnp.arange(there.rows) < path.sizes.sum()
        marked = jnp.where(owned[:, None], rows, jnp.nan)  # what a row that nobody owns has must not come back
        return rows, path.sizes, numbers_to_experts(numbers, there, path), to_tokens(marked, there, path)

    rows, sizes, there_numbers, back = on_shards(local, shards, x, index, numbers)
    np.testing.assert_array_equal(sizes, np.bincount(index.ravel(), minlength=num_experts))
    local_experts = num_experts // shards
    for shard in range(shards):
        mine = slice(shard * there.rows, (shard + 1) * there.rows)
        experts = range(shard * local_experts, (shard + 1) * local_experts)
        pairs = [pair for e in experts for pair in np.flatnonzero(index.ravel() == e)]
        np.testing.assert_array_equal(rows[mine][: len(pairs)], x[np.array(pairs, int) // top_k])
        np.testing.assert_array_equal(there_numbers[mine][: len(pairs)], numbers.ravel()[pairs])
    np.testing.assert_allclose(back, top_k * x, rtol=1e-6)


@pytest.mark.parametrize("how", ["all_to_all", "gather"])
def test_the_way_there_and_the_way_back_are_transposes(how):
    there = Way(how, ("expert",), "cpu", 4, 8, S, 2)
    index, rng = choices("random", 4 * S, 8, 2), np.random.default_rng(1)
    x, y = rng.standard_normal((4 * S, D)), rng.standard_normal((4 * there.rows, D))
    numbers, w = rng.standard_normal(index.shape), rng.standard_normal(4 * there.rows)
    x, y, numbers, w = (a.astype(np.float32) for a in (x, y, numbers, w))

    def local(x, y, index, numbers, w):
        path = route(index, there)
        owned = (jnp.arange(there.rows) < path.sizes.sum()).astype(jnp.float32)
        rows, back = jax.vjp(lambda x: to_experts(x, there, path), x)
        tokens, forth = jax.vjp(lambda y: to_tokens(y, there, path), y)
        sent, returned = jax.vjp(lambda n: numbers_to_experts(n, there, path), numbers)
        found = (
            (rows * y * owned[:, None]).sum(), (back(y)[0] * x).sum(), (tokens * x).sum(),
            (forth(x)[0] * y * owned[:, None]).sum(), (sent * w * owned).sum(), (returned(w)[0] * numbers).sum(),
        )  # fmt: skip
        return jnp.stack(found)[None]

    a, b, c, d, e, f = on_shards(local, 4, x, y, index, numbers, w).sum(0)
    np.testing.assert_allclose([b, c, d], a, rtol=1e-5)
    np.testing.assert_allclose(f, e, rtol=1e-5)


@pytest.mark.parametrize("how", ["all_to_all", "gather"])
def test_other_platforms_trace_forward_and_backward(how):
    """XLA's CPU backend has no ragged all-to-all, which all others use: its types at least."""
    there = Way(how, ("expert",), "tpu", 4, 8, S, 2)

    def local(x, index):
        path = route(index, there)
        rows, back = jax.vjp(lambda x: to_tokens(to_experts(x, there, path), there, path), x)
        return back(rows)[0]

    mesh = jax.sharding.AbstractMesh((4,), ("expert",), axis_types=(jax.sharding.AxisType.Explicit,))
    shapes = ((4 * S, D), jnp.bfloat16), ((4 * S, 2), jnp.int32)
    arrays = [jax.ShapeDtypeStruct(*s, sharding=jax.NamedSharding(mesh, SPLIT)) for s in shapes]
    with jax.sharding.use_abstract_mesh(mesh):
        text = str(jax.make_jaxpr(on_each_device(local, [SPLIT, SPLIT], SPLIT))(*arrays))
    assert text.count("ragged_all_to_all[") == (4 if how == "all_to_all" else 0)


@pytest.mark.parametrize(
    ("asked", "shards", "top_k", "wanted"),
    [("auto", 1, 2, "none"), ("gather", 1, 2, "none"), ("auto", 2, 2, "gather"), ("auto", 4, 2, "all_to_all"),
     ("gather", 8, 1, "gather"), ("all_to_all", 2, 8, "all_to_all")],
)  # fmt: skip
def test_the_way_that_sends_fewer_bytes(asked, shards, top_k, wanted):
    assert way(asked, shards, top_k) == wanted


def test_a_device_has_place_for_all_rows_that_may_come():
    assert most_rows(10, shards=4, top_k=2, local_experts=1) == 40  # a token goes to an expert once
    assert most_rows(10, shards=4, top_k=2, local_experts=8) == 80
