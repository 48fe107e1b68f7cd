"""A pipeline gives the losses and gradients of one device, in the ticks, messages and memory of its schedule."""

import functools
import json
import math
from collections import Counter
from itertools import product

import jax
import numpy as np
import pytest
from flax import nnx
from support import B, Listener, Setup, assert_gradients_equal, make_batch, make_config, random_params

from jaxscale.blueprint.rules import schedule
from jaxscale.blueprint.stages import Schedule, bubble_note
from jaxscale.compiled.collectives import collectives
from jaxscale.compiled.hlo import parse
from jaxscale.config.mesh_text import mesh_text
from jaxscale.rollouts.choose import row_keys
from jaxscale.rollouts.sampler import Sampler
from jaxscale.serving.serve import whole_layers_note
from jaxscale.training.step import gradients
from jaxscale.training.trainer import train

GPT2 = {"norm": "layernorm", "position": "learned", "mlp": "gelu", "attention_bias": True, "mlp_bias": True,
        "tie_embeddings": True, "num_kv_heads": 8, "max_seq_len": 32}  # fmt: skip
MODELS = {"llama": {"num_layers": 4}, "gpt2": GPT2 | {"num_layers": 4},
          "qwen3": {"qk_norm": True, "num_layers": 8, "tie_embeddings": True, "sliding_window": 9}}  # fmt: skip
EXPERTS = {"experts": {"num_layers": 4, "moe": {"num_experts": 8, "top_k": 2, "mlp_dim": 32}}}
PLAIN = {}
ALL = {"loss": {"chunk": 16, "z_loss": 1e-2}}
ROUTED = {"loss": {"chunk": 16, "router_z": 1e-2}}


def batch_of(config):
    """Documents and padding differ from row to row, and so from one microbatch to the next."""
    rng, batch = np.random.default_rng(1), make_batch(config)
    rows, tokens = batch["tokens"].shape
    starts = rng.random((rows, tokens)) < np.linspace(0, 0.4, rows)[:, None]
    starts[:, 0] = True
    batch["segments"] = np.cumsum(starts, axis=1).astype(np.int32)
    begun = np.maximum.accumulate(np.where(starts, np.arange(tokens), 0), axis=1)
    batch["positions"] = (np.arange(tokens) - begun).astype(np.int32)
    batch["weights"] = (np.arange(tokens) < rng.permutation(np.linspace(2, tokens, rows))[:, None]).astype(np.float32)
    return batch


def loss_and_gradients(config, params, batch):
    setup = Setup(config, batch=batch)
    with setup.context():
        placed = jax.device_put(params, jax.tree.map(lambda x: x.sharding, setup.program.abstract.params))
        grad = jax.jit(functools.partial(gradients, config, setup.program.merge))
        grads, metrics = jax.device_get(grad(placed, setup.batch, jax.random.key(0)))
    return metrics, grads


def config_of(model, rows, mesh=None, **sections):
    return make_config(mesh, model=(MODELS | EXPERTS)[model], data={"batch_size": rows}, **sections)


@functools.cache
def reference(model, rows, sections):
    config = config_of(model, rows, **json.loads(sections))
    params, batch = random_params(config, std=0.05), batch_of(config)
    return params, batch, loss_and_gradients(config, params, batch)


def assert_same(got, wanted):
    (metrics, grads), (wanted_metrics, wanted_grads) = got, wanted
    assert metrics["tokens"] == wanted_metrics["tokens"]
    for name in wanted_metrics:
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=1e-5, atol=1e-6)
    assert_gradients_equal(grads, wanted_grads)


def check(mesh, microbatches, model, sections=PLAIN):
    rows = 24 if microbatches == 3 else 16
    params, batch, wanted = reference(model, rows, json.dumps(sections))
    step = {"microbatches": microbatches, "remat": "full"} | sections.get("step", {})
    config = config_of(model, rows, mesh, **(sections | {"step": step}))
    assert_same(loss_and_gradients(config, params, batch), wanted)


SOME = [
    ({"pipeline": 2}, 1, "llama", PLAIN),
    ({"pipeline": 2, "data": 2, "fsdp": 2}, 3, "gpt2", PLAIN),
    ({"pipeline": 2, "fsdp": 2, "tensor": 2}, 4, "llama", ALL),
    ({"pipeline": 2, "fsdp": 2, "context": 2}, 4, "qwen3", ALL),
    ({"pipeline": 2, "context": 2, "tensor": 2}, 2, "llama", ALL),
    ({"pipeline": 4, "tensor": 2}, 2, "gpt2", ALL),
    ({"pipeline": 4, "data": 2}, 8, "llama", PLAIN),
    ({"pipeline": 4, "fsdp": 2}, 3, "qwen3", PLAIN),
    ({"pipeline": 8}, 4, "qwen3", ALL),
    ({"pipeline": 2, "expert": 2, "tensor": 2}, 4, "experts", ROUTED),
    ({"pipeline": 4, "expert": 2}, 2, "experts", ROUTED | {"step": {"expert_exchange": "all_to_all"}}),
]  # fmt: skip


@pytest.mark.parametrize(("mesh", "microbatches", "model", "sections"), SOME, ids=str)
def test_a_pipeline_equals_one_device(mesh, microbatches, model, sections):
    check(mesh, microbatches, model, sections)


SIZES = (1, 2, 4)
FACTORISATIONS = [
    (8 // n, *rest) for rest in product(SIZES, repeat=4) if 8 % (n := int(np.prod(rest))) == 0 and 8 // n > 1
]


@pytest.mark.slow
@pytest.mark.parametrize(("pipeline", "data", "fsdp", "context", "tensor"), FACTORISATIONS)
def test_every_factorisation_equals_one_device(pipeline, data, fsdp, context, tensor):
    """Each with one model and one number of microbatches, so that all come up: 1, 2, 3, 4, 8."""
    place = FACTORISATIONS.index((pipeline, data, fsdp, context, tensor))
    model = "qwen3" if pipeline == 8 else list(MODELS)[place % 3]  # the one of 8 layers
    mesh = {"pipeline": pipeline, "data": data, "fsdp": fsdp, "context": context, "tensor": tensor}
    which = FACTORISATIONS.index(tuple(mesh.values())) + len(model)
    numbers = [m for m in (1, 2, 3, 4, 8) if (24 if m == 3 else 16) // m % (data * fsdp) == 0]
    if context > 1 and "sliding_window" in MODELS[model]:
        which += 1
    check(mesh, numbers[which % len(numbers)], model, (PLAIN, ALL)[which % 2])


def test_a_device_whose_tokens_all_weigh_nothing_adds_nothing():
    """Of each microbatch, the rows of the first device along data and fsdp."""
    mesh = {"pipeline": 2, "data": 2, "fsdp": 2}
    config = config_of("llama", 16, mesh, step={"microbatches": 2, "remat": "full"})
    batch = batch_of(config)
    batch["weights"].reshape(2, 4, 2, -1)[:, 0] = 0
    alone = config_of("llama", 16)
    params = random_params(alone)
    assert_same(loss_and_gradients(config, params, batch), loss_and_gradients(alone, params, batch))


def test_a_ring_turns_inside_a_stage():
    check({"pipeline": 2, "context": 4}, 2, "llama", {"step": {"context_attention": "ring"}} | ALL)


# --- what is sent, kept and computed ----------------------------------------------------------------------------


def compiled(mesh, microbatches, model):
    """A step of microbatches of B rows."""
    step = {"microbatches": microbatches, "remat": "full"}
    config = make_config(
        mesh, data={"batch_size": B * microbatches}, step=step, model=model, optimizer={"clip_norm": None}
    )
    setup = Setup(config)
    with setup.context():
        program = setup.program.step.lower(setup.program.abstract, setup.batch).compile()
    return program, dict(setup.mesh.shape)


SEVEN = 7  # matrices of a layer
LAYERS = 8  # two and more a stage, as a loop of one layer is none: its weights would be gathered before the ticks


@pytest.mark.parametrize("microbatches", [2, 4])
@pytest.mark.parametrize("mesh", [{"pipeline": 4}, {"pipeline": 4, "fsdp": 2}, {"pipeline": 2, "data": 2, "tensor": 2}],
                         ids=mesh_text)  # fmt: skip
def test_stages_send_what_the_schedule_asks_for(mesh, microbatches):
    """By kind, axes and count of arrays; vectors and losses apart. XLA's CPU compiler scatters by an all-reduce and a
    slice, and so does what happens to be sliced after a sum.
    """
    program, sizes = compiled(mesh, microbatches, {"num_layers": LAYERS, "num_kv_heads": 8})
    found: Counter = Counter()
    for c in collectives(parse(program.as_text()), sizes):
        kind = "sum" if c.kind in ("all-reduce", "reduce-scatter") else c.kind
        found[kind, c.axes] += c.times * sum(size >= 2048 for size in c.sizes)
    stages, M = mesh["pipeline"], microbatches
    ticks = M + stages - 1
    passed = {("collective-permute", ("pipeline",)): 2 * ticks, ("sum", ("pipeline",)): 2 * M + 2 * ticks}
    assert {key: n for key, n in found.items() if "pipeline" in key[1] and n} == passed
    if "fsdp" in mesh:
        layers = SEVEN * LAYERS // stages
        # the head's matrix once a microbatch, but XLA gathers one that no loop cuts before all ticks
        assert found["all-gather", ("fsdp",)] == 2 * ticks * layers + 1
        assert found["sum", ("fsdp",)] == ticks * layers + M


def test_memory_does_not_grow_with_the_number_of_microbatches():
    few, many = (compiled({"pipeline": 4}, m, MODELS["llama"])[0].memory_analysis().temp_size_in_bytes for m in (4, 16))
    assert few == pytest.approx(many, rel=0.001)


def test_evaluation_needs_no_more_memory_than_the_step_and_gives_one_number():
    params, batch, (wanted, _) = reference("llama", 16, json.dumps(PLAIN))
    for mesh, microbatches in (({"pipeline": 4, "fsdp": 2}, 4), ({"pipeline": 2, "context": 2, "data": 2}, 2)):
        config = config_of("llama", 16, mesh, step={"microbatches": microbatches, "remat": "full"})
        setup = Setup(config, batch=batch)
        with setup.context():
            program = setup.program
            state = program.init()
            state = state._replace(params=jax.device_put(params, jax.tree.map(lambda x: x.sharding, state.params)))
            step = program.step.lower(program.abstract, setup.batch).compile()
            evaluate = program.evaluate.lower(state, setup.batch).compile()
            found = jax.device_get(evaluate(state, setup.batch))
        assert found["cross_entropy"] / found["tokens"] == pytest.approx(wanted["loss"], rel=1e-5)
        needed = [x.memory_analysis().temp_size_in_bytes for x in (evaluate, step)]
        assert needed[0] <= needed[1]


# --- a run ------------------------------------------------------------------------------------------------------


def run_config(out, mesh, steps, **sections):
    devices = {"simulated_devices": math.prod(mesh.values()), "platform": "cpu", "compilation_cache": None}
    sections = {"step": {"microbatches": 2, "remat": "full"}} | sections
    return make_config(mesh, steps=steps, out=str(out), model=MODELS["llama"], runtime=devices, **sections)


def leaves(state):
    plain = state._replace(rng=jax.random.key_data(state.rng))
    return [np.asarray(x) for x in jax.tree.leaves(jax.device_get(plain))]


def test_a_run_resumes_bit_by_bit_and_restores_onto_any_mesh(tmp_path):
    mesh, save = {"pipeline": 4, "fsdp": 2}, {"checkpoint": {"every": 3}, "guard": {"recompute_every": 2},
                                                 "optimizer": {"schedule": "constant"}}  # fmt: skip
    straight = train(run_config(tmp_path / "a", mesh, 6, **save))
    train(run_config(tmp_path / "b", mesh, 3, **save))
    listener = Listener()
    resumed = train(run_config(tmp_path / "b", mesh, 6, **save), watcher=listener)
    assert any("resuming from step 3" in line for line in listener.lines)
    assert all(np.array_equal(a, b) for a, b in zip(leaves(resumed.state), leaves(straight.state), strict=True))
    other = train(
        run_config(tmp_path / "b", {"fsdp": 8}, 6, step={"microbatches": 1}, **save)
    )  # nothing is left to do: what was restored
    assert all(np.array_equal(a, b) for a, b in zip(leaves(other.state), leaves(straight.state), strict=True))
    assert not any(x.sharding.spec[0] for x in jax.tree.leaves(other.state.params["layers"]))


def test_a_pipeline_trains_as_one_device_and_says_how_long_it_waits(tmp_path):
    listener = Listener()
    many = train(run_config(tmp_path / "many", {"pipeline": 4, "tensor": 2}, 3), watcher=listener)
    one = train(run_config(tmp_path / "one", {"data": 1}, 3))
    np.testing.assert_allclose(list(many.losses.values()), list(one.losses.values()), rtol=1e-5)
    assert many.validation_loss is None or many.validation_loss == pytest.approx(one.validation_loss, rel=1e-5)
    assert any("step.microbatches=2 are fewer than the 4 stages" in line for line in listener.lines)


def test_decoding_takes_whole_layers():
    def decode(mesh):
        config = make_config(mesh, model=MODELS["llama"], step={"remat": "full"})
        setup = Setup(config)
        layouts = jax.tree.map(lambda x: x.sharding, setup.program.abstract.params)
        params = jax.device_put(random_params(config, std=0.3), layouts)  # as a pipeline trains them
        sampler = Sampler(config, setup.mesh, setup.rules)
        options = {"keys": row_keys(0, [0, 1]), "max_new": 8, "temperature": 0.0}
        return sampler(params, [[3, 14, 15], [9]], **options).rows()

    assert decode({"pipeline": 2, "tensor": 2}) == decode({"data": 1})


# --- what is refused, what is said ------------------------------------------------------------------------------

REFUSED = [
    ({"pipeline": 4}, {"model": {"num_layers": 6}}, r"num_layers 6 is not divisible by 4 \(pipeline=4.*try 4 or 8"),
    ({"pipeline": 2, "tensor": 4}, {"model": {"vocab_size": 20, "vocab_multiple": 4}},
     r"padded vocab_size .* 20 is not divisible by 8 \(tensor=4\*pipeline=2"),
    ({"pipeline": 2}, {"step": {"remat": "none"}}, r"step.remat=none: a pipeline \(pipeline=2\).*set step.remat=full"),
    ({"pipeline": 2}, {"step": {"remat": {"q": "save"}}}, r"step.remat=by activation: a pipeline.*step.remat=full"),
    ({"pipeline": 2, "data": 2}, {"sharding": {"parameters": {"layers": "data"}}},
     r"sharding.parameters.layers: data=2 splits the layers.*remove it"),
    ({"pipeline": 2}, {"sharding": {"parameters": {"mlp": "pipeline"}}},
     r"sharding.parameters.mlp: pipeline splits the layers into stages.*remove it"),
    ({"pipeline": 2}, {"model": EXPERTS["experts"], "loss": {"balance": 0.01}},
     r"loss.balance=0.01 counts over the whole batch.*pipeline \(pipeline=2\).*model.moe.bias=true"),
]  # fmt: skip


@pytest.mark.parametrize(("mesh", "sections", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_a_pipeline_cannot_do_is_refused(mesh, sections, message):
    config = make_config(mesh, **({"step": {"remat": "full"}} | sections))
    with pytest.raises(ValueError, match=message) as error:
        Setup(config)
    assert "\n" not in str(error.value)


class Words(nnx.Module):
    """A model of one's own: a table, and nothing between it and the logits."""

    def __init__(self, rngs: nnx.Rngs):
        table = jax.random.normal(rngs.params(), (256, 32))
        self.table = nnx.Param(table, out_sharding=("vocab", "embed"))

    def __call__(self, tokens):
        raise AssertionError("it is refused before it is called")


def test_a_model_without_a_decoder_s_pieces_is_refused():
    config = make_config({"pipeline": 2}, step={"remat": "full"})
    with pytest.raises(ValueError, match=r"Words has no embed, stacks, .*models.transformer; set mesh.pipeline=1"):
        Setup(config, model=Words)


def test_a_model_in_stages_is_not_called_by_itself():
    setup = Setup(make_config({"pipeline": 2}, step={"remat": "full"}))
    with setup.context(), pytest.raises(ValueError, match=r"pipeline splits the layers into stages.*mesh.pipeline=1"):
        jax.eval_shape(lambda p, t: setup.program.merge(p)(t), setup.program.abstract.params, setup.batch["tokens"][0])


def test_decoding_says_what_it_does_with_a_pipeline():
    config = make_config({"pipeline": 4}, step={"remat": "full"})
    assert whole_layers_note(config, {"pipeline": 4}).startswith("decoding has no pipeline: each device holds")
    assert whole_layers_note(config, {"data": 4}) is None


def test_the_schedule_counts_its_ticks():
    some = Schedule(4, 16)
    assert (some.ticks, some.ramp, some.in_flight, some.bubble) == (19, 3, 7, 3 / 19)
    alone = schedule(make_config({"data": 2}, step={"microbatches": 4}), {"data": 2})
    assert (alone.ticks, alone.ramp, alone.in_flight, alone.bubble) == (4, 0, 1, 0)
    assert bubble_note(alone) is None
    assert bubble_note(Schedule(4, 4)) is None
    assert bubble_note(Schedule(4, 2)).startswith("step.microbatches=2 are fewer than the 4 stages")
