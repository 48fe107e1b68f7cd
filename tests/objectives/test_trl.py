"""Objectives beside TRL: its losses, gradients and metrics of the same weights and batches, on one device and on eight.

The numbers are files that `oracle/make_numbers.py` has written; neither torch nor trl is needed here.
"""

import functools

import jax
import numpy as np
import pytest
from objectives.oracle_files import ABOUT, CASES, LLAMA, MAX_COMPLETION, arrays, batch_of, pairs_of, rows_of, trained
from support import Setup, published_names

from jaxscale import config as cfg
from jaxscale.objectives import make_objective
from jaxscale.objectives.token_values import token_values
from jaxscale.training.initial import initial_state
from jaxscale.training.step import gradients

EIGHT = {"data": 2, "fsdp": 2, "tensor": 2}
ALONE = ({"data": 1}, None, 1)  # mesh, loss.chunk, step.microbatches
CUT = [({"data": 1}, 8, 2), (EIGHT, None, 1), (EIGHT, 8, 2)]
SAMPLED = {"kind": "grpo", "clip": [0.2, 0.28], "group": 4, "max_new": MAX_COMPLETION, "reward": "a:b", "updates": 2}
# Case -> section `objective`. TRL's sft term and orpo's are means over all chosen tokens, ours over pairs: the same
# where completions are equally long. TRL's default multiplies the KL by the ratio, as we do
OURS = {
    "sft sft": {"kind": "sft"},
    "sft lengths": {"kind": "sft"},
    "dpo sigmoid": {"kind": "dpo"},
    "dpo ipo": {"kind": "dpo", "loss": "ipo"},
    "dpo hinge": {"kind": "dpo", "loss": "hinge", "beta": 0.5},
    "dpo smoothed": {"kind": "dpo", "label_smoothing": 0.1},
    "dpo sigmoid sft even": {"kind": "dpo", "sft": 0.2},
    "dpo simpo": {"kind": "dpo", "loss": "simpo", "beta": 2.0},
    "dpo orpo even": {"kind": "dpo", "loss": "orpo"},
    "reward plain": {"kind": "reward"},
    "reward centred": {"kind": "reward", "center": 0.01},
    "grpo grpo": SAMPLED | {"aggregate": "grpo"},
    "grpo grpo kl ratio": SAMPLED | {"aggregate": "grpo", "kl": 0.1},
    "grpo bnpo": SAMPLED,
    "grpo dr_grpo": SAMPLED | {"aggregate": "dr_grpo"},
    "grpo dr_grpo kl ratio": SAMPLED | {"aggregate": "dr_grpo", "kl": 0.1},
    "grpo dapo": SAMPLED,
    "grpo dapo kl ratio": SAMPLED | {"kl": 0.1},
    "grpo dapo first": SAMPLED | {"updates": 1},
    "gspo grpo": SAMPLED | {"aggregate": "grpo", "level": "sequence"},
    "gspo grpo kl ratio": SAMPLED | {"aggregate": "grpo", "level": "sequence", "kl": 0.1},
    "gspo dapo": SAMPLED | {"level": "sequence"},
    "tempered dapo": SAMPLED | {"temperature": 0.7},
    "tempered gspo": SAMPLED | {"aggregate": "grpo", "level": "sequence", "temperature": 0.7},
}
NO_LOGITS = ("reward plain", "reward centred")  # so no chunks
CHOSEN_CASES = ("sft lengths", "dpo sigmoid", "dpo ipo", "dpo orpo even", "reward centred", "grpo grpo kl ratio",
                "grpo dr_grpo", "gspo grpo kl ratio", "tempered dapo")  # fmt: skip


def config_of(mesh, chunk, parts, *, tokens, rows=8, objective=None):
    values = cfg.load_config(f"hf:{LLAMA}", ["step.compute_dtype=float32", "step.remat=none"]).model_dump(mode="json")
    values["data"] |= {"kind": "synthetic", "path": None, "batch_size": rows, "seq_len": tokens}
    values |= {"mesh": mesh, "loss": values["loss"] | {"chunk": chunk}, "objective": objective or {}}
    values["step"]["microbatches"] = parts
    return cfg.validate(values, source="test")


def columns_of(name, objective, a_row=1):
    batch = batch_of(CASES[name]["batch"])
    if objective["kind"] in ("dpo", "reward"):
        columns = pairs_of(batch, a_row)
        return columns | {"reference": 0 * columns["weights"]} if name == "dpo smoothed" else columns
    return rows_of(batch, "rows" if objective.get("aggregate") == "grpo" else "tokens")


@functools.cache
def parameters(scored):
    """On the host, as the files have them; a reward model's score too."""
    config = config_of(*ALONE, tokens=40, objective={"kind": "reward"} if scored else None)
    setup = Setup(config)
    with setup.context():
        params = jax.device_get(initial_state(config, setup.program, print).params)
    return params | {"score": arrays("batches.npz")["score"].reshape(-1)} if scored else params


def placed(setup):
    shapes = setup.program.abstract.params
    return jax.device_put(parameters("score" in shapes), jax.tree.map(lambda x: x.sharding, shapes))


SAID = [*((b, "log_p") for b in ("sft", "lengths", "pairs", "even", "groups", "tempered")),
        *((b, "reference") for b in ("pairs", "tempered"))]  # fmt: skip


@pytest.mark.parametrize("how", [ALONE, CUT[0], CUT[2]], ids=str)
@pytest.mark.parametrize(("batch", "of"), SAID)
def test_log_probabilities(batch, of, how):
    """What TRL says of each target; of a pair too, whose texts are two documents of a row here, and two rows there."""
    (mesh, chunk, _), own = how, batch_of(batch)
    columns = (pairs_of if batch in ("pairs", "even") else rows_of)(own | {"old": own[of]})
    config = config_of(mesh, chunk, 1, tokens=columns["tokens"].shape[1])
    read = {name: columns[name] for name in ("tokens", "targets", "segments", "positions", "weights")}
    setup, temperature = Setup(config, batch=read), float(own.get("temperature", 1))
    with setup.context():

        def values(params, batch):
            params = jax.tree.map(lambda x: x * 0.6, params) if of == "reference" else params  # as its model was made
            model, part = setup.program.merge(params), jax.tree.map(lambda x: x[0], batch)
            return token_values(model, part, vocab_size=61, chunk=chunk, temperature=temperature)["log_p"]

        found = jax.device_get(jax.jit(values)(placed(setup), setup.batch))
    there = columns["weights"] != 0
    assert there.sum() == trained(own).sum()
    np.testing.assert_allclose(found[there], columns["old"][there], atol=1e-5)


def run(name, how, objective, a_row=1):
    """Gradients by TRL's names, and metrics."""
    mesh, chunk, parts = how
    columns = columns_of(name, objective, a_row)
    chunk = None if name in NO_LOGITS else chunk
    rows, tokens = columns["tokens"].shape
    config = config_of(mesh, chunk, parts, tokens=tokens, rows=rows, objective=objective)
    own = make_objective(config)
    batch = {key: columns[key] for key in own.reads(documents=objective["kind"] in ("dpo", "reward"))}
    setup = Setup(config, batch=batch)
    with setup.context():
        grad = jax.jit(functools.partial(gradients, config, setup.program.merge))
        grads, metrics = jax.device_get(grad(placed(setup), setup.batch, jax.random.key(0)))
    metrics = own.finish(metrics) if own.finish else metrics
    if objective["kind"] != "reward":
        return published_names(grads, config), metrics
    grads["unembedding"] = np.zeros((32, config.model.padded_vocab_size), np.float32)  # which is not there
    named = published_names(grads, config) | {"score.weight": grads["score"][None]}
    del named["lm_head.weight"]
    return named, metrics


def require_same_gradients(name, grads):
    """Elements within 1e-5 of the largest of their parameter, or of a hundredth of the largest of all; all norms."""
    theirs, wanted = ABOUT["parameters"]["score" if name in NO_LOGITS else "lm_head"], arrays("gradients.npz")
    assert set(theirs) == set(grads)
    norms, largest = wanted[f"{name}/norms"], dict(zip(theirs, wanted[f"{name}/largest"], strict=True))
    most = max(largest.values())
    compared = 0
    for key, own in grads.items():
        if f"{name}/{key}" in wanted:
            rows = own[::4] if own.shape[0] > 1 else own
            error = np.abs(rows - wanted[f"{name}/{key}"]).max() / max(largest[key], most / 100)
            assert error < 1e-5, f"gradient of {key} differs by {error:.1e}"
            compared += 1
    assert compared == 5 - ("lm_head.weight" not in grads) + ("score.weight" in grads)
    own = [np.linalg.norm(grads[key].astype(np.float64)) for key in theirs]
    np.testing.assert_allclose(own, norms, rtol=1e-5, atol=1e-7 * norms.max())


LOGGED = {
    "dpo": {"accuracy": "rewards/accuracies", "margin": "rewards/margins", "chosen_reward": "rewards/chosen",
            "rejected_reward": "rewards/rejected"},
    "reward": {"accuracy": "accuracy", "margin": "margin"},
    "grpo": {"clipped_low": "clip_ratio/low_mean", "clipped_high": "clip_ratio/high_mean", "entropy": "entropy"},
}  # fmt: skip


def require_same_metrics(name, objective, metrics):
    """Those that both have by one meaning: not of ipo and orpo, whose margins are ours; GSPO's clips are of rows."""
    assert metrics["loss"] == pytest.approx(CASES[name]["loss"], rel=1e-5, abs=1e-6)
    if objective.get("loss") in ("ipo", "simpo", "orpo") or objective.get("level") == "sequence":
        return
    theirs = CASES[name]["metrics"]
    for ours, key in LOGGED.get(objective["kind"], {}).items():
        assert metrics[ours] == pytest.approx(theirs[key], rel=1e-5, abs=2e-6), ours
    if objective.get("kl"):  # TRL's default logs it times the ratio, we without
        without = CASES[name.removesuffix(" ratio")]["metrics"]["kl"]
        assert metrics["kl"] == pytest.approx(without, rel=1e-5)


def check(name, how, a_row=1):
    objective = OURS[name]
    grads, metrics = run(name, how, objective, a_row)
    require_same_metrics(name, objective, metrics)
    require_same_gradients(name, grads)


@pytest.mark.parametrize("name", OURS)
def test_losses_gradients_and_metrics(name):
    check(name, ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("how", CUT, ids=str)
@pytest.mark.parametrize("name", CHOSEN_CASES)
def test_chunks_microbatches_and_meshes(name, how):
    check(name, how)


@pytest.mark.parametrize("name", ["dpo sigmoid", "dpo ipo", "reward centred"])
def test_two_pairs_a_row(name):
    check(name, (EIGHT, 16, 1), a_row=2)
