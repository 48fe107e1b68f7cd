"""Objectives of pairs and of samples: by hand, in chunks, in microbatches, and on every mesh as on one device."""

import functools
from itertools import cycle, product

import numpy as np
import pytest
from learned import KINDS, configured, run
from support import assert_gradients_equal, random_params

SIZES = (1, 2, 4, 8)
FACTORISATIONS = [(d, f, c, 8 // d // f // c) for d, f, c in product(SIZES, SIZES, SIZES) if 8 % (d * f * c) == 0]


@functools.cache
def reference(name: str):
    config = configured(name)
    params = random_params(config)
    return params, run(config, params)


def check(name: str, mesh: dict, **sections):
    params, (wanted, wanted_grads) = reference(name)
    metrics, grads = run(configured(name, mesh, **sections), params)
    assert metrics.keys() == wanted.keys()
    for key in wanted:
        np.testing.assert_allclose(metrics[key], wanted[key], rtol=1e-5, atol=1e-6, err_msg=key)
    assert_gradients_equal(grads, wanted_grads)


@pytest.mark.parametrize("name", KINDS)
def test_chunks_and_microbatches_on_eight_devices_equal_one(name):
    chunk = {} if name == "reward" else {"loss": {"chunk": 8}}
    check(name, {}, **chunk)
    check(name, {"data": 2, "fsdp": 2, "tensor": 2}, step={"microbatches": 2, "remat": "full"}, **chunk)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"), list(zip(cycle(["sigmoid", "reward", "grpo", "gspo"]), FACTORISATIONS)), ids=str
)
def test_every_factorisation_equals_one_device(name, sizes):
    mesh = dict(zip(("data", "fsdp", "context", "tensor"), sizes, strict=True))
    check(name, mesh, step={"microbatches": 2}, **({} if name == "reward" else {"loss": {"chunk": 16}}))


@pytest.mark.parametrize("name", ["sigmoid", "reward", "grpo"])
def test_stages_equal_one_device(name):
    check(name, {"pipeline": 2, "data": 2, "fsdp": 2}, step={"microbatches": 4, "remat": "full"})
