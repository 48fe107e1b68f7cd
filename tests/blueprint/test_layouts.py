"""Overridden rules: what the arithmetic allows is what can be traced, and it sends what was traced."""

from collections import Counter

import pytest
from support import Setup, make_config

from jaxscale.blueprint.cases import aligned, kept
from jaxscale.blueprint.legal import require_legal
from jaxscale.blueprint.rules import ACTIVATIONS, PARAMETERS
from jaxscale.explain.trace import trace
from jaxscale.parallel.sharding import on_mesh
from jaxscale.predict import costs
from jaxscale.predict.traffic import traffic
from jaxscale.training.step import abstract_batch

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
AXES = (None, "data", "fsdp", "tensor", ["data", "fsdp"], ["fsdp", "tensor"], ["tensor", "fsdp"])
REMATS = ("none", "full", "dots")
TABLES = {"parameters": PARAMETERS, "activations": ACTIVATIONS}
ATTENTION = ("scores", "context", "attention")
PAIRS = (
    {"parameters": {"embed": ["data", "fsdp"]}, "activations": {"residual_sequence": None}},
    {"parameters": {"embed": None, "vocab": None}},
    {"parameters": {"embed": "data"}, "activations": {"batch": ["fsdp", "data"]}},
    {"activations": {"vocab": None, "residual_sequence": None}},
    {"activations": {"batch": "data", "residual_sequence": None}},
)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("axes", AXES, ids=str)
def test_every_single_override_is_refused_or_predicted_as_it_is_traced(table, axes):
    """Each logical axis split otherwise, on a mesh of three axes."""
    for i, name in enumerate(TABLES[table]):
        refused_or_predicted({table: {name: axes}}, REMATS[i % len(REMATS)])


@pytest.mark.parametrize("remat", REMATS)
def test_pairs_of_overrides_too(remat):
    for overrides in PAIRS:
        refused_or_predicted(overrides, remat)


def refused_or_predicted(overrides: dict, remat: str) -> None:
    config = make_config(MESH, sharding=overrides, step={"remat": remat}, model={"num_layers": 2})
    try:
        require_legal(config, MESH)
    except ValueError:
        with pytest.raises(ValueError):  # noqa: PT011  jax's words differ by what does not fit
            Setup(config)
        return
    setup = Setup(config)
    with on_mesh(setup.mesh, setup.rules):
        rows, others, _ = trace(config, setup.program, abstract_batch(config, setup.mesh, documents=False), MESH)
    flops = sum(r.flops * r.times for r in rows if r.name not in ATTENTION)
    assert flops == sum(m.step_flops for m in costs.matmuls(config, MESH)), overrides
    sent: Counter = Counter()
    own = [o for o in others if o.what not in ("cross_entropy", "norm") and o.bytes >= 300]  # no scalars or vectors
    for s in [s for r in rows for s in r.sends] + own:
        sent[s.kind, s.axes] += s.bytes * s.times
    expected: Counter = Counter()
    for t in (t for t in traffic(config, MESH) if t.what != "losses"):
        expected[t.kind, t.axes] += t.step_bytes
    assert +sent == +expected, overrides


# --- the algebra -----------------------------------------------------------------------------------------------


def test_a_dim_keeps_the_outermost_axes_that_both_layouts_share():
    assert kept(("data", "fsdp"), ("data", "fsdp")) == ("data", "fsdp")
    assert kept(("context",), ("context", "tensor")) == ("context",)
    assert kept(("tensor", "fsdp"), ("tensor",)) == ("tensor",)
    assert kept(("fsdp",), ("tensor",)) == kept((), ("tensor",)) == kept(("fsdp",), ()) == ()


def test_a_contracted_dim_is_kept_where_both_operands_split_it_alike():
    out = {"B": ("data",), "D": ()}
    x, w = aligned({"B": ("data",), "F": ("tensor",)}, {"F": ("tensor",), "D": ("fsdp",)}, out)
    assert (x, w) == ({"B": ("data",), "F": ("tensor",)}, {"F": ("tensor",), "D": ()})
    x, w = aligned({"B": ("data",), "F": ()}, {"F": ("tensor",), "D": ("fsdp",)}, out)
    assert (x["F"], w["F"]) == ((), ())
