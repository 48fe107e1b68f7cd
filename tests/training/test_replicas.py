"""Replicas that seldom talk: each trains as one model does on its rows, and outer steps are DiLoCo's."""

import json
import math
import shutil
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import Listener, Setup, make_batch, make_config, place

from jaxscale.checkpoint.checkpointer import Checkpointer
from jaxscale.checkpoint.inventory import find_place, inventory
from jaxscale.compiled.aot import device_bytes
from jaxscale.compiled.collectives import collectives
from jaxscale.compiled.hlo import parse
from jaxscale.serving.serve import restore_params
from jaxscale.training import step as steps
from jaxscale.training.guard import Guard, Rollback
from jaxscale.training.replicas import PER_REPLICA, combined
from jaxscale.training.trainer import train

ROWS = {"data": {"batch_size": 16}}
MESHES = [
    {"replica": 2}, {"replica": 8}, {"replica": 2, "data": 4}, {"replica": 2, "fsdp": 4}, {"replica": 4, "tensor": 2},
    {"replica": 2, "fsdp": 2, "tensor": 2}, {"replica": 2, "context": 2, "tensor": 2},
    {"replica": 2, "fsdp": 2, "context": 2}, {"replica": 2, "data": 2, "fsdp": 2}, {"replica": 2, "pipeline": 2},
    {"replica": 2, "pipeline": 2, "fsdp": 2},
]  # fmt: skip


def replicated(mesh: dict, every: int = 2, **sections):
    return make_config(mesh, **({"outer": {"every": every}} | ROWS | sections))


def leaves(tree) -> list[np.ndarray]:
    arrays = (
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)
    )
    return [np.asarray(jax.device_get(x)) for x in arrays]


def assert_trees_close(got, wanted, *, rtol: float) -> None:
    """Every array within `rtol` of its largest element."""
    for a, b in zip(leaves(got), leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * max(np.abs(b).max(), 1e-3))


def assert_trees_equal(got, wanted) -> None:
    for a, b in zip(leaves(got), leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


# --- the step of each replica ----------------------------------------------------------------------------------


def by_themselves(config, batches: list[dict], steps: int) -> list:
    """What `Setup.steps` gives for each batch, from one start and by one program."""
    setup, found = Setup(config, batch=batches[0]), []
    for batch in batches:
        setup.batch = place(batch, setup.batch_sharding)
        found.append(setup.steps(steps))
    return found


@pytest.fixture(scope="module")
def alone():
    """replicas -> losses, gradient norms and parameters of each by itself, on one device, after two steps."""
    kept: dict[int, list] = {}

    def run(replicas: int) -> list:
        if replicas not in kept:
            whole, rows = make_batch(replicated(MESHES[0])), 16 // replicas
            config = make_config({"data": 1}, data={"batch_size": rows}, step={"remat": "full"})
            batches = [{k: v[r * rows : (r + 1) * rows] for k, v in whole.items()} for r in range(replicas)]
            kept[replicas] = by_themselves(config, batches, 2)
        return kept[replicas]

    return run


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_replica_trains_as_one_model_does_on_its_rows(mesh, alone):
    """With documents and padding, the loss in chunks; its step has no collective, of any size, across replicas."""
    setup = Setup(replicated(mesh, step={"remat": "full"}, loss={"chunk": 16}))
    losses, norms, state = setup.steps(2)
    for r, (wanted_losses, wanted_norms, wanted) in enumerate(alone(mesh["replica"])):
        np.testing.assert_allclose(losses[:, r], wanted_losses, rtol=1e-5)
        np.testing.assert_allclose(norms[:, r], wanted_norms, rtol=1e-5)
        own = jax.tree.map(lambda x, r=r: np.asarray(x)[r], state.params)
        for a, b in zip(leaves(own), leaves(wanted.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-3)  # Adam: a step is up to 1e-2, by tiny gradients' signs
    sent = collectives(parse(setup.hlo()), dict(setup.mesh.shape))
    assert not [c for c in sent if "replica" in c.axes or not c.axes], sent
    assert bool(sent) == (len(mesh) > 1)
    assert_laid_out_alike(state, setup.program.abstract)


def assert_laid_out_alike(state, abstract) -> None:
    """So that the next step is the same program."""
    alike = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), state, abstract)
    assert all(jax.tree.leaves(alike))


@pytest.mark.parametrize("name", ["lion", "adafactor", "muon"])
def test_other_optimizers_keep_replicas_apart_too(name):
    """Wide enough for Adafactor's factors; Muon orthogonalises each replica's matrices."""
    sections = {"optimizer": {"name": name}, "model": {"embed_dim": 128, "mlp_dim": 256, "num_layers": 1}}
    setup = Setup(replicated({"replica": 2, "fsdp": 2, "tensor": 2}, **sections))
    losses, norms, state = setup.steps(3)
    rows = [{k: v[8 * r : 8 * r + 8] for k, v in make_batch(setup.config).items()} for r in range(2)]
    for r, wanted in enumerate(by_themselves(make_config({"data": 1}, **sections), rows, 3)):
        wanted_losses, wanted_norms, _ = wanted
        np.testing.assert_allclose(losses[:, r], wanted_losses, rtol=1e-5)
        np.testing.assert_allclose(norms[:, r], wanted_norms, rtol=1e-5)
    assert not [c for c in collectives(parse(setup.hlo()), dict(setup.mesh.shape)) if "replica" in c.axes or not c.axes]
    assert_laid_out_alike(state, setup.program.abstract)


@pytest.mark.parametrize("inside", [{}, {"pipeline": 2}, {"pipeline": 2, "fsdp": 2}, {"pipeline": 2, "context": 2}])
def test_microbatches_are_shared_out_row_by_row(inside):
    """A replica's rows are its share of each microbatch, also where stages of its own pass these on."""
    batch = make_batch(replicated({"replica": 2}))
    config = replicated({"replica": 2} | inside, step={"microbatches": 2, "remat": "full"})
    losses, _, _ = Setup(config).steps(1)
    order = np.arange(16).reshape(2, 2, 4).swapaxes(0, 1).reshape(2, 8)  # [replica, its rows]
    rows = [{k: v[order[r]] for k, v in batch.items()} for r in range(2)]
    for r, (wanted, _, _) in enumerate(by_themselves(make_config({"data": 1}), rows, 1)):
        np.testing.assert_allclose(losses[:, r], wanted, rtol=1e-5)


def test_replicas_draw_from_keys_of_their_own(monkeypatch):
    seen = []

    def gradients(config, merge, params, batch, rng):
        seen.append(jax.random.key_data(rng)[..., 0].astype(jnp.float32))
        return jax.tree.map(jnp.zeros_like, params), {"loss": seen[-1], "z": seen[-1], "tokens": seen[-1]}

    monkeypatch.setattr(steps, "gradients", gradients)
    setup = Setup(replicated({"replica": 4}))
    with setup.context():
        _, metrics = setup.program.step(setup.program.init(), setup.batch)
    assert len(set(np.asarray(metrics["loss"]).tolist())) == 4


def test_metrics_of_replicas_are_those_of_all_their_tokens():
    """Padding falls on one replica: each token counts once. One that is no number is seen, and so is one spike."""
    config = replicated({"replica": 2, "data": 2})
    batch = make_batch(config)
    batch["weights"][:8] *= np.arange(32) < 5
    setup = Setup(config, batch=batch)
    with setup.context():
        state = setup.program.init()
        total = jax.device_get(setup.program.evaluate(state, setup.batch))
        _, metrics = setup.program.step(state, setup.batch)
        each, found = jax.device_get((metrics, setup.program.combine(metrics)))
    assert each["tokens"][0] < each["tokens"][1] / 3
    assert found["tokens"] == total["tokens"] == batch["weights"].sum()
    np.testing.assert_allclose(found["loss"], total["cross_entropy"] / total["tokens"], rtol=1e-6)
    np.testing.assert_allclose(found["grad_norm"], each["grad_norm"].mean(), rtol=1e-6)
    with setup.context():
        odd = {"loss": jnp.array([1, np.nan]), "tokens": jnp.array([2.0, 1]), "spike": jnp.array([0.0, 1])}
        found = jax.jit(partial(combined, means=("loss",), unit="tokens"))(odd)
    assert math.isnan(found["loss"])
    assert (found["spike"], found["tokens"]) == (1, 3)


def test_a_bad_step_of_one_replica_is_skipped_there_alone():
    config = replicated({"replica": 2, "fsdp": 2}, on_nonfinite="skip")
    batch = make_batch(config)
    batch["weights"][8:] = np.nan
    setup = Setup(config, batch=batch)
    with setup.context():
        first = setup.program.init()
        before = leaves(first.params)
        state, _ = setup.program.step(first, setup.batch)
    for old, new in zip(before, leaves(state.params), strict=True):
        np.testing.assert_array_equal(old[1], new[1])
        assert not np.array_equal(old[0], new[0])


# --- the outer step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mesh", [{"replica": 2}, {"replica": 2, "fsdp": 2, "tensor": 2}, {"replica": 4, "data": 2}], ids=str
)
def test_the_outer_step_sends_four_bytes_a_parameter(mesh):
    setup = Setup(replicated(mesh, step={"param_dtype": "bfloat16"}))
    with setup.context():
        hlo = setup.program.outer.lower(setup.program.abstract).compile().as_text()
    sent = collectives(parse(hlo), dict(setup.mesh.shape))
    across = [c for c in sent if "replica" in c.axes or not c.axes]
    assert {(c.kind, c.axes) for c in across} == {("all-reduce", ("replica",))}
    assert sum(c.bytes * c.times for c in across) == device_bytes(setup.program.abstract.outer.params)
    assert sum(c.bytes * c.times for c in sent if c not in across) < 100  # the norm of the gradient
    if len(mesh) == 1:
        parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(setup.program.abstract.outer.params))
        assert sum(c.bytes * c.times for c in across) == 4 * parameters


def test_with_rate_1_and_no_momentum_it_is_the_mean():
    setup = Setup(replicated({"replica": 4, "fsdp": 2}, outer={"every": 1, "learning_rate": 1.0, "momentum": 0.0}))
    _, _, state = setup.steps(2)
    means = jax.tree.map(lambda x: np.asarray(x).mean(0), state.params)
    others = leaves((state.opt_state, state.losses))
    with setup.context():
        state, _ = setup.program.outer(state)
    assert_trees_close(state.outer.params, means, rtol=1e-6)
    for own, common in zip(leaves(state.params), leaves(state.outer.params), strict=True):
        np.testing.assert_array_equal(own, np.broadcast_to(common, own.shape))
    assert_trees_equal((state.opt_state, state.losses), others)


@pytest.mark.parametrize("mesh", [{"replica": 2}, {"replica": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_after_each_step_of_sgd_it_is_data_parallelism(mesh, monkeypatch):
    monkeypatch.setattr(steps, "make_optimizer", lambda *args, **more: optax.sgd(0.3))
    outer = {"every": 1, "learning_rate": 1.0, "momentum": 0.0}
    batch = make_batch(replicated(mesh), padding=0)  # as many tokens in each replica
    setup = Setup(replicated(mesh, outer=outer), batch=batch)
    _, _, wanted = Setup(make_config({"data": 2}, **ROWS), batch=batch).steps(4)
    with setup.context():
        state = setup.program.init()
        for _ in range(4):
            state, _ = setup.program.outer(setup.program.step(state, setup.batch)[0])
    assert_trees_close(state.outer.params, wanted.params, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nesterov_is_optax_s(dtype):
    """Over three outer steps; in bfloat16 the outer parameters keep what rounding takes from the replicas'."""
    setup = Setup(replicated({"replica": 2, "fsdp": 2}, step={"param_dtype": dtype}))
    optimizer = optax.sgd(0.7, momentum=0.9, nesterov=True)
    with setup.context():
        state = setup.program.init()
        params = jax.device_get(state.outer.params)
        kept = optimizer.init(params)
        for _ in range(3):
            started = jax.tree.map(lambda x: np.asarray(x)[0].astype(np.float32), state.params)
            for _ in range(2):
                state, _ = setup.program.step(state, setup.batch)
            ended = jax.tree.map(lambda x: np.asarray(x).astype(np.float32).mean(0), state.params)
            grads = jax.tree.map(np.subtract, started, ended)
            updates, kept = optimizer.update(grads, kept, params)
            params = jax.device_get(optax.apply_updates(params, updates))
            state, metrics = setup.program.outer(state)
    norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
    assert_trees_close(state.outer.params, params, rtol=1e-6)
    rounded = jax.tree.map(lambda x: np.asarray(x.astype(dtype)), state.outer.params)
    assert_trees_equal(jax.tree.map(lambda x: np.asarray(x)[1], state.params), rounded)


def test_evaluation_is_of_the_outer_parameters():
    setup = Setup(replicated({"replica": 2, "data": 2}))
    with setup.context():
        state = setup.program.init()
        before = jax.device_get(setup.program.evaluate(state, setup.batch))
        state, _ = setup.program.step(state, setup.batch)
        between = jax.device_get(setup.program.evaluate(state, setup.batch))
        state, _ = setup.program.outer(state)
        after = jax.device_get(setup.program.evaluate(state, setup.batch))
    assert before["cross_entropy"] == between["cross_entropy"] != after["cross_entropy"]
    one = Setup(make_config({"data": 1}, **ROWS))
    with one.context():
        start = one.program.init()._replace(params=jax.device_get(state.outer.params))
        wanted = jax.device_get(one.program.evaluate(start, one.batch))
    np.testing.assert_allclose(after["cross_entropy"], wanted["cross_entropy"], rtol=1e-6)


# --- runs and checkpoints --------------------------------------------------------------------------------------

RUN = {"steps": 8, "checkpoint": {"every": 3}, "optimizer": {"schedule": "constant"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 8 steps, with outer steps after 4 and 8, and checkpoints of 6 and 8."""
    return run_on({"replica": 2, "fsdp": 4}, tmp_path_factory.mktemp("replicas") / "run")


def run_on(mesh: dict, out, **sections) -> SimpleNamespace:
    config = replicated(mesh, every=4, out=str(out), **RUN, **sections)
    return SimpleNamespace(out=out, config=config, result=train(config))


def records(out, kind: str) -> list[dict]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def interrupted(run, tmp_path):
    """The same run as it was after step 6, between two outer steps."""
    out = tmp_path / "copy"
    shutil.copytree(run.out, out)
    shutil.rmtree(out / "checkpoints" / "8")
    return out


def test_the_trainer_takes_outer_steps_and_tells_of_them(run):
    assert [(r["step"], r["grad_norm"] > 0, r["seconds"] > 0) for r in records(run.out, "outer")] == [
        (4, True, True), (8, True, True),
    ]  # fmt: skip
    events = [json.loads(line) for line in (run.out / "events.jsonl").read_text().splitlines()]
    assert [(e["phase"], e["step"]) for e in events if e["event"] == "outer step"] == [
        (phase, step) for step in (4, 8) for phase in ("start", "end")
    ]
    whole = sum(math.prod(x.shape) for x in jax.tree.leaves(run.result.state.outer.params))
    kept = inventory(find_place(str(run.out)))
    assert {k.about["parameters"] for k in kept} == {whole}


def test_a_run_resumes_between_two_outer_steps_bit_by_bit(run, tmp_path):
    resumes_bit_by_bit(run, tmp_path)


def test_a_run_of_pipelines_resumes_bit_by_bit(run, tmp_path):
    """And learns what replicas without stages do."""
    step = {"microbatches": 2, "remat": "full"}
    staged = run_on({"replica": 2, "pipeline": 2, "fsdp": 2}, tmp_path / "run", step=step)
    resumes_bit_by_bit(staged, tmp_path)
    np.testing.assert_allclose(list(staged.result.losses.values()), list(run.result.losses.values()), rtol=2e-3)


def resumes_bit_by_bit(run, tmp_path) -> None:
    out = interrupted(run, tmp_path)
    listener = Listener()
    result = train(run.config.model_copy(update={"out": str(out)}), watcher=listener)
    assert any(line.startswith("resuming from step 6") for line in listener.lines)
    assert result.losses == {step: run.result.losses[step] for step in (7, 8)}
    assert_trees_equal(result.state, run.result.state)
    assert [r["step"] for r in records(out, "outer")] == [4, 8]


ONTO = [
    ({"fsdp": 8}, None), ({"data": 1}, None), ({"replica": 4, "fsdp": 2}, 4), ({"replica": 2, "tensor": 2}, 4),
    ({"replica": 2, "pipeline": 2}, 4),
]  # fmt: skip


@pytest.mark.parametrize(("mesh", "every"), ONTO, ids=str)
def test_a_checkpoint_is_restored_onto_any_mesh(run, tmp_path, mesh, every):
    """On as many replicas all of it; else the outer parameters and momentum, with the means of Adam's moments."""
    said, config = [], make_config(mesh, outer={"every": every}, step={"remat": "full"}, **ROWS, **RUN)
    setup = Setup(config)
    place = Checkpointer(interrupted(run, tmp_path) / "checkpoints")
    with setup.context():
        state, _ = place.restore_latest(setup.program.abstract, config, say=said.append)
    with (old := Setup(run.config)).context():
        saved, _ = place.restore_latest(old.program.abstract, run.config, say=said.append)
    place.close()
    assert_laid_out_alike(state, setup.program.abstract)
    replicas = mesh.get("replica", 0)
    if replicas == 2:
        assert_trees_equal(state, saved)
        assert not said
        return
    words = "4 from there on: all start" if replicas else "none from there on: the run goes on"
    assert said == [
        f"2 replicas until step 6, {words} from the outer parameters, and what the replicas learnt in the last 2 steps "
        "is left"
    ]
    own = {name: getattr(state, name) for name in PER_REPLICA}
    each = [jax.tree.map(lambda x, r=r: np.asarray(x)[r], own) for r in range(replicas)] or [own]
    for one in each:
        assert_trees_equal(one["params"], saved.outer.params)
        means = jax.tree.map(lambda x: np.asarray(x).mean(0).astype(x.dtype), (saved.opt_state, saved.losses))
        assert_trees_close((one["opt_state"], one["losses"]), means, rtol=1e-6)
    assert int(state.step) == 6
    if replicas:
        assert_trees_equal(state.outer, saved.outer)
    else:
        assert state.outer == {}


def test_a_usual_run_goes_on_with_replicas_and_back(tmp_path):
    plain = make_config({"fsdp": 8}, out=str(tmp_path / "run"), **ROWS, **RUN)
    first, listener = train(plain), Listener()
    more = replicated({"replica": 2, "fsdp": 4}, every=4, out=plain.out, **RUN | {"steps": 12})
    second = train(more, watcher=listener)
    assert "no replicas until step 8, 2 from there on" in listener.lines
    assert first.step + 4 == second.step
    assert np.isfinite(second.losses[12])
    third = train(make_config({"fsdp": 4, "tensor": 2}, out=plain.out, **ROWS, **RUN | {"steps": 16}), watcher=listener)
    assert "2 replicas until step 12, none from there on: the run goes on from the outer parameters" in listener.lines
    assert np.isfinite(third.losses[16])


def test_a_rollback_goes_back_with_all_replicas(run, tmp_path, monkeypatch):
    """From step 7 to the checkpoint of 6, between two outer steps; the one after 8 is taken once."""
    judge, bad = Guard.judge, [7]

    def once(self, step, values, saved):
        if step in bad:
            bad.remove(step)
            raise Rollback(step, "odd")
        judge(self, step, values, saved)

    monkeypatch.setattr(Guard, "judge", once)
    out, listener = tmp_path / "run", Listener()
    result = train(run.config.model_copy(update={"out": str(out)}), watcher=listener)
    assert any("step 7: odd; back to step 6, past 1 batches" in line for line in listener.lines)
    assert [r["step"] for r in records(out, "outer")] == [4, 8]
    assert result.losses[6] == run.result.losses[6]
    assert result.losses[7] != run.result.losses[7]  # of other rows
    for own, common in zip(leaves(result.state.params), leaves(result.state.outer.params), strict=True):
        np.testing.assert_array_equal(own, np.broadcast_to(common, own.shape))


def test_text_is_made_with_the_outer_parameters(run):
    for config in (run.config, make_config({"tensor": 2}, **ROWS)):
        setup = Setup(config)
        with setup.context():
            served = restore_params(run.out, setup.program, config, 6, print)
    assert_trees_equal(served, steps.used_parameters(run.config, saved_state(run, 6)))


def saved_state(run, step: int):
    setup = Setup(run.config)
    place = Checkpointer(run.out / "checkpoints")
    with setup.context():
        state = place.restore(step, setup.program.abstract)
    place.close()
    return state


# --- what is refused -------------------------------------------------------------------------------------------

TWO = {"replica": 2}
REFUSED = [
    ({"data": 2}, {"outer": {"every": 4}}, "outer.every=4 is for replicas, and mesh.replica is 1; set mesh.replica or"),
    (TWO, {"outer": {"every": None}}, "mesh.replica: 2 replicas need outer.every, the steps between"),
    ({"dcn": TWO}, {"outer": {"every": None}}, "mesh.replica: 2 replicas need outer.every, the steps between"),
    ({"replica": -1}, {}, "replica=-1: how many replicas there are changes what is learnt; give their number"),
    (TWO, {"data": {"batch_size": 7}}, "the 7 rows of a microbatch are not divisible by 2 replicas; try 6 or 8"),
    (TWO, {"data": {"batch_size": 9}, "step": {"microbatches": 3}}, "3 rows of a microbatch are not divisible by 2"),
    (TWO, {"steps": 7}, "steps 7 is not a multiple of outer.every 2: what replicas learn counts from their"),
    (TWO, {"evaluation": {"every": 1}}, "evaluation.every 1 is not a multiple of outer.every 2"),
    (TWO, {"optimizer": {"ema": 0.9}}, "optimizer.ema=0.9 averages the parameters of every step"),
    (TWO, {"guard": {"recompute_every": 5}}, "guard.recompute_every=5 is not supported with replicas; set it to 0"),
    (TWO, {"outer": {"every": 2, "momentum": 1.0}}, "outer.momentum=1.0"),
    (TWO, {"outer": {"every": 2, "learning_rate": 0.0}}, "outer.learning_rate=0.0"),
]  # fmt: skip


@pytest.mark.parametrize(("mesh", "sections", "says"), REFUSED)
def test_what_cannot_work_is_refused_in_a_line(mesh, sections, says):
    with pytest.raises(ValueError, match="test: ") as error:
        replicated(mesh, **sections)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("table", "name", "axes"),
    [
        ("activations", "batch", ["data"]),
        ("activations", "batch", ["data", "replica"]),
        ("parameters", "embed", "replica"),
    ],
)
def test_rules_that_share_what_replicas_have_apart_are_refused(table, name, axes):
    config = replicated({"replica": 2, "data": 2}, sharding={table: {name: axes}})
    with pytest.raises(ValueError, match=rf"sharding\.{table}\.{name} .* must (begin with|not have) replica"):
        Setup(config)


def test_replicas_of_experts_train_apart_and_share_the_mean_of_their_biases():
    model = {"moe": {"num_experts": 8, "top_k": 2, "mlp_dim": 32, "bias": True}}
    config = replicated({"replica": 2, "expert": 2, "tensor": 2}, model=model, step={"remat": "full"})
    setup = Setup(config)
    _, _, state = setup.steps(2)
    whole, rows = make_batch(config), 8
    one = make_config({"data": 1}, data={"batch_size": rows}, model=model, step={"remat": "full"})
    biases = []
    batches = [{k: v[r * rows : (r + 1) * rows] for k, v in whole.items()} for r in range(2)]
    for r, (_, _, wanted) in enumerate(by_themselves(one, batches, 2)):
        (own,), (bias,) = leaves(state.router_bias), leaves(wanted.router_bias)
        np.testing.assert_allclose(own[r], bias, atol=1e-7)
        biases.append(bias)
    sent = collectives(parse(setup.hlo()), dict(setup.mesh.shape))
    assert not [c for c in sent if "replica" in c.axes or not c.axes], sent
    assert np.abs(biases[0] - biases[1]).max() > 0
    with setup.context():
        after, _ = setup.program.outer(state)
    (shared,) = leaves(after.router_bias)
    np.testing.assert_allclose(shared, np.stack([np.mean(biases, 0)] * 2), atol=1e-7)
