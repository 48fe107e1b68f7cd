"""Training steps of a mixture of experts: every mesh and every way to compute one gives what one device gives."""

import functools
from itertools import product

import numpy as np
import pytest
from dense_experts import LOSS, dense_step, first_step, moe_config
from support import assert_gradients_equal, make_batch, random_params

from jaxscale.blueprint.sequence import order

SIZES = (1, 2, 4, 8)
AXES = ("data", "fsdp", "expert", "context", "tensor")
EXCHANGES = ("all_to_all", "gather")
CLIP = 0.25
CUBE = {"fsdp": 2, "expert": 2, "tensor": 2}
QUICK = [{"fsdp": 8}, {"expert": 8}, CUBE, {"data": 2, "expert": 2, "context": 2}]


def grid():
    """Every factorisation of 8 devices, with both exchanges where there is one; few of them are quick."""
    for sizes in product(SIZES, repeat=len(AXES)):
        if np.prod(sizes) == 8:
            mesh = {axis: n for axis, n in zip(AXES, sizes, strict=True) if n > 1}
            exchanges = EXCHANGES if "expert" in mesh else ("auto",)
            for exchange in exchanges:
                quick = mesh in QUICK and (exchange != "gather" or mesh == CUBE)
                yield pytest.param(mesh, exchange, marks=() if quick else pytest.mark.slow)


def padded_batch(config, context: int):
    """Random padding, and rows and tokens that are padding whole: all that the first device of any mesh has."""
    batch, T = make_batch(config), config.data.seq_len
    batch["weights"][: config.data.batch_size // 8] = 0
    batch["weights"][:, order(T, context)[: T // 8]] = 0
    return batch


@functools.cache
def reference(context: int = 1):
    config = moe_config(loss=LOSS, optimizer={"clip_norm": CLIP})
    params = random_params(config, std=0.2)
    return params, dense_step(config, params, padded_batch(config, context))


def assert_same(got, wanted):
    metrics, grads, _ = got
    wanted_metrics, wanted_grads = wanted
    for name in ("tokens", "loss", "balance", "router_z", "grad_norm"):
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=1e-5, err_msg=name)
    counts = wanted_metrics["router_counts"]
    np.testing.assert_allclose(metrics["expert_load"], (counts.max(-1) / counts.mean(-1)).max(), rtol=1e-6)
    assert metrics["empty_experts"] == (counts == 0).sum()
    assert_gradients_equal(grads, wanted_grads)


def check(mesh, **sections):
    context = mesh.get("context", 1)
    params, wanted = reference(context)
    assert wanted[0]["grad_norm"] > 2 * CLIP
    config = moe_config(mesh, loss=LOSS | sections.pop("loss", {}), optimizer={"clip_norm": CLIP}, **sections)
    assert_same(first_step(config, params, padded_batch(config, context)), wanted)


@pytest.mark.parametrize(("mesh", "exchange"), list(grid()), ids=str)
def test_every_factorisation_is_the_reference(mesh, exchange):
    """Loss, balance, z and all gradients, after clipping, where some devices have padding only."""
    check(mesh, step={"expert_exchange": exchange})


def test_one_device_is_the_reference():
    check({"data": 1})
