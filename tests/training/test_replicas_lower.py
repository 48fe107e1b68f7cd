"""Replicas are the usual step under a vmap: whatever a run file asks for lowers there too, on every axis."""

import pytest
from support import Setup, make_batch, make_config

from jaxscale.objectives import token_sums

AXES = [{"fsdp": 2, "tensor": 2}, {"context": 2, "tensor": 2}, {"pipeline": 2, "tensor": 2}]
MOE = {"num_experts": 4, "top_k": 2, "mlp_dim": 64}
LATENT = {"kv_rank": 8, "q_rank": 8, "nope_head_dim": 4, "rope_head_dim": 4, "value_head_dim": 8}
ASKED = {
    "microbatches": {"step": {"microbatches": 2}},
    "whole logits": {"loss": {"chunk": None}},
    "z loss": {"loss": {"z_loss": 1e-4}, "step": {"microbatches": 2}},
    "remat none": {"step": {"remat": "none"}},
    "remat dots": {"step": {"remat": "dots"}},
    "remat by name": {"step": {"remat": {"q": "save", "attended": "save"}}},
    "bfloat16": {"step": {"param_dtype": "bfloat16"}},
    "unrolled": {"step": {"unroll_layers": True}},
    "tied": {"model": {"tie_embeddings": True}},
    "one kv head": {"model": {"num_kv_heads": 1}},
    "GPT-2's": {"model": {"norm": "layernorm", "mlp": "gelu", "logits_softcap": 30.0}},
    "a window": {"model": {"sliding_window": 5}},
    "a ring": {"step": {"context_attention": "ring"}},
    "two kinds": {"model": {"num_layers": 4, "pattern": [{"sliding_window": 5}, {}]}},
    "latent": {"model": {"latent": LATENT, "num_kv_heads": None}},
    "experts": {"model": {"moe": MOE}, "step": {"microbatches": 2}},
    "experts' bias": {"model": {"moe": MOE | {"bias": True}}},
    "experts' balance": {"model": {"moe": MOE}, "loss": {"balance": 0.01, "router_z": 1e-3}},
    "lora": {"model": {"lora": {"rank": 4}}},
    "muon": {"optimizer": {"name": "muon"}},
    "adafactor": {"optimizer": {"name": "adafactor"}},
    "spikes": {"guard": {"spike": 6.0}, "on_nonfinite": "skip"},
    "a reward model": {"objective": {"kind": "reward"}, "loss": {"chunk": None}},
}
NOT_IN_STAGES = ("remat none", "remat dots", "remat by name", "experts' balance", "lora", "a reward model")


def cases():
    return [
        pytest.param(mesh, name, id=f"{name}-{'-'.join(mesh)}")
        for name in ASKED
        for mesh in AXES
        if not ("pipeline" in mesh and name in NOT_IN_STAGES)
    ]


def lowered(mesh: dict, sections: dict) -> str:
    base = {"data": {"batch_size": 16}, "step": {"remat": "full"}, "loss": {"chunk": 16}, "outer": {"every": 2}}
    more = {name: base.get(name, {}) | own if isinstance(own, dict) else own for name, own in sections.items()}
    config = make_config({"replica": 2} | mesh, **base | more)
    batch = make_batch(config)
    setup = Setup(config, batch=batch | {"ends": batch["weights"]})  # ends: what preferences read
    with setup.context():
        return setup.program.step.lower(setup.program.abstract, setup.batch).as_text()


@pytest.mark.parametrize(("mesh", "name"), cases())
def test_whatever_is_asked_for(mesh, name):
    assert "replica" in lowered(mesh, ASKED[name])


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("mesh", AXES, ids="-".join)
def test_a_loss_in_chunks_as_a_tpu_makes_it(mesh, microbatches, monkeypatch):
    """All logits' gradients are kept, and the matrix's follows."""
    monkeypatch.setattr(token_sums, "keeps_gradient", lambda x, head: True)
    assert "replica" in lowered(mesh, {"step": {"microbatches": microbatches}})
