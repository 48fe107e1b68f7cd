"""Layouts that a config asks for: they work, or are refused in one line with their keys; no number is wrong."""

import pytest
from support import Setup, make_config

from jaxscale.blueprint.rules import check_attention
from jaxscale.parallel.sharding import DEFAULT_RULES

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
REFUSED = {
    "activations.sequence=data": "sharding.activations.sequence: data=2 splits the sequences, and attention takes them "
    "whole or split over context; remove it",
    "activations.sequence=[fsdp, tensor]": "sharding.activations.sequence: fsdp=2*tensor=2 splits the sequences",
    "activations.heads=null": "sharding.activations.heads (not split) and kv_heads (tensor=2) must be split",
    "activations.kv_heads=data": "and kv_heads (data=2) must be split by the same axes",
    "activations.embed=[tensor, tensor]": "sharding.embed: tensor, tensor names an axis twice",
    "activations.batch=tensor": "sharding.activations.batch: no such layout on this mesh",
    "activations.embed=tensor": "sharding.activations.embed: no such layout on this mesh",
    "activations.head_dim=fsdp": "sharding.activations.head_dim: no such layout on this mesh",
    "activations.mlp=fsdp": "sharding.activations.mlp: no such layout on this mesh",
    "activations.vocab=data": "sharding.activations.vocab: no such layout on this mesh",
    "parameters.embed=tensor": "sharding.parameters.embed: no such layout on this mesh",
    "parameters.heads=null": "sharding.parameters.heads: no such layout on this mesh",
    "parameters.vocab=fsdp": "sharding.parameters.vocab: no such layout on this mesh",
}
TAKEN = ("activations.residual_sequence=null", "parameters.embed=data", "parameters.layers=data")


def setup(override: str) -> Setup:
    key, _, value = override.partition("=")
    table, name = key.split(".")
    axes = None if value == "null" else value.strip("[]").split(", ")
    return Setup(make_config(mesh=MESH, model={"num_layers": 2}, sharding={table: {name: axes}}))


@pytest.mark.parametrize(("override", "message"), REFUSED.items())
def test_a_layout_that_cannot_be_is_refused_in_one_line(override, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        setup(override)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", TAKEN)
def test_a_layout_that_can_be_is_traced(override):
    setup(override)


def test_an_axis_of_one_device_splits_nothing():
    check_attention(
        DEFAULT_RULES.with_activations(sequence=("data",), kv_heads=()).activations, {"data": 1, "tensor": 1}
    )
