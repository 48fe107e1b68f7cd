"""`explain` of other objectives: the matmuls that are traced are those that are predicted."""

import math

import jax
import pytest
from support import make_config

from jaxscale.explain.story import ATTENTION
from jaxscale.explain.trace import trace
from jaxscale.predict import costs
from jaxscale.training.build import build

MODEL = {"vocab_size": 1000, "num_layers": 3, "embed_dim": 128, "num_heads": 8, "num_kv_heads": 8, "mlp_dim": 384}
SAMPLED = {"kind": "grpo", "reward": "a:b", "group": 4, "max_new": 16}
CASES = [({"kind": "reward"}, None), ({"kind": "dpo"}, None), ({"kind": "dpo"}, 32), (SAMPLED, 32),
         (SAMPLED | {"level": "sequence", "aggregate": "grpo"}, 32)]  # fmt: skip


@pytest.mark.parametrize(("objective", "chunk"), CASES, ids=str)
def test_flops_of_the_traced_matmuls_are_the_predicted_ones(objective, chunk):
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    config = make_config(
        mesh, model=MODEL, data={"batch_size": 16, "seq_len": 128}, loss={"chunk": chunk}, objective=objective,
        init={"from": "runs/base"},
    )  # fmt: skip
    setup = build(config, jax.devices()[: math.prod(mesh.values())])
    with setup.context():
        rows, _, _ = trace(config, setup.program, setup.abstract_batch(documents=False), dict(setup.mesh.shape))
    own = [row for row in rows if row.name not in ATTENTION]
    found: dict[str, float] = {}
    for row in own:
        found[row.name] = found.get(row.name, 0.0) + row.flops * row.times
    wanted = {m.name: m.step_flops for m in costs.matmuls(config, mesh)}
    assert found == pytest.approx(wanted)
    assert ("unembedding" in found) == (objective["kind"] != "reward")
