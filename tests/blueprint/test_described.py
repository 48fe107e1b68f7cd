"""A model of your own describes itself by the rows that the decoder has: it is planned, costed and explained."""

import math
from collections import Counter

import jax
import pytest
from flax import nnx
from support import make_config

import jaxscale
from jaxscale import Blueprint, Dim, Op, Weight, described_by, find_topology
from jaxscale.blueprint.table import RESIDUAL
from jaxscale.explain.here import explain_model
from jaxscale.parallel.mesh import make_mesh
from jaxscale.predict import costs
from jaxscale.predict.memory import memory
from jaxscale.predict.plan import plan
from jaxscale.predict.traffic import traffic
from jaxscale.training.step import make_program

V, D = 384, 64


def device_bytes(tree) -> int:
    """Bytes of one device's part of an abstract tree."""
    shards = ((x.sharding.shard_shape(x.shape), x.dtype.itemsize) for x in jax.tree.leaves(tree))
    return sum(math.prod(shape) * width for shape, width in shards)


class Bigram(nnx.Module):
    """README's: a table of logits, one row a token."""

    def __init__(self, rngs):
        self.table = nnx.Param(0.02 * jax.random.normal(rngs.params(), (V, V)), out_sharding=("vocab", "embed"))

    def __call__(self, tokens):
        return jaxscale.shard(jaxscale.lookup(self.table[...], tokens, dtype="float32"), "batch", "sequence", None)

    @staticmethod
    def blueprint(model):
        dims = {"V": Dim("vocab", V), "D": Dim("embed", V)}
        return Blueprint(dims, (Weight("table", "embedding", "VD", stacked=False),), lookups=("table",))


class OneMatmul(nnx.Module):
    """An embedding and a matmul that makes the logits."""

    def __init__(self, rngs):
        make = lambda shape, axes: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape), out_sharding=axes)  # noqa: E731
        self.embedding, self.head = make((V, D), ("vocab", "embed")), make((D, V), ("embed", "vocab"))

    def __call__(self, tokens):
        x = jaxscale.lookup(self.embedding[...], tokens, dtype="float32")
        x = jaxscale.gather(x, "batch", "sequence", "embed", over="vocab")
        return jaxscale.einsum("btd,dv->btv", x, self.head[...], out=("batch", "sequence", "vocab"), name="head")

    @staticmethod
    def blueprint(model):
        return Blueprint(
            dims={"V": Dim("vocab", V, "V"), "D": Dim("embed", D, "D")},
            weights=(
                Weight("embedding", "embedding", "VD", stacked=False),
                Weight("head", "head", "DV", stacked=False),
            ),
            ops=(Op("head", "BTD", "BTV", "logits", "head", x_at=RESIDUAL, stacked=False, once=True),),
            lookups=("embedding",),
        )


def small(mesh, **sections):
    data = {"kind": "synthetic", "batch_size": 16, "seq_len": 64}
    step = {"compute_dtype": "float32", "remat": "none"}
    return make_config(mesh, model={"vocab_size": V}, data=data, step=step, **sections)


MESHES = ({"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 2, "tensor": 4})


@pytest.mark.parametrize("model", [Bigram, OneMatmul])
@pytest.mark.parametrize("mesh", MESHES)
def test_its_state_is_the_trainers(model, mesh):
    config = small(mesh)
    with described_by(model), jaxscale.on_mesh(make_mesh(config.mesh, jax.devices())):
        params = make_program(config, model).abstract.params
        assert costs.state_bytes(config, mesh)["parameters"] == device_bytes(params)
        assert memory(config, mesh).peak > device_bytes(params)


@pytest.mark.parametrize("mesh", MESHES)
def test_its_matmul_is_costed_and_explained_as_it_is_traced(mesh):
    config = small(mesh)
    found = explain_model(OneMatmul, config)
    assert [r.title for r in found.rows] == ["head", "head, gradient of w", "head, gradient of x"]
    assert all(r.seconds for r in found.rows)
    with described_by(OneMatmul):
        assert sum(r.flops * r.times for r in found.rows) == sum(m.step_flops for m in costs.matmuls(config, mesh))
        assert costs.train_flops_per_token(config.model, 64) == 6 * D * V
        expected = Counter()
        for t in traffic(config, mesh):
            expected[t.kind, t.axes] += t.step_bytes * (t.what != "losses")
    sent = Counter()
    for s in [s for r in found.rows for s in r.sends] + [o for o in found.others if o.what == "lookup"]:
        sent[s.kind, s.axes] += s.bytes * s.times
    assert sent == +expected


@pytest.mark.parametrize("model", [Bigram, OneMatmul])
def test_it_is_planned(model):
    with described_by(model):
        found = plan(small({"data": -1}), find_topology("v5p:2x2x2"))
    assert found.choices
    best = found.choices[0]
    assert math.prod(best.mesh.values()) == 8
    assert 0 < best.memory.peak < 1e9
    assert best.forecast.time.best > 0


def test_outside_the_decoder_is_meant():
    config = small({"fsdp": 8})
    before = costs.state_bytes(config, {"fsdp": 8})
    with described_by(Bigram):
        assert costs.state_bytes(config, {"fsdp": 8}) != before
    assert costs.state_bytes(config, {"fsdp": 8}) == before
    assert plan(config, find_topology("v5p:2x2x2")).choices


def test_a_model_without_rows_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^int has no blueprint\(model\), which gives the rows"), described_by(int):
        pass
