"""Arithmetic beside the real thing: the trainer's abstract tree, and the compiled program on simulated devices."""

from collections import Counter

import jax
import pytest
from support import Setup, bytes_by_axes, make_config

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.compiled.aot import device_bytes
from jaxscale.compiled.collectives import collectives
from jaxscale.compiled.hlo import parse
from jaxscale.compiled.work import matmuls
from jaxscale.optimizers import OPTIMIZERS
from jaxscale.predict import costs
from jaxscale.predict.batch import batch_bytes
from jaxscale.predict.traffic import outer_traffic, traffic

MESHES = [{"data": 8}, {"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}]
GPT = {"norm": "layernorm", "position": "learned", "mlp": "gelu", "attention_bias": True, "mlp_bias": True,
       "tie_embeddings": True, "num_kv_heads": 8, "max_seq_len": 64}  # fmt: skip
QWEN = {"qk_norm": True, "num_kv_heads": 2}


# every mesh, model and optimizer; what a mesh does to one model's arrays it does to another's of the same axes
STATES = [(mesh, {}, name) for mesh in MESHES for name in OPTIMIZERS]
STATES += [(MESHES[-1], model, name) for model in (GPT, QWEN) for name in OPTIMIZERS]
STATES += [(mesh, model, "adafactor") for mesh in MESHES[1:3] for model in (GPT, QWEN)]


@pytest.mark.parametrize(("mesh", "model", "optimizer"), STATES, ids=str)
def test_state_and_batch_bytes_are_the_abstract_tree_s(mesh, model, optimizer):
    config = make_config(
        mesh, model=model, optimizer={"name": optimizer, "ema": 0.9}, step={"param_dtype": "bfloat16"},
        guard={"spike": 5.0} if model is QWEN else {},
    )  # fmt: skip
    setup = Setup(config)
    sizes, state = dict(setup.mesh.shape), setup.program.abstract
    found = costs.state_bytes(config, sizes)
    assert found["parameters"] == device_bytes(state.params)
    assert found["optimizer state"] == device_bytes(state.opt_state)
    assert found["averaged parameters"] == device_bytes(state.ema)
    assert found["losses' statistics"] == device_bytes(state.losses)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), setup.batch)
    assert batch_bytes(config, sizes, documents=True) == device_bytes(shapes)


def test_an_overridden_rule_reaches_the_state_s_bytes():
    config = make_config({"fsdp": 8}, sharding={"parameters": {"embed": None, "mlp": "fsdp"}})
    setup = Setup(config)
    assert costs.state_bytes(config, {"fsdp": 8})["parameters"] == device_bytes(setup.program.abstract.params)


WIDE = {"vocab_size": 384, "embed_dim": 128, "num_heads": 4, "num_kv_heads": 4, "mlp_dim": 256, "num_layers": 3}


@pytest.mark.parametrize("model", [WIDE, WIDE | {"num_layers": 130}, WIDE | GPT | {"num_kv_heads": 4}, {}], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_an_optimizer_keeps_is_what_its_table_says(optimizer, model):
    """Shapes, dtypes and bytes; WIDE is wide enough for Adafactor to factor its weights, 130 layers for their norms."""
    config = make_config({"fsdp": 2, "tensor": 2}, model=model, optimizer={"name": optimizer})
    setup = Setup(config)
    kept = jax.tree.leaves(setup.program.abstract.opt_state)
    arrays = Counter(x.shape for x in kept if x.size > 1 and x.shape != (3,))  # 3: Muon's coefficients
    slots = costs.slots(config.optimizer.name, blueprint(config.model))
    assert Counter(s.dims for s in slots if s.dims) == arrays
    assert {str(x.dtype) for x in kept} <= {"float32", "int32"}
    loose = sum(x.size * x.dtype.itemsize for x in kept if x.size == 1 or x.shape == (3,))
    assert 4 * sum(not s.dims for s in slots) + OPTIMIZERS[optimizer].scalars == loose
    sizes = dict(setup.mesh.shape)
    assert costs.state_bytes(config, sizes)["optimizer state"] == device_bytes(setup.program.abstract.opt_state)


KEEP = {"q": "save", "k": "save", "v": "save", "attended": "save"}


# What is computed and sent again is told matmul by matmul: three axes at once show each remat; one axis alone shows
# whether what is sent over it is counted, where everything is kept and where nothing is.
COMPILED = [
    *[(MESHES[-1], remat) for remat in ("none", "full", "dots", KEEP)],
    *[(mesh, remat) for mesh in MESHES[1:3] for remat in ("none", "full")],
    (MESHES[0], "full"), (MESHES[3], "dots"),
]  # fmt: skip


@pytest.mark.parametrize(("mesh", "remat"), COMPILED, ids=str)
def test_flops_and_bytes_are_the_compiled_program_s(mesh, remat):
    """Matmul FLOPs within 2 %, bytes sent within 10 % by axis (scalars and vectors apart)."""
    compare(make_config(mesh, model={"num_kv_heads": 8}, step={"remat": remat}))


CONTEXT = [{"context": 8}, {"context": 4, "tensor": 2}, {"fsdp": 2, "context": 4}, {"data": 2, "fsdp": 2, "context": 2}]


RING = {"remat": "full", "context_attention": "ring"}
SPLIT = [  # as above: all ways where two axes meet, the other meshes in two ways or one
    *[(CONTEXT[1], step) for step in ({"remat": "none"}, {"remat": "full"}, {"remat": KEEP}, RING)],
    (CONTEXT[0], {"remat": "none"}), (CONTEXT[0], RING), (CONTEXT[2], {"remat": KEEP}), (CONTEXT[3], {"remat": "full"}),
    (CONTEXT[3], RING),
]  # fmt: skip


@pytest.mark.parametrize(("mesh", "step"), SPLIT, ids=str)
def test_split_sequences_send_what_the_compiled_program_sends(mesh, step):
    compare(make_config(mesh, model={"num_kv_heads": 8}, step=step))


@pytest.mark.parametrize("window", [3, 17])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_window_sends_its_halo(window, remat):
    compare(make_config({"context": 4, "tensor": 2}, model={"sliding_window": window}, step={"remat": remat}))


REPLICAS = [{"replica": 2, "data": 4}, {"replica": 2, "fsdp": 4}, {"replica": 4, "tensor": 2},
            {"replica": 2, "fsdp": 2, "tensor": 2}, {"replica": 2, "fsdp": 2, "context": 2}]  # fmt: skip


def of_replicas(mesh: dict) -> cfg.Config:
    return make_config(
        mesh, model={"num_kv_heads": 8}, step={"remat": "full"}, data={"batch_size": 16}, outer={"every": 50}
    )


@pytest.mark.parametrize("mesh", REPLICAS, ids=str)
def test_replicas_send_what_their_programs_do(mesh):
    """In a step nothing over their axis. With stages: see test_pipeline.py."""
    compare(of_replicas(mesh))


@pytest.mark.parametrize("mesh", [*REPLICAS, {"replica": 2, "pipeline": 2, "fsdp": 2}], ids=str)
def test_replicas_hold_what_their_programs_do(mesh):
    """The outer step sends all that it is predicted to over their axis, and that alone."""
    config = of_replicas(mesh)
    setup, sizes = Setup(config), dict(mesh)
    found, state = costs.state_bytes(config, sizes), setup.program.abstract
    parts = {"parameters": state.params, "optimizer state": state.opt_state, "losses' statistics": state.losses}
    parts |= {"outer parameters and momentum": state.outer}
    assert {name: found[name] for name in parts} == {name: device_bytes(tree) for name, tree in parts.items()}
    assert batch_bytes(config, sizes, documents=True) == device_bytes(setup.batch)
    with setup.context():
        hlo = setup.program.outer.lower(state).compile().as_text()
    sent = [c for c in collectives(parse(hlo), sizes) if "replica" in c.axes]
    (predicted,) = outer_traffic(config, sizes)
    assert {(c.kind, c.axes) for c in sent} == {(predicted.kind, predicted.axes)}
    assert sum(c.bytes * c.times for c in sent) == predicted.bytes


def test_with_chunks_microbatches_and_few_kv_heads():
    """The gradient of a chunk's logits is made with them: no matmul runs twice for `loss.chunk`."""
    compare(make_config({"fsdp": 4, "tensor": 2}, model={"num_kv_heads": 2}, loss={"chunk": 8}))
    compare(make_config({"fsdp": 2, "tensor": 4}, model={"num_kv_heads": 2}))
    compare(make_config({"data": 2, "tensor": 4}, model={"num_kv_heads": 1}))
    compare(make_config({"data": 2, "fsdp": 2}, step={"microbatches": 2, "remat": "full"}, data={"batch_size": 16}))


def compare(config: cfg.Config) -> None:
    setup = Setup(config)
    sizes = dict(setup.mesh.shape)
    program = parse(setup.hlo())
    compiled = sum(m.flops * m.times for m in matmuls(program) if not is_attention(m.source))
    assert sum(m.step_flops for m in costs.matmuls(config, sizes)) == pytest.approx(compiled, rel=0.02)
    sent = bytes_by_axes(collectives(program, sizes))
    predicted = bytes_by_axes(traffic(config, sizes, platform="cpu"))
    assert predicted == {axes: pytest.approx(sent.get(axes, 0), rel=0.1) for axes in predicted}
    assert set(sent) == set(predicted)


def is_attention(source: str) -> bool:
    """Scores and contexts: XLA's reference attention does them as dots, kernels on TPU and GPU do not."""
    return any(part in source for part in ("gth,gsh", "gts,gsh", "gts,gth"))


def test_flops_of_published_models():
    """GFLOP a token: Llama-3.1-8B and 70B at sequence 8192, causal attention by half and in full (MaxText's logs)."""
    for name, half, full in (("llama3.1-8b", 51.47, 57.91), ("llama3.1-70b", 449.22, 481.43)):
        model = cfg.load_config(f"models/{name}").model
        assert costs.train_flops_per_token(model, 8192) / 1e9 == pytest.approx(half, rel=2e-3)
        assert costs.train_flops_per_token(model, 8192, convention="palm") / 1e9 == pytest.approx(full, rel=2e-3)
