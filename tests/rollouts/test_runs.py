"""Whole runs of learned objectives: what they train on, and that one which goes on is the one that never stopped."""

import json
import shutil
import textwrap

import jax
import numpy as np
import pytest
from support import Listener

from jaxscale import config as cfg
from jaxscale.data.examples.prepare import prepare_examples
from jaxscale.data.examples.reading import examples_source
from jaxscale.files.jsonl import read_records
from jaxscale.rollouts import feed as feeds
from jaxscale.training.trainer import train

MODEL = {"vocab_size": 257, "num_layers": 2, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "max_seq_len": 64}
DIGITS = [f"{i:03d}" for i in range(0, 1000, 13)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Datasets of three kinds, reward functions, and a run to begin from."""
    out = tmp_path_factory.mktemp("learned")
    for name, kind, record in (
        ("chat", "conversations", lambda d: {"prompt": d + ">", "completion": d[::-1]}),
        ("pairs", "pairs", lambda d: {"prompt": d + ">", "chosen": d[::-1], "rejected": d + "!"}),
        ("prompts", "prompts", lambda d: {"prompt": d + ">", "wanted": d[::-1]}),
    ):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(record(d)) + "\n" for d in DIGITS))
        source = examples_source(kind, [out / f"{name}.jsonl"])
        prepare_examples(source, "byte", out / name, template="plain", validation_fraction=0.2, progress=lambda p: None)
    (out / "mine.py").write_text(
        textwrap.dedent("""
        def ones(prompts, completions, **columns):
            return [1.0] * len(completions)

        def short(prompts, completions, **columns):
            return [-float(len(c)) for c in completions]

        def length(prompts, completions, wanted, **columns):
            assert all(p == w[::-1] + ">" for p, w in zip(prompts, wanted)), "a prompt and its column are of one record"
            return [float(len(c)) for c in completions]
        """)
    )
    run(out, "base", data="chat", steps=6, optimizer={"learning_rate": 3e-3})
    return out


def run(out, name, *, data, listener=None, mesh=None, **sections):
    begins = {} if name == "base" else {"from": str(out / "base")}
    values = {
        "name": name, "out": str(out / name), "steps": 6, "model": MODEL, "mesh": mesh or {"data": 8},
        "runtime": {"platform": "cpu", "compilation_cache": None}, "init": begins,
        "data": {"path": str(out / data)} if data else {"kind": "synthetic"},
        "step": {"compute_dtype": "float32", "remat": "none"}, "metrics": {"tensorboard": False},
        "checkpoint": {"every": 0}, "evaluation": {"examples": 8},
        "optimizer": {"learning_rate": 1e-3, "schedule": "constant", "weight_decay": 0.0},
    }  # fmt: skip
    values["data"] |= {"batch_size": 16, "seq_len": 48, "prefetch": 1}
    for key, section in sections.items():
        values[key] = values.get(key, {}) | section if isinstance(section, dict) else section
    return train(cfg.validate(values, source=name), watcher=listener)


def rollouts(out, kind="grpo", reward="length", **more):
    own = {"kind": kind, "group": 4, "max_new": 5, "reward": f"{out}/mine.py:{reward}"}
    return own | {"prompts": 6} | more if kind == "raft" else own | more


def assert_bitwise(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def records(out, name, kind):
    return [r for r in read_records(out / name / "metrics.jsonl") if r["kind"] == kind]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("grpo", {"updates": 1, "kl": 0.1}),
        ("grpo", {"updates": 2, "level": "sequence", "aggregate": "grpo"}),
        ("raft", {"updates": 3}),
    ],
    ids=["grpo", "gspo of two updates", "raft of three"],
)
def test_a_run_that_goes_on_is_the_one_that_never_stopped(place, name, more):
    """Also where it stops between two steps on one round, whose samples cannot be made again."""
    label = f"{name}{more['updates']}"
    own = rollouts(place, name, **more)
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    whole = run(place, f"{label}-whole", data="prompts", objective=own, mesh=mesh, steps=6)
    run(place, f"{label}-cut", data="prompts", objective=own, mesh=mesh, steps=3)
    listener = Listener()
    again = run(place, f"{label}-cut", data="prompts", objective=own, mesh=mesh, steps=6, listener=listener)
    assert any("resuming from step 3" in line for line in listener.lines)
    assert not any("are gone" in line for line in listener.lines)
    assert_bitwise(again.state.params, whole.state.params)


def test_sampler_and_trainer_agree_and_the_first_ratio_is_one(place):
    run(place, "agree", data="prompts", objective=rollouts(place, temperature=0.6, kl=0.5), steps=3)
    steps = records(place, "agree", "train")
    assert all(r["mismatch"] < 1e-4 and r["kl_old"] < 1e-6 for r in steps)
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6)  # the reference is what the run begins with
    assert all(r["clipped_low"] == r["clipped_high"] == 0 for r in steps)
    rounds = records(place, "agree", "rollout")
    assert [r["round"] for r in rounds] == [0, 1, 2]
    assert all(0 <= r["length"] <= 5 for r in rounds)


def test_equal_rewards_teach_exactly_nothing(place):
    result = run(place, "equal", data="prompts", objective=rollouts(place, reward="ones"), steps=2)
    assert all(r["grad_norm"] == 0 for r in records(place, "equal", "train"))
    assert all(r["without_signal"] == 1 for r in records(place, "equal", "rollout"))
    again = run(place, "base", data="chat", steps=6, optimizer={"learning_rate": 3e-3})
    assert_bitwise(result.state.params, again.state.params)


def test_what_is_rewarded_becomes_more_likely(place):
    """Short samples here: a wrong sign of the advantage would make them longer."""
    own = rollouts(place, reward="short", max_new=12, scale="none")
    run(place, "short", data="prompts", objective=own, steps=12, optimizer={"learning_rate": 3e-3})
    rounds = records(place, "short", "rollout")
    assert np.mean([r["reward"] for r in rounds[-3:]]) > np.mean([r["reward"] for r in rounds[:3]]) + 0.5


def test_the_reference_stays_as_it_was(place, monkeypatch):
    kept = []

    class Watched(feeds.RolloutFeed):
        def close(self):
            kept.append(jax.device_get(self.reference.params))

    monkeypatch.setattr("jaxscale.rollouts.opening.RolloutFeed", Watched)
    run(place, "kl", data="prompts", objective=rollouts(place, kl=0.5), steps=4, optimizer={"learning_rate": 1e-2})
    first = run(place, "base", data="chat", steps=6, optimizer={"learning_rate": 3e-3})
    assert_bitwise(kept[0], first.state.params)


def test_dpo_begins_at_the_logarithm_of_two_and_keeps_the_reference(place):
    mesh, own = {"data": 2, "fsdp": 2, "tensor": 2}, {"kind": "dpo"}
    listener = Listener()
    run(place, "dpo", data="pairs", objective=own, mesh=mesh, steps=3, listener=listener)
    assert sum("once" in line for line in listener.lines) == 2  # of both splits
    steps = records(place, "dpo", "train")
    assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert steps[0]["pairs"] > 16  # several a row
    assert steps[-1]["loss"] < steps[0]["loss"]
    again = Listener()
    whole = run(place, "dpo-whole", data="pairs", objective=own, mesh=mesh, steps=5)
    gone_on = run(place, "dpo", data="pairs", objective=own, mesh=mesh, steps=5, listener=again)
    assert not any("once" in line for line in again.lines)
    assert_bitwise(gone_on.state.params, whole.state.params)


def test_another_reference_is_computed_anew(place):
    run(place, "changed", data="pairs", objective={"kind": "dpo"}, steps=1)
    listener = Listener()
    run(place, "other", data="chat", steps=1)
    run(place, "changed", data="pairs", objective={"kind": "dpo"}, steps=2, init={"from": str(place / "other")},
        listener=listener)  # fmt: skip
    assert sum("once" in line for line in listener.lines) == 2


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_the_reference_is_the_same_after_its_own_run_has_gone_on(place, kind):
    """And pairs need it no longer: a resumed run of DPO reads what it keeps."""
    own = {"kind": "dpo"} if kind == "dpo" else rollouts(place, kl=0.5)
    about = {"data": "pairs" if kind == "dpo" else "prompts", "objective": own}
    run(place, f"{kind}-first", data="chat", steps=2)
    begin = {"init": {"from": str(place / f"{kind}-first")}}
    whole = run(place, f"{kind}-unmoved", steps=3, **about, **begin)
    run(place, f"{kind}-moved", steps=2, **about, **begin)
    run(place, f"{kind}-first", data="chat", steps=3, checkpoint={"keep_last": 2})
    listener = Listener()
    again = run(place, f"{kind}-moved", steps=3, listener=listener, **about, **begin)
    assert not any("once" in line for line in listener.lines)
    assert_bitwise(again.state.params, whole.state.params)
    if kind == "dpo":
        shutil.rmtree(place / "dpo-first")
        run(place, "dpo-moved", steps=4, **about, **begin)


def test_what_is_not_there_is_refused_before_anything_is_written(place):
    for reward in (str(place / "nothing"), f"{place}/mine.py:nothing", f"{place}/nothing.py:short"):
        with pytest.raises(ValueError, match="nothing"):
            run(place, "refused", data="prompts", objective=rollouts(place) | {"reward": reward})
    with pytest.raises(ValueError, match="sft trains the answers of conversations"):
        run(place, "refused", data=None, objective={"kind": "sft"})
    assert not (place / "refused").exists()


def test_a_reward_model_learns_pairs_and_rewards_samples(place):
    rate = {"learning_rate": 3e-3}
    run(place, "rm", data="pairs", objective={"kind": "reward"}, steps=25, optimizer=rate)
    validation = records(place, "rm", "validation")
    assert validation[-1]["accuracy"] == 1
    own = rollouts(place) | {"reward": str(place / "rm"), "judge": f"{place}/mine.py:length"}
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    run(place, "by-rm", data="prompts", objective=own, mesh=mesh, steps=2)
    run(place, "by-rm-1", data="prompts", objective=own, steps=2)
    ours, alone = (records(place, name, "rollout") for name in ("by-rm", "by-rm-1"))
    assert ours[0]["reward"] == pytest.approx(alone[0]["reward"], rel=1e-4)
    assert ours[0]["judge"] == alone[0]["judge"]
    held_out = records(place, "by-rm", "rollout_validation")
    assert held_out[-1].keys() >= {"reward", "greedy_reward", "judge", "greedy_judge", "cut_off"}


def test_a_reward_models_vector_is_trained_beside_lora(place):
    lora = {"model": {"lora": {"rank": 2, "on": ["q", "v"]}}}
    result = run(place, "rm-lora", data="pairs", objective={"kind": "reward"}, steps=3, **lora)
    assert set(result.state.params) == {"layers", "score"}
    run(place, "dpo-lora", data="pairs", objective={"kind": "dpo"}, steps=2, **lora)
    assert records(place, "dpo-lora", "train")[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    run(place, "grpo-lora", data="prompts", objective=rollouts(place, kl=0.1), steps=2, **lora)
    assert records(place, "grpo-lora", "train")[0]["kl"] == pytest.approx(0, abs=1e-6)
