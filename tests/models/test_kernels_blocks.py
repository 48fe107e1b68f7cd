"""Each kernel's forward and backward over a part of the keys, against the gradient of plain attention."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as theirs

from jaxscale.kernels import plain, splash, splash_mask
from jaxscale.kernels.plain import NEGATIVE, merge, visible
from jaxscale.models.attention import Attention, attend, splash_attention, xla_attention

RNG = np.random.default_rng(0)


def numbers(B, T, S, N, K, H):
    """q, k, v and the cotangent of the output."""
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H), (B, T, N, H)
    return [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in shapes]


def documents(B, T):
    """Three a row, at other places in each row."""
    return jnp.asarray(np.sort(RNG.integers(1, 4, (B, T)), axis=1), jnp.int32)


def whole(q, k, v, dout, mask, softcap=None):
    """The reference's (out, (dq, dk, dv))."""
    out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, mask, softcap=softcap), q, k, v)
    return out, pull(dout)


def assert_close(got, wanted, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max()))


def zigzag(T, C):
    """[C, T / C]: rank r holds chunks r and 2C-1-r of 2C."""
    chunks = np.arange(T).reshape(2 * C, -1)
    return np.stack([np.concatenate([chunks[r], chunks[2 * C - 1 - r]]) for r in range(C)])


def lse_of(q, k, mask, softcap=None):
    """log sum exp of each row's scores, [B, T, N], by the definition."""
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    scores = jnp.einsum("btnh,bsnh->btns", q, k) * q.shape[-1] ** -0.5
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    return jax.scipy.special.logsumexp(jnp.where(mask[:, :, None], scores, -jnp.inf), axis=-1)


# --- plain XLA ------------------------------------------------------------------------------------------------

CASES = [
    pytest.param(9, 4, 2, None, None, id="one block"),
    pytest.param(150, 4, 2, None, 2.0, id="softcap"),
    pytest.param(150, 4, 1, 40, None, id="window, one kv head"),
    pytest.param(128, 3, 3, 70, 2.0, id="window and softcap, no groups"),
]


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize(("T", "N", "K", "window", "softcap"), CASES)
def test_plain_blocks_are_attention_and_its_gradient(T, N, K, window, softcap, with_documents):
    q, k, v, dout = numbers(2, T, T, N, K, 8)
    mask = visible(np.arange(T)[:, None], np.arange(T)[None], window)[None]
    if with_documents:
        segments = documents(2, T)
        mask = mask & (segments[:, :, None] == segments[:, None])
    out, lse = plain.forward(q, k, v, mask, softcap=softcap)
    got = plain.backward(q, k, v, mask, out, lse, dout, softcap=softcap)
    assert_close((out, got), whole(q, k, v, dout, mask, softcap))
    assert_close(lse, lse_of(q, k, mask, softcap))
    assert {x.dtype for x in (out, lse, *got)} == {jnp.dtype("float32")}


def test_plain_without_a_mask_sees_all():
    q, k, v, dout = numbers(2, 70, 9, 4, 2, 8)
    every = np.ones((1, 70, 9), bool)
    out, lse = plain.forward(q, k, v, None)
    assert_close((out, lse), plain.forward(q, k, v, every))
    assert_close(plain.backward(q, k, v, None, out, lse, dout), whole(q, k, v, dout, every)[1])


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("cuts", [[0, 64, 150], [0, 1, 30, 149, 150]], ids=str)
def test_parts_of_the_keys_merge_to_the_whole(cuts, softcap):
    """Causal, so that many rows see nothing of the later parts; in both orders."""
    T = 150
    q, k, v, dout = numbers(2, T, T, 4, 2, 8)
    segments = documents(2, T)
    mask = visible(np.arange(T)[:, None], np.arange(T)[None], None) & (segments[:, :, None] == segments[:, None])
    parts = [(k[:, a:b], v[:, a:b], mask[:, :, a:b]) for a, b in itertools.pairwise(cuts)]
    wanted, gradients = whole(q, k, v, dout, mask, softcap)
    for order in (parts, parts[::-1]):
        done = [plain.forward(q, *part, softcap=softcap) for part in order]
        out, lse = functools.reduce(lambda a, b: merge(*a, *b), done)
        assert_close((out, lse), (wanted, lse_of(q, k, mask, softcap)))
    backs = [plain.backward(q, *part, out, lse, dout, softcap=softcap) for part in parts]
    dq, dk, dv = zip(*backs, strict=True)
    assert_close((sum(dq), jnp.concatenate(dk, 1), jnp.concatenate(dv, 1)), gradients)


def test_rows_that_see_nothing_give_nothing():
    q, k, v, dout = numbers(1, 70, 20, 4, 2, 8)
    mask = jnp.asarray(RNG.random((1, 70, 20)) < 0.3).at[:, ::3].set(False)
    out, lse = plain.forward(q, k, v, mask, softcap=2.0)
    assert not np.any(out[:, ::3])
    assert np.all(lse[:, ::3] == NEGATIVE)
    dq, dk, dv = plain.backward(q, k, v, mask, out, lse, dout, softcap=2.0)
    assert not np.any(dq[:, ::3])
    kept = np.arange(70) % 3 > 0  # the others alone give the same to k and v
    assert_close((dq[:, kept], dk, dv), whole(q[:, kept], k, v, dout[:, kept], mask[:, kept], 2.0)[1])
    merged = merge(out, lse, out, lse)
    assert_close(merged[0], out)
    assert np.all(merged[1][:, ::3] == NEGATIVE)
    nothing, none = plain.forward(q, k, v, jnp.zeros_like(mask))
    assert_close(merge(nothing, none, out, lse), (out, lse))


def test_plain_holds_the_scores_of_one_block_of_queries():
    """Temporary memory of a long sequence: less than a quarter of one [N, T, S] array, forward and backward."""
    T = 2048
    q, k, v, dout = (jax.ShapeDtypeStruct((1, T, 4, 8), jnp.float32) for _ in range(4))
    lse = jax.ShapeDtypeStruct((1, T, 4), jnp.float32)
    mask = visible(np.arange(T)[:, None], np.arange(T)[None], None)[None]
    square = 4 * T * T * 4
    for function, arguments in (
        (lambda q, k, v: plain.forward(q, k, v, mask), (q, k, v)),
        (lambda q, k, v, *more: plain.backward(q, k, v, mask, *more), (q, k, v, q, lse, dout)),
    ):
        compiled = jax.jit(function).lower(*arguments).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < square / 4


# --- splash ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 1, 2, 100, 128, 129, 130, 300, 383, 384, 10_000])
@pytest.mark.parametrize(
    ("T", "block_q", "block_kv"), [(1024, 128, 256), (1024, 256, 128), (512, 512, 512), (768, 128, 384)]
)
def test_masks_by_arithmetic_are_those_of_jax(T, block_q, block_kv, window):
    mask = masks.CausalMask((T, T)) if window is None else masks.LocalMask((T, T), (window - 1, 0), offset=0)
    heads, blocks, positions = masks.MultiHeadMask([mask] * 2), (block_q, block_kv), np.arange(T)
    wanted, _ = theirs.process_mask(heads, blocks)
    assert_same_mask(splash_mask.mask_info(positions, T, window, *blocks), wanted)
    for shrink in (False, True):
        wanted, _ = theirs.process_mask_dkv(heads, blocks, shrink_grid=shrink)
        assert_same_mask(splash_mask.mask_info_dkv(positions, T, window, *blocks, shrink=shrink), wanted)


def assert_same_mask(got, wanted):
    for name, value in wanted._asdict().items():
        mine = getattr(got, name)
        assert (mine is None) == (value is None), name
        if value is not None:
            assert mine.dtype == value.dtype
            np.testing.assert_array_equal(mine, value, err_msg=name)


@pytest.mark.parametrize("window", [None, 1, 130, 700])
def test_blocks_of_any_positions_are_those_of_their_mask(window):
    for positions in (*zigzag(1024, 2), RNG.permutation(1024)[:512], np.arange(1024, 1536)):
        square = visible(positions[:, None], np.arange(1024)[None], window).reshape(-1, 128, 8, 128)
        wanted = square.any((1, 3)).astype(int) + square.all((1, 3))
        np.testing.assert_array_equal(splash_mask.block_kinds(positions, 1024, window, 128, 128), wanted)


def test_the_next_block_after_the_last_is_the_first():
    """Nothing follows the last block to compute, so its kernel reads the first one, which is of the next head."""
    kinds = np.asarray([[0, 1, 0], [2, 0, 0]])
    np.testing.assert_array_equal(splash_mask.next_block(kinds), [[1, 1, 0], [0, 1, 1]])
    np.testing.assert_array_equal(splash_mask.next_block(0 * kinds), 0 * kinds)


def test_masks_of_all_ranks_have_one_shape_and_compute_each_block_once():
    T, C = 4096, 4
    for window in (None, 700):
        rows = zigzag(T, C)
        alone = [splash_mask.mask_info(row, T, window, 128, 256) for row in rows]
        together = splash_mask.stack(alone, axis=2)
        assert len({x.shape for x in (together.block_mask, together.data_next)}) == 1
        for info, row in zip(zip(together.block_mask, together.data_next, strict=True), rows, strict=True):
            kinds = splash_mask.block_kinds(row, T, window, 128, 256)
            for kind, data, wanted in zip(info[0][0], info[1][0], kinds, strict=True):
                assert sorted(data[kind > 0]) == list(np.flatnonzero(wanted))


BLOCKS = [
    pytest.param(2, 1, None, None, id="one kv head"),
    pytest.param(4, 2, 200, None, id="window"),
    pytest.param(2, 2, None, 2.0, id="softcap"),
    pytest.param(2, 1, 1, 2.0, id="window 1, softcap"),
]


@pytest.fixture(params=[True, False], ids=["fused", "unfused"])
def small_blocks(request, monkeypatch):
    """Blocks of 128, so that a short sequence has several, some of which no query sees."""
    monkeypatch.setattr(splash, "FUSED_COPIES", 8 if request.param else 0)
    monkeypatch.setattr(splash, "largest", lambda sizes, length: 128)


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (200, 2.0)], ids=["causal", "window, softcap"])
@pytest.mark.usefixtures("small_blocks")
def test_splash_and_its_gradient_equal_the_reference(window, softcap, with_documents):
    T = 512
    q, k, v, dout = numbers(2, T, T, 4, 2, 128)
    segments = documents(2, T) if with_documents else None
    how = Attention(window, softcap)
    run = functools.partial(splash_attention, segments_BT=segments, how=how, interpret=True)
    out, pull = jax.vjp(run, q, k, v)
    wanted, gradients = jax.vjp(functools.partial(xla_attention, segments_BT=segments, how=how), q, k, v)
    assert_close((out, pull(dout)), (wanted, gradients(dout)), 1e-4)


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize(("N", "K", "window", "softcap"), BLOCKS)
@pytest.mark.parametrize("C", [2, 4])
@pytest.mark.usefixtures("small_blocks")
def test_splash_of_a_rank_equals_the_reference(C, N, K, window, softcap, with_documents):
    """Every rank's zigzag queries against the whole sequence of keys, by a rank that is traced; float32."""
    T = 256 * C
    q, k, v, dout = numbers(2, T, T, N, K, 128)
    segments, positions = documents(2, T) if with_documents else None, zigzag(T, C)
    mask = visible(np.arange(T)[:, None], np.arange(T)[None], window)[None]
    if with_documents:
        mask = mask & (segments[:, :, None] == segments[:, None])
    wanted, gradients = whole(q, k, v, dout, mask, softcap)
    how = {"positions": positions, "window": window, "softcap": softcap, "interpret": True}

    @jax.jit
    def run(rank, q, dout, here):
        out, lse = splash.forward(q, k, v, here, segments, rank=rank, **how)
        return out, lse, splash.backward(q, k, v, here, segments, out, lse, dout, rank=rank, **how)

    totals = []
    for rank in range(C):
        own = positions[rank]
        out, lse, (dq, *dkv) = run(rank, q[:, own], dout[:, own], None if segments is None else segments[:, own])
        assert lse.dtype == jnp.float32
        assert_close((out, lse), (wanted[:, own], lse_of(q, k, mask, softcap)[:, own]), 1e-4)
        assert_close(dq, gradients[0][:, own], 1e-4)
        totals.append(dkv)
    assert_close([sum(x) for x in zip(*totals, strict=True)], gradients[1:], 1e-4)


@pytest.mark.usefixtures("small_blocks")
def test_splash_of_parts_of_the_keys_merges_to_the_whole():
    """Keys cut in two: the first half of the queries sees nothing of the second half of the keys."""
    T, half = 512, 256
    q, k, v, dout = numbers(1, T, T, 2, 1, 128)
    segments = documents(1, T)
    mask = visible(np.arange(T)[:, None], np.arange(T)[None], None)[None] & (segments[:, :, None] == segments[:, None])
    wanted, gradients = whole(q, k, v, dout, mask)
    parts = [(k[:, a:b], v[:, a:b], segments, segments[:, a:b], np.arange(T) - a) for a, b in ((0, half), (half, T))]
    done = [splash.forward(q, *part[:4], positions=part[4], interpret=True) for part in parts]
    assert np.all(done[1][1][:, :half] == NEGATIVE)
    assert not np.any(done[1][0][:, :half])
    out, lse = merge(*done[0], *done[1])
    assert_close(out, wanted, 1e-4)
    backs = [splash.backward(q, *part[:4], out, lse, dout, positions=part[4], interpret=True) for part in parts]
    dq, dk, dv = zip(*backs, strict=True)
    assert_close((sum(dq), jnp.concatenate(dk, 1), jnp.concatenate(dv, 1)), gradients, 1e-4)


@pytest.mark.usefixtures("small_blocks")
def test_splash_beside_no_key_of_its_document():
    """A query whose document has no key here: out 0, lse NEGATIVE, and no gradient, even as the whole row."""
    q, k, v, dout = numbers(1, 256, 256, 2, 1, 128)
    queries = jnp.where(jnp.arange(256) % 5 == 0, 7, 1)[None].astype(jnp.int32)
    how = {"positions": np.full(256, 255), "interpret": True}
    ones = jnp.ones_like(queries)
    out, lse = splash.forward(q, k, v, queries, ones, **how)
    mask = jnp.broadcast_to((queries == 1)[:, :, None], (1, 256, 256))
    want, want_lse = plain.forward(q, k, v, mask)
    assert_close((out, lse), (want, want_lse), 1e-4)
    assert np.all(lse[:, ::5] == NEGATIVE)
    got = splash.backward(q, k, v, queries, ones, out, lse, dout, **how)
    assert_close(got, plain.backward(q, k, v, mask, want, want_lse, dout), 1e-4)


def test_splash_fuses_its_backward_only_where_the_partial_dqs_are_few():
    assert splash.block_sizes(16_384, 16_384).use_fused_bwd_kernel
    assert not splash.block_sizes(32_768, 32_768).use_fused_bwd_kernel
    assert not splash.block_sizes(4_096, 131_072).use_fused_bwd_kernel  # a device's queries against all keys
    assert splash.block_sizes(8_192, 8_192, 256).block_kv_dkv == 1024  # more does not fit into VMEM
    with pytest.raises(ValueError, match="splash wants sequences that are a multiple of 128, not 200"):
        splash.block_sizes(200, 256)


@pytest.mark.parametrize("T", [2048, 32_768], ids=["fused", "unfused"])
def test_splash_lowers_for_a_tpu(T):
    """Forward and backward; quickly, though the mask has 10^9 elements."""
    q, k, v = (jax.ShapeDtypeStruct((1, T, n, 128), jnp.bfloat16) for n in (2, 1, 1))
    lse = jax.ShapeDtypeStruct((1, T, 2), jnp.float32)
    how = {"positions": zigzag(2 * T, 2), "window": None}

    def both(rank, q, k, v, lse, dout):
        out, _ = splash.forward(q, k, v, None, None, rank=rank, **how)
        return out, splash.backward(q, k, v, None, None, out, lse, dout, rank=rank, **how)

    rank = jax.ShapeDtypeStruct((), jnp.int32)
    keys = [jax.ShapeDtypeStruct((1, 2 * T, 1, 128), jnp.bfloat16)] * 2
    text = jax.jit(both).trace(rank, q, *keys, lse, q).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == (2 if T == 2048 else 3)
    assert k.shape == v.shape
