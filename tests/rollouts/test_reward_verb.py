"""`jaxscale reward` and `rollout --reward RUN`: scores by a reward model's run, as it was trained to give them."""

import json
import math
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from made_examples import dataset, write_records
from support import make_config

from jaxscale.data.chat import Chat
from jaxscale.data.examples.masks import encode_examples
from jaxscale.data.examples.reading import examples_source
from jaxscale.data.examples.records import to_example
from jaxscale.data.examples.templates import NAMED, kept_template, make_template
from jaxscale.data.prepare import prepare
from jaxscale.data.sources import text_source
from jaxscale.data.tokenizer import BYTE_SEPARATOR_ID, ByteTokenizer
from jaxscale.files.jsonl import read_records
from jaxscale.rollouts.scorer import tail_of
from jaxscale.training.trainer import train

MODEL = {"vocab_size": 257, "num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 64}
RUNTIME = {"platform": "cpu", "simulated_devices": 8}
WORDS = ("ship", "wind", "tide", "sail", "mast", "deck", "oar", "rope", "knot", "net", "hull")


def pair(i: int) -> dict:
    word = WORDS[i % len(WORDS)] + "s" * (i // len(WORDS))
    return {"prompt": word, "chosen": "".join(sorted(word)), "rejected": word[::-1] + "z" * (i % 3)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of answers, and reward models on pairs of two templates, whose last evaluation saw all held-out pairs."""
    place = tmp_path_factory.mktemp("reward")
    (place / "text.txt").write_text("ship hips wind dinw tide deti sail ails\n" * 40)
    prepare(text_source([place / "text.txt"]), "byte", place / "text", validation_tail=0.3)
    held = examples_source("pairs", [write_records(place / "held.jsonl", [pair(i) for i in range(24)])])
    common = {"model": MODEL, "runtime": RUNTIME, "steps": 8, "optimizer": {"learning_rate": 5e-3}}
    for name, template in (("rm", "plain"), ("chat", "chatml")):
        dataset(place, "pairs", [pair(i) for i in range(24, 60)], f"{name}-data", validation=held, template=template)
        own = {"out": str(place / name), "checkpoint": {"every": 8}, "evaluation": {"every": 8, "batches": 50}}
        data = {"kind": "tokens", "path": str(place / f"{name}-data"), "seq_len": 128 if name == "chat" else 48}
        train(make_config({"fsdp": 8}, data=data, objective={"kind": "reward"}, **own, **common))
    answers = [{"prompt": one["prompt"], "completion": one["chosen"]} for one in map(pair, range(60))]
    dataset(place, "conversations", answers, "answers", template="plain")
    data = {"kind": "tokens", "path": str(place / "answers"), "seq_len": 48}
    own = {"out": str(place / "base"), "checkpoint": {"every": 40}, "objective": {"kind": "sft"}}
    train(make_config({"fsdp": 8}, data=data, **own, **common | {"steps": 40}))
    write_records(place / "prompts.jsonl", [{"prompt": word, "n": i} for i, word in enumerate(WORDS[:5])])
    return place


@pytest.fixture
def reward(place, tmp_path, jaxscale_here):
    def call(*arguments, run="rm", file="held.jsonl"):
        return jaxscale_here("reward", place / run, place / file, "-o", tmp_path / "out.jsonl", *arguments)

    return call


@pytest.fixture
def rollout(place, tmp_path, jaxscale_here):
    def call(*arguments, run="base", reward="rm"):
        words = ["--prompts", place / "prompts.jsonl", "-o", tmp_path / "out.jsonl", "--max-new-tokens", 12]
        return jaxscale_here("rollout", place / run, *words, "--reward", place / reward, *arguments)

    return call


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- reward -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["rm", "chat"])
def test_pairs_are_scored_as_the_runs_own_evaluation_scores_them(reward, place, tmp_path, run):
    """That one packs several pairs in a row; here each text has its own."""
    done = reward("--json", run=run)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    own = [r for r in read_records(place / run / "metrics.jsonl") if r["kind"] == "validation"][-1]
    assert own["pairs"] == summary["pairs"] == 24
    assert summary["accuracy"] == own["accuracy"]
    for ours, theirs in (("margin", "margin"), ("chosen", "chosen_score"), ("rejected", "rejected_score")):
        assert summary[ours] == pytest.approx(own[theirs], abs=2e-5), ours
    found = read(tmp_path / "out.jsonl")
    columns = ("chosen_score", "rejected_score")
    assert [{k: v for k, v in one.items() if k not in columns} for one in found] == read(place / "held.jsonl")
    margins = [one["chosen_score"] - one["rejected_score"] for one in found]
    assert summary["margin"] == pytest.approx(np.mean(margins))
    assert summary["accuracy"] == np.mean(np.array(margins) > 0)
    every = [one[name] for one in found for name in columns]
    assert (summary["mean"], summary["std"]) == pytest.approx((np.mean(every), np.std(every)))
    assert summary["texts"] == 48


def test_a_score_depends_on_its_text_alone(reward, place, tmp_path):
    """Not on the mesh, on the rows scored at one time, on microbatches, or on the form of the record."""
    reward()
    pairs = read(tmp_path / "out.jsonl")
    wanted = [one["chosen_score"] for one in pairs]
    texts = [{"prompt": one["prompt"], "completion": one["chosen"]} for one in pairs]
    write_records(place / "texts.jsonl", texts)
    messages = [
        {"prompt": [{"role": "user", "content": t["prompt"]}],
         "completion": [{"role": "assistant", "content": t["completion"]}]} for t in texts
    ]  # fmt: skip
    write_records(place / "messages.jsonl", messages)
    for file, arguments in {
        "texts.jsonl": ["mesh={data: 1}", "runtime.simulated_devices=1"],
        "messages.jsonl": ["data.batch_size=3"],
        "held.jsonl": ["mesh={data: 2, fsdp: 2, tensor: 2}", "step.microbatches=2", "data.batch_size=6"],
    }.items():
        done = reward(*arguments, file=file)
        assert done.returncode == 0, done.stderr
        found = read(tmp_path / "out.jsonl")
        scores = [one.get("score", one.get("chosen_score")) for one in found]
        assert scores == pytest.approx(wanted, abs=2e-5), file
    assert "24 pairs: accuracy" in done.stdout


REFUSED = [
    ([], {"run": "base"}, "base predicts tokens and scores no texts; name a run of objective.kind=reward"),
    ([], {"run": "text"}, "text is not a run: it has no config.yaml"),
    ([], {"file": "nowhere.jsonl"}, "nowhere.jsonl is no file; give JSONL with"),
    (["data.seq_len=8"], {}, "48 texts of {place}/held.jsonl are longer than data.seq_len 8 tokens, the longest "),
    (["--step", 3], {}, "has no checkpoint of step 3; it has [8]"),
    (["-o", "{place}/held.jsonl"], {}, "is the file that is read; give another one"),
    (["-o", "no/where/out.jsonl"], {}, "cannot write no/where/out.jsonl"),
    (["model.num_layers=3"], {}, "the model is not the checkpoint's: model.num_layers: 2 -> 3"),
    (["mesh={replica: 2, fsdp: 4}", "outer.every=4"], {}, "mesh.replica: texts are scored by one model"),
]


@pytest.mark.parametrize(("arguments", "how", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_cannot_be_scored_is_refused_in_one_line_and_nothing_is_written(
    reward, place, tmp_path, arguments, how, message
):
    before = (place / "held.jsonl").read_bytes()
    done = reward(*[str(word).format(place=place) if "{place}" in str(word) else word for word in arguments], **how)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert message.format(place=place) in done.stderr
    assert not any(tmp_path.iterdir())
    assert (place / "held.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", "line 2: it is no object"),
        ('{"prompt": "a"}', "line 2: a record of pairs has chosen and rejected"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "line 2: chosen equals rejected"),
        (
            '{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_score": 1}',
            "line 2: the column chosen_score is taken",
        ),
    ],
)
def test_a_damaged_record_is_named(reward, tmp_path, place, line, message):
    (place / "damaged.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' + line)
    done = reward(file="damaged.jsonl")
    assert done.returncode == 2
    assert message in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "{rm}", "--prompt", "a"],
        ["evaluate", "{rm}"],
        ["evaluate", "{rm}", "--data", "{text}"],
        ["evaluate", "{rm}", "--tasks", "copy"],
        ["export", "{rm}", "{out}"],
        ["rollout", "{rm}", "--prompts", "{prompts}", "-o", "{out}"],
    ],
    ids=lambda words: " ".join(words[::2]),
)
def test_a_reward_model_predicts_no_tokens(jaxscale_here, place, tmp_path, words):
    names = {"rm": place / "rm", "text": place / "text", "prompts": place / "prompts.jsonl", "out": tmp_path / "out"}
    done = jaxscale_here(*[word.format(**names) for word in words])
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {place / 'rm'} is a reward model, ")
    assert done.stderr.count("\n") == 1
    assert "`jaxscale reward" in done.stderr
    assert not any(tmp_path.iterdir())


# --- rollout --reward RUN ---------------------------------------------------------------------------------------


def scores_of(reward, place, tmp_path, texts):
    """What `jaxscale reward` says of {"prompt", "completion"}."""
    write_records(place / "again.jsonl", texts)
    done = reward("-o", tmp_path / "again.jsonl", file="again.jsonl")
    assert done.returncode == 0, done.stderr
    return [one["score"] for one in read(tmp_path / "again.jsonl")]


def test_samples_are_rewarded_by_a_run(rollout, reward, place, tmp_path):
    """Where a sample ended by itself, its reward is the score of its text; `--best` and `--pairs` go by it."""
    best, pairs = tmp_path / "best.jsonl", tmp_path / "pairs.jsonl"
    done = rollout("-n", 8, "--rows", 5, "--temperature", 0.7, "--best", best, "--pairs", pairs, "--json")
    assert done.returncode == 0, done.stderr
    assert f"rewards by step 8 of {place / 'rm'}" in done.stderr
    assert "code of yours" not in done.stderr
    found = read(tmp_path / "out.jsonl")
    every = [(one["prompt"], sample) for one in found for sample in one["samples"]]
    assert all(math.isfinite(sample["reward"]) for _, sample in every)
    whole = [(prompt, s) for prompt, s in every if s["stopped"] and s["text"].strip() and "\ufffd" not in s["text"]]
    assert len(whole) >= 4, "nearly no sample ended: train the model of this test further"
    texts = [{"prompt": prompt, "completion": sample["text"]} for prompt, sample in whole]
    wanted = scores_of(reward, place, tmp_path, texts)
    assert [sample["reward"] for _, sample in whole] == pytest.approx(wanted, abs=2e-5)
    ranked = [sorted((s for s in one["samples"] if s["text"].strip()), key=lambda s: s["reward"]) for one in found]
    for one, top, samples in zip(found, read(best), ranked, strict=True):
        assert top == {"prompt": one["prompt"], "completion": samples[-1]["text"]}
    assert {p["prompt"]: p["rejected"] for p in read(pairs)} == {
        one["prompt"]: samples[0]["text"] for one, samples in zip(found, ranked, strict=True)
    }
    summary = json.loads(done.stdout)
    assert summary["reward"] == pytest.approx(np.mean([sample["reward"] for _, sample in every]))
    assert summary["no_reward"] == 0


ROLLOUTS = [
    ([], "base", "base predicts tokens and scores no texts"),
    ([], "nowhere", "nowhere is not module:function, file.py:function or the directory of a reward model's run"),
    (
        [],
        "chat",
        "reads prompts by the template chatml of its pairs, and they are sampled from in another way; give --chat",
    ),
    (["--max-new-tokens", 60], "rm", "makes up to 65 tokens, and --reward {place}/rm reads 48 (its data.seq_len)"),
]


@pytest.mark.parametrize(("arguments", "by", "message"), ROLLOUTS, ids=lambda x: str(x)[:40])
def test_a_run_that_cannot_reward_is_refused_before_anything_is_sampled(
    rollout, place, tmp_path, arguments, by, message
):
    done = rollout(*arguments, reward=by)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert message.format(place=place) in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMED)
def test_a_sample_with_the_templates_tail_is_the_text_of_a_pair(name):
    """Also after a run has kept the template and read it again."""
    codec = ByteTokenizer()
    made = make_template(name, codec, None, where="byte")
    kept = kept_template(Chat(made.chat.config, made.chat.generation, name), codec, where="a run")
    assert (kept.stop_ids, kept.apart, kept.spelled) == (made.stop_ids, made.apart, made.spelled)
    pairs = to_example("pairs", {"prompt": "one", "chosen": "two", "rejected": "three"}, "1", "line 1")
    prompt = to_example("prompts", {"prompt": "one"}, "1", "line 1")
    (chosen, _), (begun,) = encode_examples(kept, [pairs, prompt])
    if not kept.apart:
        begun = codec.encode_rendered_batch([kept.renderer(prompt.prompt)])[0]
    else:
        begun = begun.ids
    rest = chosen.ids[len(begun) :].tolist()
    assert chosen.ids[: len(begun)].tolist() == begun.tolist()
    tail = tail_of(kept)
    assert tail == ([10] if name in ("chatml", "qwen3") else [])
    sample = rest[: len(rest) - len(tail)]
    assert rest == sample + tail
    assert sample[-1] == BYTE_SEPARATOR_ID


def of_samples(place, out, by):
    dataset(place, "prompts", read(place / "prompts.jsonl"), "prompts", template="plain", validation_fraction=0.2)
    data = {"kind": "tokens", "path": str(place / "prompts"), "seq_len": 48}
    objective = {"kind": "grpo", "group": 4, "max_new": 8, "reward": str(place / by), "judge": str(place / "rm")}
    return make_config({"fsdp": 8}, data=data, objective=objective, steps=1, out=out, model=MODEL, runtime=RUNTIME)


def test_samples_in_training_are_scored_by_the_same_program(place, tmp_path):
    train(of_samples(place, str(tmp_path / "run"), "rm"))
    one = next(r for r in read_records(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "rollout")
    assert one["no_reward"] == 0
    assert math.isfinite(one["reward"])
    assert one["judge"] == pytest.approx(one["reward"])


def test_a_reward_of_another_template_is_refused_in_training(place, tmp_path):
    with pytest.raises(ValueError, match=r"chat was trained on pairs of the template chatml, and the prompts have ano"):
        train(of_samples(place, str(tmp_path / "run"), "chat"))


@pytest.mark.slow
def test_two_processes_score_as_one(place, reward, rollout, tmp_path):
    reward()
    wanted = [read(tmp_path / "out.jsonl")]
    rollout("-n", 2)
    wanted.append(read(tmp_path / "out.jsonl"))
    verbs = (
        ["reward", place / "rm", place / "held.jsonl"],
        ["rollout", place / "base", "--prompts", place / "prompts.jsonl", "-n", "2", "--max-new-tokens", "12",
         "--reward", place / "rm"],
    )  # fmt: skip
    for words, one in zip(verbs, wanted, strict=True):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        both = tmp_path / "both.jsonl"
        names = {"JAXSCALE_COORDINATOR": f"127.0.0.1:{port}", "JAXSCALE_PROCESSES": "2"}
        command = [sys.executable, "-m", "jaxscale.cli", *map(str, words), "-o", str(both)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        team = [
            subprocess.Popen(command, env=os.environ | names | {"JAXSCALE_PROCESS_ID": str(i)}, **pipes) for i in (0, 1)
        ]
        said = [process.communicate(timeout=300) for process in team]
        assert [process.returncode for process in team] == [0, 0], said
        assert ["mean" in out for out, _ in said] == [True, False]
        assert numbers(read(both)) == pytest.approx(numbers(one), abs=2e-5)


def numbers(records):
    """Every score and reward of what a verb wrote."""
    pairs = [one[name] for one in records for name in ("chosen_score", "rejected_score") if name in one]
    return pairs or [sample["reward"] for one in records for sample in one["samples"]]
