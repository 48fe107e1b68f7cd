"""`jaxscale rollout`: samples of a run with rewards, what can be trained on them, and what is refused."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import make_config

import jaxscale
from jaxscale.data.prepare import prepare
from jaxscale.data.sources import text_source
from jaxscale.training.trainer import train

MODEL = {"vocab_size": 257, "num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 64}
REWARDS = """
import time


def vowels(prompts, completions, *, factor, **columns):
    return [None if f is None else f * sum(x in "aeiou" for x in c) for c, f in zip(completions, factor)]


def hangs(prompts, completions, **columns):
    time.sleep(1000)


def raises(prompts, completions, **columns):
    raise KeyError("no")


def same(prompts, completions, **columns):
    return [1.0] * len(prompts)
"""
RECORDS = [
    {"prompt": "the ship", "factor": 1},
    {"prompt": "the w", "factor": 2, "note": "\ud800"},
    {"prompt": "", "factor": None},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("rollout")
    (place / "text.txt").write_text("the ship and the wind and the tide\n" * 30)
    prepare(text_source([place / "text.txt"]), "byte", place / "data", validation_tail=0.3)
    runtime = {"platform": "cpu", "simulated_devices": 8}
    data = {"kind": "tokens", "path": str(place / "data"), "seq_len": 32}
    saved = {"out": str(place / "run"), "checkpoint": {"every": 4}}
    train(make_config({"fsdp": 8}, model=MODEL, steps=4, data=data, runtime=runtime, **saved))
    (place / "rewards.py").write_text(REWARDS)
    (place / "prompts.jsonl").write_text("\n\n".join(map(json.dumps, RECORDS)))
    return place


@pytest.fixture
def rollout(place, tmp_path, jaxscale_here):
    def call(*arguments, reward="vowels"):
        words = ["--prompts", place / "prompts.jsonl", "-o", tmp_path / "out.jsonl", "--max-new-tokens", 12]
        by = ["--reward", f"{place / 'rewards.py'}:{reward}"] if reward else []
        return jaxscale_here("rollout", place / "run", *words, *by, *arguments)

    return call


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_samples_rewards_best_and_pairs(rollout, tmp_path, place):
    done = rollout("-n", 4, "--best", tmp_path / "best.jsonl", "--pairs", tmp_path / "pairs.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    found, best, pairs = (read(tmp_path / f"{name}.jsonl") for name in ("out", "best", "pairs"))
    assert [{k: v for k, v in one.items() if k != "samples"} for one in found] == RECORDS
    for one, factor in zip(found, (1, 2, None), strict=True):
        assert len(one["samples"]) == 4
        for sample in one["samples"]:
            vowels = sum(x in "aeiou" for x in sample["text"])
            assert sample["reward"] == (None if factor is None else factor * vowels)
            assert 1 <= sample["tokens"] <= 12
            assert sample["log_prob"] < 0
            assert sample["stopped"] or sample["tokens"] == 12
    ranked = [sorted(one["samples"], key=lambda x: x["reward"]) for one in found[:2]]
    tops = [own[-1]["reward"] for own in ranked]
    assert [one["prompt"] for one in best] == ["the ship", "the w"]
    for one, top, own in zip(best, tops, found, strict=False):
        assert one["completion"] in [x["text"] for x in own["samples"] if x["reward"] == top]
    assert [p["prompt"] for p in pairs] == [r["prompt"] for r, own in zip(RECORDS, ranked, strict=False)
                                            if own[0]["reward"] < own[-1]["reward"]]  # fmt: skip
    assert all(set(p) == {"prompt", "chosen", "rejected"} for p in pairs)
    summary = json.loads(done.stdout)
    given = [x["reward"] for own in ranked for x in own]
    assert summary["reward"] == pytest.approx(sum(given) / 8)
    assert summary["best_of"]["4"] == pytest.approx(sum(tops) / 2)
    assert summary["best_of"]["1"] == pytest.approx(summary["reward"])
    assert (summary["no_reward"], summary["prompts"], summary["samples"]) == (4, 3, 4)
    assert "code of yours" in done.stderr
    assert "no reward for 4 samples (4 of them: NaN, infinite or no number)" in done.stderr


def test_a_sample_depends_on_its_numbers_alone(rollout, tmp_path, place):
    """Not on the mesh, on how many are made at one time, or on how many there are."""
    texts = {}
    for name, arguments in {
        "mesh": ["-n", 3],
        "one": ["-n", 3, "mesh={data: 1}", "runtime.simulated_devices=1"],
        "few": ["-n", 2, "--rows", 2],
        "seed": ["-n", 3, "--seed", 5],
    }.items():
        done = rollout(*arguments, reward=None)
        assert done.returncode == 0, done.stderr
        texts[name] = [[x["text"] for x in one["samples"]] for one in read(tmp_path / "out.jsonl")]
    assert texts["mesh"] == texts["one"]
    assert texts["few"] == [own[:2] for own in texts["mesh"]]
    assert texts["seed"] != texts["mesh"]
    assert "tokens a sample" in done.stdout
    assert "reward" not in done.stdout


def test_greedy_is_what_generate_writes(rollout, tmp_path, place):
    rollout("--temperature", 0, reward=None)
    loaded = jaxscale.load(place / "run")
    wanted = jaxscale.generate(loaded, [r["prompt"] for r in RECORDS], max_new_tokens=12, temperature=0)
    assert [one["samples"][0]["text"] for one in read(tmp_path / "out.jsonl")] == wanted


CAUSES = [("raises", "KeyError: 'no'"), ("hangs", "no answer within 1 s")]


@pytest.mark.parametrize(("reward", "cause"), CAUSES)
def test_without_any_reward_the_samples_are_kept(rollout, tmp_path, place, reward, cause):
    (place / "plain.jsonl").write_text('{"prompt": "a"}\n')
    more = ["--prompts", place / "plain.jsonl", "--timeout", 1, "--pairs", tmp_path / "pairs.jsonl", "-n", 2]
    done = rollout(*more, reward=reward)
    assert done.returncode == 0, done.stderr
    assert f"no reward for 2 samples (2 of them: {cause})" in done.stderr
    assert "no sample has a reward" in done.stdout
    assert [x["reward"] for x in read(tmp_path / "out.jsonl")[0]["samples"]] == [None, None]
    assert not (tmp_path / "pairs.jsonl").read_text()


def test_equal_rewards_make_no_pairs(rollout, tmp_path):
    done = rollout("-n", 2, "--pairs", tmp_path / "pairs.jsonl", reward="same")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "pairs.jsonl").read_text()


REFUSED = [
    (["--prompts", "nowhere.jsonl"], None, "--prompts nowhere.jsonl is no file"),
    (["--best", "best.jsonl"], None, "--best needs rewards; give --reward module:function or a run"),
    (["--pairs", "pairs.jsonl"], "same", "--pairs needs two samples of each prompt; give -n 2 or more"),
    (["-n", "0"], None, "-n 0 must be at least 1"),
    (["--rows", "0"], None, "--rows 0 must be at least 1"),
    (["-o", "no/where/out.jsonl"], None, "cannot write no/where/out.jsonl"),
    ([], "nothing", "has no function nothing"),
    (["--temperature", "-1"], None, "temperature=-1.0 is no number"),
    (["--timeout", "0"], "same", "--timeout 0.0 must be a number of seconds above 0"),
    (["--best", "{out}"], "same", "are one file twice"),
]


@pytest.mark.parametrize(("arguments", "reward", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_cannot_be_is_refused_and_nothing_written(rollout, tmp_path, arguments, reward, message):
    done = rollout(*[a.format(out=tmp_path / "out.jsonl") for a in arguments], reward=reward)
    assert done.returncode == 2
    assert message in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON"),
        ("[1]", 'line 2: it is no object; give {"prompt": "..."}'),
        ('{"prompt": 3}', 'line 2: it has no text "prompt"'),
        ('{"prompt": "a", "samples": 1}', "line 2: the column samples is taken"),
    ],
)
def test_a_damaged_prompt_is_named(rollout, tmp_path, place, line, message):
    (place / "damaged.jsonl").write_text('{"prompt": "a"}\n' + line)
    done = rollout("--prompts", place / "damaged.jsonl", reward=None)
    assert done.returncode == 2
    assert message in done.stderr


def start(place, out, *arguments, **env):
    words = ["rollout", str(place / "run"), "--prompts", str(place / "prompts.jsonl"), "-o", str(out), *arguments]
    command = [sys.executable, "-m", "jaxscale.cli", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | env)


def test_ctrl_c_ends_at_once_and_writes_nothing(place, tmp_path):
    """While devices compute: millions of tokens would take minutes."""
    process = start(place, tmp_path / "out.jsonl", "--max-new-tokens", "100000", "-n", "16")
    cpu = 0.0
    while cpu < 12 and process.poll() is None:  # seconds: it compiles or samples now
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        time.sleep(0.1)
    assert process.poll() is None
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert time.monotonic() - begun < 10
    assert said.splitlines()[-1] == "error: stopped"
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_sample_as_one(place, rollout, tmp_path):
    rollout("-n", 2, reward=None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = tmp_path / "both.jsonl"
    names = {"JAXSCALE_COORDINATOR": f"127.0.0.1:{port}", "JAXSCALE_PROCESSES": "2"}
    words = ["-n", "2", "--max-new-tokens", "12"]
    team = [start(place, both, *words, **names, JAXSCALE_PROCESS_ID=str(i)) for i in (0, 1)]
    said = [process.communicate(timeout=300) for process in team]
    assert [process.returncode for process in team] == [0, 0], said
    assert ["3 prompts" in out for out, _ in said] == [True, False]
    texts = [[[x["text"] for x in one["samples"]] for one in read(p)] for p in (both, tmp_path / "out.jsonl")]
    assert texts[0] == texts[1]
