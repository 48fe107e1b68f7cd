"""What sampling is predicted to take and hold, beside formulas by hand and beside the sampler's own arrays."""

import math
from types import SimpleNamespace

import pytest
from support import Setup, make_config

from jaxscale import config as cfg
from jaxscale.blueprint.decoding import bucket
from jaxscale.compiled.aot import device_bytes
from jaxscale.hardware.topology import find_topology
from jaxscale.predict import costs
from jaxscale.predict import rollouts as predicted
from jaxscale.predict.attention import attention_cost
from jaxscale.predict.batch import batch_bytes
from jaxscale.predict.forecast import attention_flops, forecast
from jaxscale.predict.memory import memory
from jaxscale.predict.plan import plan
from jaxscale.predict.timing import rates
from jaxscale.rollouts.choose import Way
from jaxscale.rollouts.layouts import bytes_of
from jaxscale.rollouts.sampler import Sampler, Shape
from jaxscale.training.build import build

GRPO = {"kind": "grpo", "reward": "a:b", "group": 4, "max_new": 12}
START = {"init": {"from": "runs/base"}}
EXPERTS = {"moe": {"num_experts": 8, "top_k": 2, "mlp_dim": 32}, "num_kv_heads": 8}
LATENT = {
    "num_kv_heads": 8,
    "head_dim": 24,
    "latent": {"kv_rank": 16, "q_rank": 24, "nope_head_dim": 16, "rope_head_dim": 8, "value_head_dim": 12},
}
MESHES = [({"data": 8}, {}), ({"fsdp": 8}, {}), ({"tensor": 4, "fsdp": 2}, {}), ({"tensor": 8}, {"num_kv_heads": 2}),
          ({"data": 2, "fsdp": 2, "tensor": 2}, {"tie_embeddings": True}), ({"expert": 4, "tensor": 2}, EXPERTS),
          ({"fsdp": 4, "expert": 2}, EXPERTS), ({"data": 2, "fsdp": 2, "tensor": 2}, LATENT),
          ({"pipeline": 2, "fsdp": 4}, {}), ({"context": 2, "fsdp": 4}, {})]  # fmt: skip


@pytest.mark.parametrize(("mesh", "model"), MESHES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bytes_are_the_sampler_s(mesh, model, dtype):
    """Gathered weights, cache and logits, to the byte: the plan decides as the sampler does."""
    config = make_config(
        mesh,
        model=model,
        objective=GRPO,
        data={"batch_size": 16},
        step={"compute_dtype": dtype, "microbatches": 2, "remat": "full"},
    )
    setup, at = Setup(config), predicted.Layout(config, mesh)
    sampler = Sampler(config, setup.mesh, setup.rules)
    prompt = bucket(config.data.seq_len - 12)
    own = sampler.need(Shape(16, prompt, 12, Way(250, False, None, False), 1))
    found = at.need()
    assert (found.weights, found.cache, found.logits) == (own.weights, own.cache, own.logits)
    assert at.bytes(at.kept) == bytes_of(sampler.kept)


def llama(*overrides):
    own = ["objective.kind=grpo", "objective.reward=a:b", "objective.max_new=1024", "init.from=runs/base"]
    return cfg.load_config("llama3.1-8b", [*own, "data.batch_size=512", "data.seq_len=2048", *overrides])


def test_seconds_by_hand():
    """8.03 B parameters on 64 v5p, fsdp=64: 8 rows a device, weights gathered, 1,024 tokens after 1,024."""
    where, sizes = find_topology("v5p:4x4x4"), {"fsdp": 64}
    config, speed = llama(), rates(find_topology("v5p:4x4x4").chip)
    found = forecast(config, where, sizes).sampling
    V, D, layers = 128256, 4096, 32
    of_layers = costs.matmul_parameters(config.model) - V * D
    assert (found.rows, found.prompt, found.tokens, found.gathered) == (8, 1024, 1024, True)
    flops = 2 * 8 * (1024 * of_layers + V * D)
    assert found.prefill == pytest.approx(flops / speed.matmul_flops)
    cache = 2 * layers * 8 * 8 * 128 * 2048 * 2  # keys and values, rows, kv heads, head dim, tokens, bytes
    assert found.need.cache == cache
    read = 2 * (of_layers + V * D) + cache
    assert found.binds == "HBM"
    assert found.decode == pytest.approx(1023 * read / speed.memory)
    assert found.reference == 0
    assert found.share_of_decode(2.0) == pytest.approx(found.decode / (2.0 + found.seconds))


def test_a_reference_costs_a_forward_pass_and_a_second_set_of_parameters():
    where, sizes = find_topology("v5p:4x4x4"), {"fsdp": 64}
    plain, held = (forecast(llama(f"objective.kl={kl}"), where, sizes) for kl in (0, 0.1))
    speed, config = rates(where.chip), llama("objective.kl=0.1")
    matmuls = 2 * costs.matmul_parameters(config.model) * 8 * 2048 / speed.matmul_flops
    attention = 32 * attention_cost(config, sizes).forward_flops / attention_flops(config, where, speed)
    assert held.sampling.reference == pytest.approx(matmuls + attention)
    assert held.sampling.decode == plain.sampling.decode
    more = memory(config, sizes).state["parameters of the reference"]
    assert more == memory(config, sizes).state["parameters"]
    assert "parameters of the reference" not in memory(llama(), sizes).state


def test_updates_share_a_round_and_raft_samples_more_than_it_trains_on():
    where, sizes = find_topology("v5p:4x4x4"), {"fsdp": 64}
    once, four = (forecast(llama(f"objective.updates={n}"), where, sizes).sampling for n in (1, 4))
    assert four.seconds == pytest.approx(once.seconds / 4)
    raft = forecast(llama("objective.kind=raft", "objective.group=8"), where, sizes).sampling
    assert raft.rows == 8 * once.rows
    few = forecast(llama("objective.kind=raft", "objective.group=8", "objective.prompts=64"), where, sizes).sampling
    assert few.rows == once.rows


def test_tensor_parallelism_reads_less_and_sends_more():
    where = find_topology("v5p:4x4x4")
    wide, split = (forecast(llama(), where, sizes).sampling for sizes in ({"fsdp": 64}, {"fsdp": 8, "tensor": 8}))
    assert split.rows == 8 * wide.rows
    assert split.need.weights < wide.need.weights / 7
    assert split.decode < wide.decode
    at = predicted.Layout(llama(), {"fsdp": 8, "tensor": 8})
    kinds = {(kind, axes, times) for kind, axes, _, times in at.activations()}
    assert kinds == {("all-reduce", ("tensor",), 32), ("all-gather", ("tensor",), 1)}
    assert {size for kind, _, size, _ in at.activations() if kind == "all-reduce"} == {64 * 4096 * 2.0}
    assert predicted.Layout(llama(), {"fsdp": 64}).activations() == []


def test_weights_that_do_not_fit_whole_are_gathered_for_each_token():
    where, sizes = find_topology("v5e:8x8"), {"fsdp": 64}
    found = forecast(llama("data.batch_size=64"), where, sizes).sampling
    assert not found.gathered
    assert found.need.total > 0.9 * where.chip.usable_hbm_bytes
    assert found.binds == "weights"
    assert found.gather == 0


def test_experts_that_no_token_goes_to_are_not_read():
    config = make_config({"expert": 8}, model=EXPERTS, objective=GRPO, data={"batch_size": 8})
    one, many = (predicted.Layout(c, {"expert": 8}) for c in (config, make_config(
        {"expert": 8}, model=EXPERTS, objective=GRPO, data={"batch_size": 800})))  # fmt: skip
    weight = one.model.weight("expert_up")
    assert one.touched(weight) == pytest.approx(1 - 0.75**8)
    assert many.touched(weight) == pytest.approx(1.0, abs=1e-9)
    assert one.touched(one.model.weight("out")) == 1


@pytest.mark.parametrize(("longest", "room", "wanted"), [(9, 20, 9), (40, 20, 20)])
def test_the_longest_prompt_is_the_data_s(monkeypatch, longest, room, wanted):
    split = SimpleNamespace(longest=longest)
    index = SimpleNamespace(examples=SimpleNamespace(kind="prompts", splits={"train": split}))
    monkeypatch.setattr(predicted, "read_index", lambda path: index)
    config = make_config(objective=GRPO, data={"kind": "tokens", "path": "data/p", "seq_len": 32})
    assert predicted.longest_prompt(config) == (wanted, "the longest of data/p")
    index.examples.kind = "pairs"
    assert predicted.longest_prompt(config)[0] == room
    monkeypatch.undo()
    assert predicted.longest_prompt(config) == (room, "data.seq_len - objective.max_new, as the data is not here")


def test_a_plan_ranks_whole_steps_and_counts_what_sampling_holds():
    found = plan(llama("objective.kl=0.1"), find_topology("v5p:4x4x4"))
    seconds = [c.forecast.seconds for c in found.choices]
    assert seconds == sorted(seconds)
    assert [c.forecast.time.best for c in found.choices] != sorted(c.forecast.time.best for c in found.choices)
    for choice in found.choices[:5]:
        assert choice.forecast.seconds > choice.forecast.time.best
        assert choice.memory.sampling["cache of keys and values"] == choice.forecast.sampling.need.cache
    own = plan(cfg.load_config("llama3.1-8b"), find_topology("v5p:4x4x4")).own
    assert own.forecast.sampling is None
    assert own.memory.sampling == {}
    assert own.forecast.seconds == own.forecast.time.best


def test_a_cache_that_does_not_fit_leaves_a_way_out():
    """512 rows of 32,768 tokens on 64 v5e: 8 rows a device keep 34 GB of keys and values."""
    config = llama("data.seq_len=32768", "objective.max_new=30000")
    needed = memory(config, {"fsdp": 64})
    assert needed.sampling["cache of keys and values"] > 16e9
    assert needed.peak >= sum(needed.state.values()) + needed.sampling["cache of keys and values"]


# --- other objectives -----------------------------------------------------------------------------------------

KINDS = [{"kind": "sft"}, {"kind": "dpo"}, {"kind": "dpo", "loss": "simpo"}, {"kind": "reward"},
         GRPO, GRPO | {"kl": 0.1}, GRPO | {"kind": "raft"}]  # fmt: skip


@pytest.mark.parametrize("objective", KINDS, ids=lambda o: str(list(o.values())))
@pytest.mark.parametrize("documents", [False, True])
def test_batch_bytes_are_those_of_the_columns(objective, documents):
    config = make_config({"fsdp": 8}, objective=objective, **START)
    batch = build(config).abstract_batch(documents=documents)
    assert batch_bytes(config, {"fsdp": 8}, documents=documents) == device_bytes(batch)


def test_samples_are_one_document_a_row():
    data = {"kind": "tokens", "path": "data/p"}
    assert costs.packs_documents(make_config(data=data))
    assert not costs.packs_documents(make_config(data=data, objective=GRPO))


@pytest.mark.parametrize("objective", [{"kind": "dpo"}, GRPO | {"level": "sequence", "aggregate": "grpo"}], ids=str)
@pytest.mark.parametrize("chunk", [None, 8, 32])
def test_the_logits_of_a_loss_of_rows_are_made_twice_in_chunks(objective, chunk):
    config = make_config(objective=objective, loss={"chunk": chunk}, **START)
    plain = make_config(loss={"chunk": chunk})
    more = forecast(config, find_topology("v5e:1x1"), {}).flops - forecast(plain, find_topology("v5e:1x1"), {}).flops
    model, tokens = config.model, config.data.batch_size * config.data.seq_len
    once_more = 2 * model.embed_dim * model.padded_vocab_size * tokens
    assert math.isclose(more, once_more if chunk == 8 else 0.0)


def test_a_reward_model_has_no_logits_to_cost():
    model = {"vocab_size": 4096}
    score, plain = make_config(model=model, objective={"kind": "reward"}), make_config(model=model)
    sizes, where = {"fsdp": 4}, find_topology("v5e:2x2")
    assert score.model.score
    logits = 6 * score.model.embed_dim * 4096 * score.data.batch_size * score.data.seq_len
    assert forecast(plain, where, sizes).model_flops - forecast(score, where, sizes).model_flops == pytest.approx(
        logits
    )
    assert {m.name for m in costs.matmuls(plain, sizes)} - {m.name for m in costs.matmuls(score, sizes)} == {
        "unembedding"
    }
    assert memory(score, sizes).loss["logits"] == 0
    counts = costs.parameter_counts(score.model)
    assert counts["score"] == score.model.embed_dim
    assert "unembedding" not in counts
