"""The work and the messages of a function that a user wrote, as the compiler says."""

import jax
import jax.numpy as jnp
import pytest
from jax import P

import jaxscale
from jaxscale.compiled.function import compiled_collectives, compiled_work

B, D, F = 16, 32, 64


@pytest.mark.parametrize(("dtype", "width"), [(jnp.float32, 4), (jnp.int8, 1)])
def test_work_of_a_matmul(dtype, width):
    found = compiled_work(jnp.matmul, jax.ShapeDtypeStruct((B, D), dtype), jax.ShapeDtypeStruct((D, F), dtype))
    assert found.flops == 2 * B * D * F
    assert found.bytes >= (B * D + D * F + B * F) * width


def test_on_a_mesh_it_is_one_devices_part_and_what_is_sent():
    mesh = jaxscale.make_mesh(fsdp=8)
    with jax.set_mesh(mesh):
        x, w = (jax.device_put(jnp.ones(s), jax.NamedSharding(mesh, P("fsdp"))) for s in ((B, D), (D, F)))
        (gather,) = compiled_collectives(jnp.matmul, x, w)
        assert (gather.kind, gather.axes, gather.bytes) == ("all-gather", ("fsdp",), D * F * 4)
        assert compiled_work(jnp.matmul, x, w).flops == 2 * B * D * F / 8
        assert compiled_collectives(lambda x: x + 1, x) == []
