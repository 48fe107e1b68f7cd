"""What the trainer writes is what the report reads: a real run that is cut off, goes on, and is reported."""

import json
import shutil

import pytest
from support import make_config

from jaxscale import config as cfg
from jaxscale.cli.app import app
from jaxscale.files.jsonl import read_records
from jaxscale.report.goodput import OF_SAMPLES, PARTS, goodput
from jaxscale.report.inputs import read_inputs
from jaxscale.report.page import make_page
from jaxscale.training.trainer import train

pytestmark = pytest.mark.slow


def run_config(stdlib, out, steps):
    return make_config(
        {"data": 2},
        steps=steps,
        out=str(out),
        model={"vocab_size": 257, "num_layers": 1, "embed_dim": 32, "num_heads": 2, "mlp_dim": 64},
        data={"kind": "tokens", "path": str(stdlib), "batch_size": 4, "seq_len": 32},
        runtime={"platform": "cpu", "simulated_devices": 2, "compilation_cache": None},
        checkpoint={"every": 2},
        evaluation={"batches": 1},
        metrics={"tensorboard": False},
    )


@pytest.fixture(scope="module")
def resumed(stdlib, tmp_path_factory):
    """Five steps whose last checkpoint was not finished when the machine was lost, then seven in all."""
    out = tmp_path_factory.mktemp("resumed") / "run"
    train(run_config(stdlib, out, 5))
    shutil.rmtree(out / "checkpoints" / "5")
    lines = (out / "events.jsonl").read_text().splitlines()
    (out / "events.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20] + "\n")
    train(run_config(stdlib, out, 7))
    return make_page(read_inputs([out]))


def test_goodput_of_a_real_run(resumed):
    plot = next(p for p in resumed.plots if p.id == "goodput")
    spent = dict(zip(plot.series[0].labels, plot.series[0].columns["seconds"], strict=True))
    assert tuple(spent) == tuple(part for part in PARTS if part not in OF_SAMPLES)
    for part in ("steps that counted", "lost steps", "compile", "init", "evaluation", "checkpoint blocking", "restart"):
        assert spent[part] > 0, part
    assert "7 of them, 1 lost and done again, 2 attempts" in plot.about[0]


def test_figures_of_a_real_run(resumed):
    plots = {p.id: p for p in resumed.plots}
    training = plots["loss"].series[0].columns
    assert training["step"] == [1, 2, 3, 4, 5, 6, 7], "the lost step has one record"
    assert training["tokens"] == [128 * n for n in range(1, 8)]
    assert training["seconds"] == sorted(training["seconds"])
    assert {"throughput", "mfu", "optimization"} <= plots.keys()
    assert "peak: best " in plots["mfu"].about[0]
    assert "matmul measured in this process" in resumed.sources[0].facts["MFU peak"]
    table = resumed.sections[0].tables[0]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["validation loss"].value == pytest.approx(row["training loss"].value, abs=1.0)
    assert row["device"] == "2 x cpu"


@pytest.fixture(scope="module")
def sampled(stdlib, tmp_path_factory):
    """Six steps of three rounds of samples, held to the model of a run of one step."""
    folder = tmp_path_factory.mktemp("sampled")
    lines = [json.dumps({"prompt": f"{n:03d}>", "answer": str(n)}) for n in range(100)]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    reward = "def length(prompts, completions, answer):\n    return [len(c) / 4 for c in completions]\n"
    (folder / "rewards.py").write_text(reward)
    prepare = ["data", "prepare", "--prompts", str(folder / "prompts.jsonl"), "--template", "plain"]
    options = ["--tokenizer", "byte", "--validation-fraction", "0.1", "--out", str(folder / "data")]
    assert not app([*prepare, *options], standalone_mode=False)
    train(run_config(stdlib, folder / "base", 1))
    values = run_config(stdlib, folder / "run", 6).model_dump(mode="json")
    values["init"] = {"from": str(folder / "base")}
    values["data"] |= {"path": str(folder / "data"), "batch_size": 8, "seq_len": 16}
    reward = f"{folder / 'rewards.py'}:length"
    values["objective"] = {"kind": "grpo", "group": 4, "max_new": 4, "updates": 2, "kl": 0.1, "reward": reward}
    values["evaluation"] |= {"every": 3}
    train(cfg.validate(values, source="test"))
    return folder / "run"


def test_goodput_of_a_real_run_that_samples(sampled):
    """Every part adds up to the wall time, and the making of samples counts as work."""
    events = read_records(sampled / "events.jsonl")
    found = goodput(events)
    assert sum(found.seconds.values()) == pytest.approx(found.wall_seconds)
    assert found.steps_counted == 6
    spans = {name: [e["time"] * (1 if e["phase"] == "end" else -1) for e in events if e["event"] == name]
             for name in ("rollout", "reward", "reference")}  # fmt: skip
    assert [len(times) for times in spans.values()] == [6, 6, 6], "three rounds"
    for part, times in zip(OF_SAMPLES, spans.values(), strict=True):
        assert found.seconds[part] == pytest.approx(sum(times), abs=1e-3)
        assert found.seconds[part] > 0
    assert found.share > found.seconds["steps that counted"] / found.wall_seconds


def test_a_step_before_a_round_has_its_own_seconds(sampled):
    """Sampling waits for the step before it; neither is told as the other's."""
    events = read_records(sampled / "events.jsonl")
    order = [e["event"] for e in events if e["event"] in ("rollout", "step")]
    assert order == ["rollout", "rollout", "step", "step"] * 3
    steps = [r for r in read_records(sampled / "metrics.jsonl") if r["kind"] == "train"]
    assert all(r["step_seconds"] > 1e-4 for r in steps)
    assert all(steps[i]["data_wait_seconds"] > steps[i + 1]["data_wait_seconds"] for i in (0, 2, 4))


def test_the_page_of_a_real_run_that_samples(sampled):
    page = make_page(read_inputs([sampled]))
    plots = {p.id: p for p in page.plots}
    assert {"rewards", "reward-kl", "rounds", "step-seconds"} <= plots.keys()
    assert plots["rewards"].series[0].columns["step"] == [1, 3, 5]
    assert [axis.unit for axis in plots["loss"].y] == ["a step"]
    labels = [axis.label for axis in plots["optimization"].y]
    assert not [label for label in labels if "_" in label]
    assert "on steps that counted and their samples" in plots["goodput"].about[0]
    assert plots["goodput"].series[0].labels == list(PARTS)
