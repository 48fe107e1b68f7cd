"""Attention over sequences that are split over the mesh, beside the same on one device."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxscale.blueprint.sequence import halo, order, way, windowed
from jaxscale.models.attention import Attention, attention, xla_attention
from jaxscale.parallel.mesh import make_mesh
from jaxscale.parallel.sharding import DEFAULT_RULES, on_mesh, shard

B, T, H = 2, 32, 8
NAMES = ("batch", "sequence", "heads", None), ("batch", "sequence", "kv_heads", None), ("batch", "sequence")


def arrays(heads: int, kv_heads: int, documents: bool):
    """q, k, v, documents (they differ between rows, and one begins within a chunk), a cotangent: in reading order."""
    rng = np.random.default_rng(heads + kv_heads)
    q, dout = (rng.standard_normal((B, T, heads, H), np.float32) for _ in range(2))
    k, v = (rng.standard_normal((B, T, kv_heads, H), np.float32) for _ in range(2))
    numbers = np.sort(rng.integers(1, 5, (B, T)), axis=1).astype(np.int32) if documents else None
    return q, k, v, numbers, dout


def value_and_gradients(run, q, k, v, dout):
    out, pull = jax.vjp(run, q, k, v)
    return (out, *pull(dout))


def on_one_device(how: Attention, q, k, v, documents, dout):
    return jax.device_get(
        value_and_gradients(lambda *x: xla_attention(*x, documents, how=how), *map(jnp.asarray, (q, k, v)), dout)
    )


def split_over(mesh: dict[str, int], how: Attention, q, k, v, documents, dout, *, zigzag: bool | None = None):
    """As `on_one_device`, computed on a mesh; what it gives is in reading order again."""
    zigzag = not windowed(how.sliding_window, T) if zigzag is None else zigzag
    places = order(T, mesh["context"], zigzag=zigzag)
    back = np.argsort(places)
    devices = jax.devices()[: math.prod(mesh.values())]
    with on_mesh(make_mesh(mesh, devices), replace(DEFAULT_RULES, zigzag=zigzag)):

        @jax.jit
        def run(q, k, v, documents, dout):
            names = (NAMES[0], NAMES[1], NAMES[1], NAMES[0])
            place = [shard(x, *own) for x, own in zip((q, k, v, dout), names, strict=True)]
            numbers = None if documents is None else shard(documents, *NAMES[2])
            return value_and_gradients(lambda *x: attention(*x, numbers, how), *place)

        moved = [None if x is None else x[:, places] for x in (q, k, v, documents, dout)]
        return [np.asarray(x)[:, back] for x in run(*moved)]


def assert_close(got, wanted):
    for a, b, name in zip(got, wanted, ("out", "dq", "dk", "dv"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()), rtol=1e-5, err_msg=name)


MESHES = [{"context": 2}, {"context": 4}, {"context": 8}, {"context": 4, "tensor": 2}]
KINDS = {
    "grouped": ((4, 2), Attention()),
    "one kv head": ((4, 1), Attention(softcap=2.0)),
    "a head each": ((2, 2), Attention(softcap=2.0)),
}


# Documents are masked after what is causal: one document is the same with a term less. Kinds differ in heads alone,
# and meshes in places: each of both meets one of the other. (Few kv heads are repeated by the model, not here.)
CASES = [
    *[(mesh, True, "grouped") for mesh in MESHES],
    ({"context": 4}, False, "grouped"),
    ({"context": 4}, True, "one kv head"),
    ({"context": 4, "tensor": 2}, True, "a head each"),
]


@pytest.mark.parametrize("split", ["gather", "ring"])
@pytest.mark.parametrize(("mesh", "documents", "kind"), CASES, ids=str)
def test_split_sequences_attend_as_whole_ones(mesh, documents, kind, split):
    (heads, kv_heads), how = KINDS[kind]
    how = Attention(softcap=how.softcap, split=split)
    made = arrays(heads, kv_heads, documents)
    assert_close(split_over(mesh, how, *made), on_one_device(how, *made))


# a device of 8 has 4 tokens, one of 2 has 16: fewer shards meet what is shorter and what is longer than that
WINDOWS = [
    *[(8, True, window) for window in (1, 3, 4, 5, 7, 20, 31, 32, 40)],
    (4, True, 7), (4, True, 20), (2, True, 7), (2, True, 20), (8, False, 7), (4, False, 20),
]  # fmt: skip


@pytest.mark.parametrize(("shards", "documents", "window"), WINDOWS)
def test_a_window_is_met_across_devices(shards, documents, window):
    """Shorter than a chunk, as long, longer, as long as the row, and beyond it."""
    how, made = Attention(sliding_window=window), arrays(4, 2, documents)
    assert_close(split_over({"context": shards}, how, *made), on_one_device(how, *made))


@pytest.mark.parametrize(("window", "zigzag"), [(7, True), (None, False)])
def test_any_order_is_right(window, zigzag):
    """A model of one's own may have windows where the feed's order is zigzag, and the other way round."""
    how, made = Attention(sliding_window=window), arrays(4, 2, documents=True)
    assert_close(split_over({"context": 4}, how, *made, zigzag=zigzag), on_one_device(how, *made))


@pytest.mark.parametrize("split", ["gather", "ring"])
def test_the_first_token_reaches_the_last_device_and_the_last_token_nothing(split):
    how, (q, k, v, _, dout) = Attention(split=split), arrays(4, 2, documents=False)
    base = split_over({"context": 4}, how, q, k, v, None, dout)[0]
    for changed, reaches in ((0, T), (T - 1, 1)):
        other = v.copy()
        other[:, changed] += 1
        differs = (split_over({"context": 4}, how, q, k, other, None, dout)[0] != base).any(axis=(0, 2, 3))
        assert differs.sum() == reaches
        assert differs[-1]


def test_each_device_has_an_early_and_a_late_chunk():
    assert order(16, 4).tolist() == [0, 1, 14, 15, 2, 3, 12, 13, 4, 5, 10, 11, 6, 7, 8, 9]
    assert order(8, 4, zigzag=False).tolist() == order(8, 1).tolist() == list(range(8))
    with pytest.raises(ValueError, match=r"data.seq_len 20 is not divisible by 2 \* 4.*; try 16 or 24"):
        order(20, 4)


def test_a_halo_is_the_window_less_one():
    assert halo(8, 4, 1, "xla") == []
    assert halo(8, 4, 8, "xla") == [7]
    assert halo(8, 4, 12, "xla") == [8, 3]
    assert halo(8, 4, 33, "xla") == [8, 8, 8]
    assert halo(512, 4, 200, "splash") == [256]
    assert halo(512, 4, 1000, "splash") == [512, 512]


def test_which_way_is_taken():
    assert way("auto", None, 64, zigzag=True, kernel="splash") == "gather"
    assert way("auto", None, 64, zigzag=True, kernel="cudnn") == "ring"
    assert way("auto", 8, 64, zigzag=False, kernel="cudnn") == "halo"
    assert way("auto", 8, 64, zigzag=True, kernel="xla") == "gather"
    with pytest.raises(ValueError, match=r"step.context_attention=ring: it knows no sliding window"):
        way("ring", 8, 64, zigzag=False, kernel="xla")
