"""A run that trains on samples, beside other features: whose code runs, what goes together, and what is refused."""

import subprocess
import sys

import pytest
from made_examples import dataset, records_of, write_records
from support import make_config

from jaxscale.config import dump_config
from jaxscale.console.train import first_use
from jaxscale.data.prepare import prepare
from jaxscale.data.sources import text_source
from jaxscale.files.jsonl import read_records
from jaxscale.training.trainer import train

MODEL = {"vocab_size": 257, "num_layers": 1, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 64}
REWARD = """
open({marker!r}, "a").write("imported")


def letters(prompts, completions, **columns):
    return [float(sum(x.isalpha() for x in c)) for c in completions]
"""
GRPO = {"kind": "grpo", "group": 4, "max_new": 6, "reward": "a:b"}


def configured(place, **sections):
    data = {"kind": "tokens", "path": str(place / "prompts"), "seq_len": 48}
    own = GRPO | {"reward": f"{place / 'reward.py'}:letters"}
    values = {"model": MODEL, "data": data, "objective": own, "steps": 2, "checkpoint": {"every": 2}}
    return make_config({"fsdp": 8}, **values | {"runtime": {"platform": "cpu", "simulated_devices": 8}} | sections)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("samples")
    (place / "text.txt").write_text("the ship and the wind and the tide\n" * 30)
    prepare(text_source([place / "text.txt"]), "byte", place / "text", validation_tail=0.3)
    dataset(place, "prompts", records_of("prompts", 20), "prompts", template="plain")
    (place / "reward.py").write_text(REWARD.format(marker=str(place / "marker")))
    train(configured(place, out=str(place / "run")))
    return place


def losses(run):
    """And the gradients' norms: of the first step of samples the loss alone is 0."""
    found = [(r["loss"], r["grad_norm"]) for r in read_records(run / "metrics.jsonl") if r["kind"] == "train"]
    assert found
    assert all(norm > 0 for _, norm in found)
    return found


VERBS = [
    ["generate", "{run}", "--prompt", "a", "--max-new-tokens", "2"],
    ["evaluate", "{run}", "--data", "{text}"],
    ["export", "{run}", "{out}"],
    ["report", "{run}", "-o", "{out}"],
    ["rollout", "{run}", "--prompts", "{prompts}", "-o", "{out}", "--max-new-tokens", "2"],
    ["show", "{run}/config.yaml"],
]


@pytest.mark.parametrize("words", VERBS, ids=lambda words: words[0])
def test_only_train_runs_the_reward_that_a_runs_config_names(jaxscale_here, place, tmp_path, words):
    marker = place / "marker"
    assert marker.is_file() or words != VERBS[0], "train did not import the reward, so this shows nothing"
    marker.unlink(missing_ok=True)
    prompts = write_records(tmp_path / "prompts.jsonl", [{"prompt": "a"}])
    names = {"run": place / "run", "text": place / "text", "prompts": prompts, "out": tmp_path / "out"}
    done = jaxscale_here(*[word.format(**names) for word in words])
    assert done.returncode == 0, done.stderr
    assert not marker.exists()


def test_a_step_of_samples_is_recomputed_to_the_same_loss(place, tmp_path):
    train(configured(place, out=str(tmp_path / "run"), guard={"recompute_every": 1}))
    assert losses(tmp_path / "run") == losses(place / "run")
    records = read_records(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "recomputed"] == [1, 2]


SAVE_AND_TRAIN = """
import sys
from pathlib import Path
import jax
from jaxscale.compiled.aot import compile_on
from jaxscale.config import load_config
from jaxscale.parallel.mesh import start_devices
from jaxscale.predict.costs import packs_documents
from jaxscale.training.executable import save_executable
from jaxscale.training.trainer import train
config = load_config(sys.argv[1])
devices = start_devices(config.runtime)
file = Path(sys.argv[2])
if file.is_file():
    train(config, executable=file)
else:
    built = compile_on(config, devices, documents=packs_documents(config))
    save_executable(file, built.executable, config, devices)
    train(config)
"""


@pytest.mark.slow
def test_a_step_of_samples_starts_from_an_executable(place, tmp_path, monkeypatch):
    """One process writes the file and trains without it, another one trains from the file."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # as in conftest.py
    for name in ("plain", "from-file"):
        (tmp_path / f"{name}.yaml").write_text(dump_config(configured(place, out=str(tmp_path / name))))
        command = [sys.executable, "-c", SAVE_AND_TRAIN, tmp_path / f"{name}.yaml", tmp_path / "step.bin"]
        subprocess.run(command, check=True, timeout=300)
    assert losses(tmp_path / "plain") == losses(tmp_path / "from-file")


REFUSED_WITH_REPLICAS = [GRPO, GRPO | {"kind": "raft"}, {"kind": "dpo"}]


@pytest.mark.parametrize("mesh", [{"replica": 2}, {"dcn": {"replica": 2}}], ids=str)
@pytest.mark.parametrize("objective", REFUSED_WITH_REPLICAS, ids=lambda own: own["kind"])
def test_replicas_with_samples_or_a_reference_are_refused(mesh, objective):
    message = f"objective[.]kind={objective['kind']} is not supported with 2 replicas; set mesh[.]replica=1$"
    with pytest.raises(ValueError, match=message) as error:
        make_config(mesh, objective=objective, init={"from": "runs/base"}, outer={"every": 4}, evaluation={"every": 4})
    assert "\n" not in str(error.value)


def test_replicas_go_with_pairs_that_need_no_reference():
    objective = {"kind": "dpo", "loss": "simpo"}
    config = make_config({"replica": 2}, objective=objective, outer={"every": 4}, evaluation={"every": 4})
    assert config.mesh.replicas == 2


def test_what_is_advised_after_training_goes_with_the_data(place):
    run = place / "run"
    assert first_use(configured(place), run) == f'generate {run} --chat --prompt "..."'
    text = {"data": {"kind": "tokens", "path": str(place / "text")}, "objective": {}}
    assert first_use(configured(place, **text), run) == f'generate {run} --prompt "class "'
    assert first_use(make_config(), run) == f'generate {run} --prompt "class "'
    scored = configured(place, **text | {"objective": {"kind": "reward"}})
    assert first_use(scored, run) == f"reward {run} FILE.jsonl -o scores.jsonl"
