"""Grouped matmuls: every platform's kernel against float64, and what compilers make of them."""

import functools
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import poisoned

from jaxscale.kernels import grouped, grouped_gpu, grouped_tpu
from jaxscale.kernels.grouped import Kernel, grouped_matmul
from jaxscale.parallel.local import on_each_device, over_axis
from jaxscale.parallel.sharding import on_mesh

P = jax.P
RNG = np.random.default_rng(0)
D, F = 24, 40
HERE = {
    "cpu": grouped.KERNELS["cpu"],
    "tpu": Kernel(*(functools.partial(f, interpret=True) for f in (grouped_tpu.rows, grouped_tpu.weights))),
    "gpu": Kernel(*(functools.partial(f, interpret=True) for f in (grouped_gpu.rows, grouped_gpu.weights))),
}
CHECKED = ("cpu",)  # whose types a shard_map checks here: Pallas' interpreter knows none


@pytest.fixture(params=HERE)
def platform(request, monkeypatch):
    """Each platform's kernel as it runs here; what it leaves undefined is NaN."""
    monkeypatch.setitem(grouped.KERNELS, request.param, poisoned(HERE[request.param]))
    return request.param


def arrays(rows, sizes, dtype=np.float32):
    """x, w, sizes and dy; rows that no expert has are NaN."""
    x, dy = RNG.standard_normal((rows, D)), RNG.standard_normal((rows, F))
    x[sum(sizes) :] = dy[sum(sizes) :] = np.nan
    w = RNG.standard_normal((len(sizes), D, F))
    return [jnp.asarray(a, dtype) for a in (x, w)] + [jnp.asarray(sizes, jnp.int32), jnp.asarray(dy, dtype)]


@functools.cache
def with_gradients(platform, transposed=False):
    """(x, w, sizes, dy) -> y, dx, dw."""

    @jax.jit
    def run(x, w, sizes, dy):
        def matmul(x, w):
            return grouped_matmul(x, w, sizes, platform=platform, transposed=transposed)

        y, pull = jax.vjp(matmul, x, w.swapaxes(1, 2) if transposed else w)
        dx, dw = pull(dy)
        return y, dx, dw.swapaxes(1, 2) if transposed else dw

    return run


def reference(x, w, sizes, dy):
    """y, dx, dw in float64, of the rows that experts have."""
    expert = np.repeat(np.arange(len(sizes)), sizes)
    x, w, dy = (np.asarray(a, np.float64) for a in (x, w, dy))
    x, dy = x[: expert.size], dy[: expert.size]
    dw = np.stack([x[expert == e].T @ dy[expert == e] for e in range(len(sizes))])
    return np.einsum("rd,rdf->rf", x, w[expert]), np.einsum("rf,rdf->rd", dy, w[expert]), dw


def assert_close(got, wanted, rtol):
    """Within `rtol` of each element and 1e-5 of each array's largest: float32 sums in another order."""
    for a, b in zip(got, wanted, strict=True):
        a = np.asarray(a, np.float64)[: len(b)]
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5 * np.abs(b).max(initial=0.1))


CASES = {  # of 640 rows
    "uneven": [100, 0, 3, 479, 58],
    "rows that no expert has": [0, 100, 3, 97, 0],
    "one has all": [0, 0, 640, 0, 0],
    "one has all that there are": [0, 421, 0, 0, 0],
    "none has any": [0, 0, 0, 0, 0],
    "whole blocks": [256, 128, 64, 32, 160],
}


@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(platform, case, dtype, transposed):
    """In bfloat16 within one rounding of float64, array by array: all sums are of float32."""
    args = arrays(640, CASES[case], dtype)
    got = with_gradients(platform, transposed)(*args)
    assert [a.dtype for a in got] == [dtype] * 3
    assert_close(got, reference(*args), 2**-8 if dtype == jnp.bfloat16 else 1e-6)


@pytest.mark.parametrize(("rows", "sizes"), [(100, [77]), (7, [2, 0, 4])], ids=["one expert", "few rows"])
def test_other_shapes(platform, rows, sizes):
    args = arrays(rows, sizes)
    assert_close(with_gradients(platform)(*args), reference(*args), 1e-6)


def test_a_long_sum_of_weights_is_rounded_once(platform):
    """Of ones: a bfloat16 sum would stop growing at 256."""
    x, w, sizes, dy = arrays(640, [633, 3, 0, 1, 0], jnp.bfloat16)
    _, _, dw = with_gradients(platform)(jnp.ones_like(x), w, sizes, jnp.ones_like(dy))
    np.testing.assert_array_equal(dw[:, 0, 0], sizes.astype(jnp.bfloat16))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_on_a_mesh_every_device_has_experts_of_its_own(platform, dtype):
    """With types checked; gradients leave in their operands' layouts."""
    parts = [arrays(160, sizes, dtype) for sizes in RNG.multinomial(150, [0.5, 0.3, 0.2], size=8)]
    mesh, spec = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor")), P(("data", "fsdp", "tensor"))
    with on_mesh(mesh):
        x, w, sizes, dy = (jax.device_put(jnp.concatenate(a), spec) for a in zip(*parts, strict=True))
        body = functools.partial(grouped_matmul, platform=platform)
        run = on_each_device(body, (spec,) * 3, spec, check_vma=platform in CHECKED)

        @jax.jit
        def both(x, w, sizes, dy):
            y, pull = jax.vjp(jax.checkpoint(lambda x, w: run(x, w, sizes)), x, w)
            return y, *pull(dy)

        got = both(x, w, sizes, dy)
        assert [jax.typeof(a) for a in got[1:]] == [jax.typeof(a) for a in (x, w)]
    for part, *of_device in zip(parts, *(np.split(np.asarray(a), 8) for a in got), strict=True):
        assert_close(of_device, reference(*part), 2**-8 if dtype == jnp.bfloat16 else 1e-6)


def test_under_a_vmap_over_an_axis(platform):
    """As in a pipeline's stages."""
    parts = [arrays(40, sizes) for sizes in RNG.multinomial(35, [0.5, 0.3, 0.2], size=2)]
    mesh = jax.make_mesh((2, 1), ("pipeline", "fsdp"))
    with on_mesh(mesh):
        x, w, sizes, dy = (jax.device_put(jnp.stack(a), P("pipeline")) for a in zip(*parts, strict=True))
        spec, body = P("fsdp"), functools.partial(grouped_matmul, platform=platform)

        def both(x, w, sizes, dy):
            x, w, sizes, dy = (jax.reshard(a, spec) for a in (x, w, sizes, dy))
            run = on_each_device(body, (spec,) * 3, spec, check_vma=platform in CHECKED)
            y, pull = jax.vjp(lambda x, w: run(x, w, sizes), x, w)
            return y, *pull(dy)

        got = jax.jit(over_axis(both, "pipeline"))(x, w, sizes, dy)
    for i, part in enumerate(parts):
        assert_close([np.asarray(a)[i] for a in got], reference(*part), 1e-6)


def test_the_poison_is_seen():
    """The wrapper that other tests trust: NaN in what a kernel leaves undefined, forward and backward."""
    kernel = poisoned(HERE["cpu"])
    x, w, sizes, dy = arrays(40, [20, 10])
    for a in (kernel.rows(x, w, sizes, False), kernel.rows(dy, w, sizes, True)):
        np.testing.assert_array_equal(np.isnan(a).all(1), np.arange(40) >= 30)


# --- how much is computed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(65_536, 4096, 1024, 8), (131_072, 2048, 768, 16)], ids=str)
def test_tiles_on_a_tpu_cover_little_more_than_the_rows(shape):
    """By megablox's own count of tiles, forward and backward; sizes that divide nothing."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import make_group_metadata

    R, D, F, E = shape
    sizes = jnp.asarray(RNG.multinomial(R, RNG.dirichlet(np.full(E, 8.0))), jnp.int32)
    x = jax.ShapeDtypeStruct((R, D), jnp.bfloat16)
    for inner, columns, widest in ((D, F, (4096, 512)), (F, D, (4096, 512)), (D, F, (1024, 1024))):
        tall, *others = grouped_tpu.tile_sizes(x, E, inner, columns, widest=widest)
        _, tiles = make_group_metadata(
            group_sizes=sizes, m=R, tm=tall, start_group=jnp.int32(0), num_nonzero_groups=E, visit_empty_groups=False
        )
        computed = int(tiles) * tall / R
        for length, tile in zip((inner, columns), others, strict=True):
            computed *= -(-length // tile) * tile / length
        assert 1 <= computed < 1.05


def test_a_short_last_tile_is_avoided():
    assert [grouped_tpu.even_tile(n, 1024) for n in (72, 128, 1024, 1280, 2880, 7168)] == [
        128,
        128,
        1024,
        640,
        1024,
        1024,
    ]


COMPILE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from jaxscale.compiled.aot import find_devices
from jaxscale.hardware.topology import find_topology
from jaxscale.kernels.grouped import grouped_matmul
from jaxscale.parallel.local import on_each_device
name, platform, *shape = sys.argv[1:]
R, D, F, E = map(int, shape)
devices = find_devices(find_topology(name, 1))
explicit = (jax.sharding.AxisType.Explicit,)
spec = jax.P("fsdp")
with jax.set_mesh(jax.sharding.Mesh(np.array(devices), ("fsdp",), axis_types=explicit)) as mesh:
    def struct(rows, *shape, dtype=jnp.bfloat16):
        where = jax.NamedSharding(jax.sharding.get_mesh(), spec)
        return jax.ShapeDtypeStruct((rows * len(devices), *shape), dtype, sharding=where)
    def forward(x, w, sizes):
        return grouped_matmul(x, w, sizes, platform=platform)
    def backward(x, w, sizes, dy):
        return jax.vjp(lambda x, w: forward(x, w, sizes), x, w)[1](dy)
    args = struct(R, D), struct(E, D, F), struct(E, dtype=jnp.int32), struct(R, F)
    found = []
    for run, count, out in ((forward, 3, spec), (backward, 4, (spec, spec))):
        compiled = jax.jit(on_each_device(run, (spec,) * count, out)).lower(*args[:count]).compile()
        costs = compiled.cost_analysis() or {}
        found.append([costs.get("flops"), compiled.as_text()])
print(json.dumps(found))
"""


def compile_for(topology, platform, *shape):
    """[FLOPs, program] of the forward and the backward pass, by that chip's compiler, in a process of its own."""
    words = [sys.executable, "-c", COMPILE, topology, platform, *map(str, shape)]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    out = subprocess.run(words, capture_output=True, text=True, timeout=300, env=env)
    assert out.returncode == 0, out.stderr[-2000:]
    return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the aot-tpu extra")
def test_compiled_for_a_tpu_no_row_meets_every_expert():
    """XLA's own ragged_dot had 16 times these FLOPs with libtpu 0.0.52, and 8.5 backward with 0.0.42."""
    R, D, F, E = 4096, 512, 1024, 16
    for (flops, text), matmuls in zip(compile_for("v6e:2x2", "tpu", R, D, F, E), (1, 2), strict=True):
        assert 0.9 < flops / (matmuls * 2 * R * D * F) < 1.05
        assert text.count('custom_call_target="tpu_custom_call"') == matmuls
        assert " dot(" not in text
        assert " convolution(" not in text


@pytest.mark.skipif(find_spec("jax_cuda13_plugin") is None, reason="needs the aot-gpu extra")
def test_compiled_for_a_gpu_no_row_meets_every_expert():
    """XLA's own ragged_dot is a dense matmul with all experts."""
    for (_, text), matmuls in zip(compile_for("h100:2", "gpu", 4096, 512, 1024, 16), (1, 2), strict=True):
        assert text.count("xla.gpu.triton") == matmuls
        assert " dot(" not in text
        assert "gemm" not in text
