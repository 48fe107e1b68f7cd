"""LoRA: the base as it was, on every mesh what one device computes, predictions to the byte, and what is refused."""

from collections import Counter

import jax
import numpy as np
import pytest
from support import Setup, make_batch, make_config

from jaxscale import config as cfg
from jaxscale.blueprint.described import blueprint
from jaxscale.compiled.aot import device_bytes
from jaxscale.compiled.hlo import parse
from jaxscale.compiled.work import matmuls
from jaxscale.explain.trace import trace
from jaxscale.predict import costs
from jaxscale.predict.traffic import traffic
from jaxscale.training.frozen import by_path, nested, whole
from jaxscale.training.step import gradients

EVERY = ["q", "k", "v", "out", "gate", "up", "down"]
LORA = {"lora": {"rank": 4, "on": EVERY}}
CUBE = {"data": 2, "fsdp": 2, "tensor": 2}


def path_of(tree):
    return {".".join(path): np.asarray(leaf) for path, leaf in by_path(tree).items()}


def with_b(state, std=0.3):
    """The state with random B in place of zeros."""
    rng = np.random.default_rng(1)
    params = {
        path: jax.device_put(std * rng.standard_normal(p.shape, np.float32), p.sharding) if path[-1][-2:] == "_b" else p
        for path, p in by_path(state.params).items()
    }
    return state._replace(params=nested(params))


def test_with_b_at_zero_the_loss_is_the_base_s_bit_by_bit():
    base, lora = Setup(make_config()), Setup(make_config(model=LORA))
    losses, norms, state = base.steps(1)
    own, own_norms, _ = lora.steps(1)
    assert own.tobytes() == losses.tobytes()
    assert own_norms[0] != norms[0]
    with lora.context():
        frozen = path_of(lora.program.init().frozen)
    assert set(frozen) == set(path_of(state.params))


def test_the_base_stays_as_it_is_and_the_loss_falls():
    setup = Setup(make_config(model=LORA))
    with setup.context():
        before = path_of(setup.program.init().frozen)
    losses, _, state = setup.steps(20)
    assert losses[-1] < losses[0] - 0.1
    after = path_of(state.frozen)
    assert {name: x.tobytes() for name, x in after.items()} == {name: x.tobytes() for name, x in before.items()}


def test_only_lora_s_parameters_have_an_optimizer_state_and_an_average():
    state = Setup(make_config(model=LORA, optimizer={"ema": 0.9}, step={"param_dtype": "bfloat16"})).program.abstract
    assert {name for path in by_path(state.params) for name in path[-2:-1]} == {"lora"}
    assert not any("lora" in path for path in by_path(state.frozen))
    shapes = Counter(x.shape for x in jax.tree.leaves(state.params))
    kept = Counter(x.shape for x in jax.tree.leaves(state.opt_state) if x.shape)
    assert kept == shapes + shapes  # AdamW's two moments
    assert Counter(x.shape for x in jax.tree.leaves(state.ema)) == shapes
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}
    assert {x.dtype.name for x in jax.tree.leaves(state.frozen)} == {"bfloat16"}


def loss_and_gradients(mesh, **sections):
    setup = Setup(make_config(mesh, model=LORA | sections.pop("model", {}), **sections))
    config, program = setup.config, setup.program
    with setup.context():
        state = with_b(program.init())

        def run(params, frozen, batch):
            return gradients(config, lambda p: program.merge(whole(p, frozen)), params, batch, state.rng)

        grads, metrics = jax.jit(run)(state.params, state.frozen, setup.batch)
    return float(metrics["loss"]), path_of(grads)


@pytest.fixture(scope="module")
def one_device():
    return loss_and_gradients({})


MESHES = [
    (CUBE, {}),
    ({"fsdp": 2, "tensor": 4}, {"step": {"remat": "full"}}),  # few kv heads
    ({"context": 2, "tensor": 2}, {"step": {"remat": "dots"}}),
    (CUBE, {"step": {"microbatches": 2}}),
]


@pytest.mark.parametrize(("mesh", "sections"), MESHES, ids=str)
def test_loss_and_gradients_on_a_mesh_are_those_of_one_device(one_device, mesh, sections):
    loss, grads = loss_and_gradients(mesh, **sections)
    assert loss == pytest.approx(one_device[0], abs=1e-5)
    assert set(grads) == set(one_device[1])
    for name, wanted in one_device[1].items():
        assert np.abs(wanted).max() > 1e-4, name
        np.testing.assert_allclose(grads[name], wanted, atol=1e-5, err_msg=name)


def merged_base(config, state):
    """All parameters of the base, with what LoRA adds added."""
    base, own = path_of(state.frozen), path_of(state.params)
    for name in config.model.lora.on:
        at = "layers.attention" if name in ("q", "k", "v", "out") else "layers.mlp"
        a, b = own[f"{at}.lora.{name}_a"], own[f"{at}.lora.{name}_b"]
        product = np.einsum("lxr,lry->lxy", a.reshape(len(a), -1, a.shape[-1]), b.reshape(*b.shape[:2], -1))
        base[f"{at}.{name}"] = base[f"{at}.{name}"] + config.model.lora.factor * product.reshape(
            base[f"{at}.{name}"].shape
        )
    return nested({tuple(name.split(".")): x for name, x in base.items()})


def test_merged_is_unmerged():
    lora, base = Setup(make_config(model=LORA)), Setup(make_config())
    tokens = make_batch(lora.config)["tokens"]
    with lora.context():
        state = with_b(lora.program.init())
        apart = jax.jit(lora.program.merge(whole(state.params, state.frozen)))(tokens)
    with base.context():
        plain = jax.jit(base.program.merge(state.frozen))(tokens)
        together = jax.jit(base.program.merge(merged_base(lora.config, state)))(tokens)
    assert np.abs(apart - plain).max() > 0.1
    np.testing.assert_allclose(apart, together, atol=1e-5)


# --- predictions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor"])
@pytest.mark.parametrize("mesh", [CUBE, {"fsdp": 8}], ids=str)
def test_state_bytes_are_the_abstract_tree_s(mesh, optimizer):
    sections = {"optimizer": {"name": optimizer, "ema": 0.9}, "step": {"param_dtype": "bfloat16"}}
    config = make_config(mesh, model=LORA, **sections)
    setup = Setup(config)
    found, state = costs.state_bytes(config, dict(setup.mesh.shape)), setup.program.abstract
    parts = {"parameters": state.params, "frozen parameters": state.frozen, "optimizer state": state.opt_state,
             "averaged parameters": state.ema}  # fmt: skip
    assert {name: found[name] for name in parts} == {name: device_bytes(tree) for name, tree in parts.items()}


@pytest.mark.parametrize("remat", ["full", "dots", "none"])
def test_flops_are_the_compiled_program_s(remat):
    """So no gradient of a frozen matrix is computed."""
    config = make_config(CUBE, model=LORA, step={"remat": remat})
    setup = Setup(config)
    program = parse(setup.hlo())
    compiled = sum(m.flops * m.times for m in matmuls(program) if "gt" not in m.source.rsplit("/", 1)[0][-12:])
    assert sum(m.step_flops for m in costs.matmuls(config, dict(setup.mesh.shape))) == pytest.approx(compiled, rel=0.02)


WIDE = {"vocab_size": 1000, "num_layers": 3, "embed_dim": 128, "num_heads": 8, "num_kv_heads": 4, "mlp_dim": 384}


@pytest.mark.parametrize(
    ("mesh", "step"),
    [(CUBE, "none"), (CUBE, "full"), ({"fsdp": 4, "tensor": 2}, "dots"), ({"data": 8}, "none")],
    ids=str,
)
@pytest.mark.parametrize("chunk", [None, 32])
def test_rows_of_the_traced_step_are_the_cost_model_s_to_the_byte(mesh, step, chunk):
    sections = {
        "model": WIDE | LORA,
        "data": {"batch_size": 16, "seq_len": 128},
        "step": {"remat": step},
        "loss": {"chunk": chunk},
    }
    config = make_config(mesh, **sections)
    setup = Setup(config)
    sizes = dict(setup.mesh.shape)
    with setup.context():
        batch = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for k, x in setup.batch.items()}
        rows, others, _ = trace(config, setup.program, batch, sizes)
    names = {m.name for m in costs.matmuls(config, sizes)}
    assert sum(r.flops * r.times for r in rows if r.name in names) == sum(
        m.step_flops for m in costs.matmuls(config, sizes)
    )
    expected, sent = Counter(), Counter()
    for t in traffic(config, sizes):
        if t.what != "losses":
            expected[t.kind, t.axes] += t.step_bytes
    for s in [s for r in rows for s in r.sends] + [
        o for o in others if o.bytes >= 4096 and o.what not in ("cross_entropy", "norm")
    ]:
        sent[s.kind, s.axes] += s.bytes * s.times
    assert sent == expected


def test_a_token_costs_four_flops_a_frozen_parameter_and_six_a_trained_one():
    plain, lora = (make_config(model=WIDE | more).model for more in ({}, LORA))
    own = sum(blueprint(lora).size(w) for w in blueprint(lora).weights if w.trained)
    expected = costs.train_flops_per_token(plain, 64) - 2 * costs.matmul_parameters(plain) + 6 * own
    assert costs.train_flops_per_token(lora, 64) == expected


# --- configs --------------------------------------------------------------------------------------------------


def test_alpha_is_twice_the_rank_by_default():
    assert make_config(model={"lora": {"rank": 4}}).model.lora == cfg.Lora(rank=4, alpha=8, on=("q", "v"))


MOE = {"num_experts": 4, "top_k": 2, "mlp_dim": 24}
REFUSED = [
    (
        {"model": {"lora": {"rank": 4, "on": ["q", "kv"]}}},
        "no matrix kv; did you mean v?; there are q, k, v, out, gate, up, down",
    ),
    ({"model": {"lora": {"rank": 4, "on": ["q", "q"]}}}, "names none, or one twice"),
    ({"model": {"lora": {"rank": 4, "on": ["gate"]}, "mlp": "gelu"}}, "gate with mlp=gelu"),
    ({"model": {"lora": {"rank": 4, "on": ["up"]}, "moe": MOE}}, "LoRA is for q, k, v, out there"),
    ({"model": {"lora": {"rank": 4}, "moe": MOE | {"bias": True}}}, "set loss.bias_rate=0"),
    ({"init": {"adapter": "somewhere"}}, "needs model.lora"),
    ({"init": {"adapter": "somewhere"}, "model": {"lora": {"rank": 4}}}, "needs init.from"),
]


@pytest.mark.parametrize(("sections", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_what_cannot_be_is_refused_in_one_line(sections, says):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        make_config(**sections)
    assert says in str(error.value)


def test_a_pipeline_is_refused():
    with pytest.raises(ValueError, match=r"a pipeline trains all parameters, and model\.lora few"):
        Setup(make_config({"pipeline": 2}, model=LORA, step={"microbatches": 2}))


@pytest.mark.parametrize(
    ("mesh", "sections"),
    [
        ({"replica": 2, "fsdp": 2}, {"outer": {"every": 50}}),
        ({"fsdp": 2, "expert": 2}, {"model": {"lora": {"rank": 4, "on": ["q", "out"]}, "moe": MOE}}),
    ],
    ids=["replicas", "experts"],
)
def test_lora_with(mesh, sections):
    setup = Setup(make_config(mesh, **{"model": LORA} | sections))
    losses = np.ravel(setup.steps(8)[0].reshape(8, -1).mean(1))
    assert losses[-1] < losses[0]
