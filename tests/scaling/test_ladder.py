"""Ladders: what a file says, what each rung becomes, what is refused, and what a run of one leaves."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from jaxscale import config as cfg
from jaxscale.hardware.stated import read_topology
from jaxscale.predict.costs import train_flops_per_token
from jaxscale.scaling.climb import result
from jaxscale.scaling.costed import costed
from jaxscale.scaling.ladder import read_ladder, rungs_of
from jaxscale.scaling.record import read_ladder_record

SIZES = [{"embed_dim": 8 * n, "num_layers": 1, "num_heads": 1, "mlp_dim": 16} for n in (1, 2, 3, 4, 5, 6)]
LADDER = {
    "name": "small",
    "config": "quickstart",
    "set": ["mesh={data: 1}", "runtime.simulated_devices=1", "data.batch_size=4", "data.seq_len=16"],
    "rungs": SIZES,
    "tokens": 768,
    "learning_rate": {"at": 64, "value": 3e-3, "power": -0.5},
    "warmup_fraction": 0.25,
    "held_out": 1,
    "law": "compute",
    "evaluations": 2,
}


def written(folder: Path, **changes) -> str:
    """A ladder's file; a key of None is left out."""
    values = {k: v for k, v in (LADDER | changes).items() if v is not None}
    path = folder / "ladder.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def test_each_rung_is_a_config_of_its_own(tmp_path):
    rungs = rungs_of(read_ladder(written(tmp_path, seeds=2)))
    assert [r.flops for r in rungs] == sorted(r.flops for r in rungs)
    assert len({r.name for r in rungs}) == len(rungs) == 12
    for rung in rungs:
        config = rung.config
        assert config.seed == rung.seed
        assert config.steps == 12 == rung.tokens / 64
        assert config.optimizer.warmup_steps == 3
        assert config.evaluation.every == 6
        assert config.optimizer.learning_rate == pytest.approx(3e-3 * (64 / config.model.embed_dim) ** 0.5, rel=1e-5)
        per_token = train_flops_per_token(config.model, config.data.seq_len)
        assert rung.flops == pytest.approx(per_token * rung.tokens, rel=1e-4)
        assert rung.parameters == round(per_token / 6)
    assert [r.held_out for r in rungs] == [False] * 10 + [True] * 2


def test_lengths_by_parameters_and_by_compute(tmp_path):
    by_size = rungs_of(read_ladder(written(tmp_path, tokens=None, tokens_per_parameter=20)))
    for rung in by_size:
        assert 20 * rung.parameters <= rung.tokens < 20 * rung.parameters + 64
    flops = rungs_of(read_ladder(written(tmp_path, tokens=None, flops=[1e8, 3e8], law="isoflop", held_out=0)))
    assert len(flops) == 12
    for rung in flops:
        wanted = 1e8 if "1e08" in rung.name else 3e8
        assert 0 <= rung.flops - wanted < 6 * rung.parameters * 64


def test_widths_follow_a_rule(tmp_path):
    widths = {
        "embed_dims": [64, 128, 192, 256, 320, 384],
        "num_layers": {"at": 64, "value": 2, "power": 0.5},
        "head_dim": 32,
    }
    common = [one for one in LADDER["set"] if "batch_size" not in one]
    batch = {"at": 64, "value": 6, "multiple_of": 4}
    changes = {"set": common, "rungs": None, "widths": widths, "batch": batch, "tokens": 2000}
    rungs = rungs_of(read_ladder(written(tmp_path, **changes)))
    assert [r.config.model.num_layers for r in rungs] == [2, 3, 3, 4, 4, 5]
    assert [r.config.model.num_heads for r in rungs] == [2, 4, 6, 8, 10, 12]
    assert {r.config.data.batch_size for r in rungs} == {8}


REFUSED = [
    ({"warmup_fraction": None}, "optimizer.warmup_steps=20 is the same for short and long rungs"),
    ({"rungs": SIZES[:4]}, "has 3 rungs to fit (of 4 runs), and law=compute needs 5 or more"),
    ({"rungs": [s | {"tokens": 700.0 * 6**3 / (i + 1) ** 3} for i, s in enumerate(SIZES)], "tokens": None},
     "is held out with"),
    ({"set": ["optimizer.learning_rate=1"]}, "set: optimizer.learning_rate is decided for each rung; remove it"),
    ({"set": ["model.embed_dim=8"]}, "set: model.embed_dim is decided for each rung"),
    ({"rungs": [*SIZES, SIZES[0]]}, "has rung d8-l1-s0 twice; remove one"),
    ({"rungs": None}, "give either rungs (sizes one by one) or widths (by a rule)"),
    ({"tokens": None}, "how long a rung trains is said by nothing; give one of tokens"),
    ({"tokens_per_parameter": 20}, "is said by tokens and tokens_per_parameter"),
    ({"learning_rat": 1}, "unknown key learning_rat; did you mean learning_rate?"),
    ({"name": "a/b"}, "name 'a/b' names a folder"),
    ({"tokens": 100}, "rung d8-l1-s0: 100 tokens are 2 steps of 64 tokens; give 10 steps or more"),
    ({"tokens": -1}, "tokens=-1"),
    ({"config": "quickstar"}, "no config quickstar"),
    ({"rungs": None, "widths": {"embed_dims": [100], "num_layers": {"at": 64, "value": 2}}},
     "widths: embed_dim 100 is not divisible by head_dim 64"),
    ({"decay_fraction": 0.2}, "decay_steps is only for schedule=wsd"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "told"), REFUSED, ids=range(len(REFUSED)))
def test_a_ladder_that_cannot_work_is_one_line(tmp_path, changes, told):
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        rungs_of(read_ladder(written(tmp_path, **changes)))
    assert "\n" not in str(error.value)


def test_files_that_are_no_ladder(tmp_path):
    (tmp_path / "text.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="it holds no keys"):
        read_ladder(str(tmp_path / "text.yaml"))
    with pytest.raises(ValueError, match=r"no ladder nothing: neither a file nor a shipped one \(.*library"):
        read_ladder("nothing")
    with pytest.raises(ValueError, match="a ladder decides steps for each rung"):
        rungs_of(read_ladder(written(tmp_path)), ["steps=5"])


@pytest.mark.parametrize("name", sorted(p.stem for p in (cfg.shipped_configs() / "ladders").glob("*.yaml")))
def test_shipped_ladders_are_planned(name):
    """Each is for a machine: its rungs are legal there, and its seconds are said."""
    machine = {"gpu": "h100:1", "emergence-gpu": "h100:1", "pod": "v5p:4x4x4"}.get(name)
    topology = read_topology(machine)[0] if machine else None
    ladder = read_ladder(name)
    found = costed(ladder, rungs_of(ladder), topology)
    assert (found.target_flops is not None) == (name == "pod")
    if topology:
        seconds = sum(c.seconds for c in found.costs)
        assert all(c.mesh for c in found.costs)
        assert 20 < seconds < {"gpu": 480, "emergence-gpu": 480, "pod": 2e5}[name]


def test_a_plan_is_printed_and_is_json(tmp_path, jaxscale_here):
    said = jaxscale_here("ladder", "plan", written(tmp_path, target={"config": "quickstart"}))
    assert "d48-l1-s0 (held out)" in said.stdout
    assert "the ladder costs" in said.stdout
    found = json.loads(jaxscale_here("ladder", "plan", written(tmp_path), "--topology", "h100:1", "--json").stdout)
    assert found["rungs"][0]["name"] == "d8-l1-s0"
    assert all(r["seconds"] > 0 for r in found["rungs"])
    assert found["flops"] == pytest.approx(sum(r["flops"] for r in found["rungs"]))


# --- running ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def climbed(tmp_path_factory, stdlib):
    """A ladder that was killed in its second rung, and then run to its end; what both said."""
    place = tmp_path_factory.mktemp("ladder")
    file = written(place, set=[*LADDER["set"], f"data.path={stdlib}", "evaluation.batches=2"])
    command = [sys.executable, "-m", "jaxscale.cli", "ladder", "run", file]
    first = subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE, text=True)
    for line in first.stderr:
        if line.startswith("2/6"):
            break
    time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    return place, command, done


def test_a_ladder_that_was_killed_goes_on(climbed):
    place, _, done = climbed
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("1/6 d8-l1-s0")
    assert "done before, loss" in lines[0]
    assert sum("done before" in line for line in lines) == 1
    record = read_ladder_record(place / "runs/ladder/small.json")
    assert [r.name for r in record.rungs] == [f"d{8 * n}-l1-s0" for n in range(1, 7)]
    for rung in record.rungs:
        metrics = [json.loads(line) for line in (place / rung.run / "metrics.jsonl").read_text().splitlines()]
        last = [m for m in metrics if m["kind"] == "validation"][-1]
        assert last["step"] == 12
        assert rung.loss == last["loss"]
        assert [t for t, _ in rung.curve] == [6 * 64, 12 * 64]
        assert rung.unique_tokens > 10_000
        assert 0 < rung.training_seconds < rung.seconds


def test_a_ladder_that_is_done_runs_nothing(climbed):
    place, command, _ = climbed
    before = (place / "runs/ladder/small.json").read_bytes()
    again = subprocess.run([*command, "--json"], cwd=place, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert again.stderr.count("done before") == 6
    assert json.loads(again.stdout) == json.loads(before)
    assert (place / "runs/ladder/small.json").read_bytes() == before


def test_a_rung_is_done_once_its_abilities_are_measured(tmp_path, monkeypatch):
    """One that was killed between its last loss and its abilities runs again."""
    monkeypatch.chdir(tmp_path)
    rung = rungs_of(read_ladder(written(tmp_path, evaluate=["copy"])))[0]
    assert result(rung) is None
    rung.config.out_dir.mkdir(parents=True)
    metrics = rung.config.out_dir / "metrics.jsonl"
    metrics.write_text('{"kind": "validation", "step": 12, "loss": 2.5}\n')
    assert result(rung) is None
    one = {"ability": "copy", "chance": 0.0, "metrics": {"exact": {"value": 0.5, "n": 4, "sharp": True}}}
    with metrics.open("a") as file:
        file.write(json.dumps({"kind": "abilities", "step": 12, "abilities": [one]}) + "\n")
    found = result(rung)
    assert (found.loss, found.abilities[0].ability) == (2.5, "copy")


def test_another_recipe_in_the_same_place_is_refused(climbed):
    place, command, _ = climbed
    before = {p: p.read_bytes() for p in (place / "runs").rglob("*.jsonl")}
    done = subprocess.run(
        [*command, "optimizer.weight_decay=0.3"], cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: runs/ladder/small/d8-l1-s0 was run with optimizer.weight_decay=0.1, and the ladder"
    )
    assert {p: p.read_bytes() for p in (place / "runs").rglob("*.jsonl")} == before


def test_ctrl_c_is_handed_on_and_the_rung_saves(tmp_path, stdlib):
    file = written(
        tmp_path, set=[*LADDER["set"], f"data.path={stdlib}"], tokens=64 * 100_000, rungs=SIZES[:5], held_out=0
    )
    command = [sys.executable, "-m", "jaxscale.cli", "ladder", "run", file]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "runs/ladder/small/d8-l1-s0/metrics.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (metrics.exists() and '"train"' in metrics.read_text()):
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said.endswith("error: stopped, state saved; the same command goes on from there\n")
    assert list((tmp_path / "runs/ladder/small/d8-l1-s0/checkpoints").iterdir())


def test_a_rung_that_fails_says_why(tmp_path):
    file = written(tmp_path, set=[*LADDER["set"], "data.path=nowhere"])
    done = subprocess.run(
        [sys.executable, "-m", "jaxscale.cli", "ladder", "run", file],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "error: rung d8-l1-s0 failed: " in done.stderr
    assert "nowhere" in done.stderr
