"""What is refused has changed nothing: no file, and no directory either."""

from pathlib import Path

import pytest
import yaml
from test_back_ends import RUN
from test_bad_input import Shell

from jaxscale.training import trainer

TRAIN = (
    "steps=1:40", "stesp=3", "mesh.data=3", "data.batch_size=6", "out=gs://bucket/run",
    "checkpoint.directory=s3://", "checkpoint.directory=ftp://a/b", "optimizer.no_decay=[norms]",
    "sharding.parameters.embd=fsdp", "sharding.activations.sequence=data", "step.attention=splash",
    "optimizer.warmup_steps=9", "data={kind: tokens, path: nowhere}", "data={kind: llmc, path: 'no/*.bin'}",
    "runtime.simulated_devices=16", "step.remat={mlp_gate: save}",
    "runtime.distributed=always",
)  # fmt: skip
COMMANDS = [
    *(["train", "run.yaml", override, *(["model.mlp=gelu"] if "mlp_gate" in override else [])] for override in TRAIN),
    ["train", "nowhere"],
    ["train", "run.yaml", "--executable", "nowhere"],
    ["train", "run.yaml", "--executable", "run.yaml"],
    ["launch", "--processes", "2", "--", "train", "run.yaml", "stesp=3"],
    ["launch", "--processes", "2", "--", "show", "run.yaml"],
    ["show", "run.yaml", "--devices", "3", "mesh.fsdp=2"],
    ["generate", "nowhere"],
    ["generate", ".", "--top-p", "7"],
    ["evaluate", "nowhere"],
    ["evaluate", ".", "--data", "run.yaml"],
    ["evaluate", "hf:nowhere", "--data", "run.yaml"],
    ["compile", "run.yaml"],
    ["compile", "run.yaml", "--topology", "v5p:3x3", "--hlo", "x.txt"],
    ["plan", "run.yaml", "--topology", "h100:8", "--budget", "much", "-o", "best.yaml"],
    ["plan", "run.yaml", "--topology", "h100:8", "--measured", "nowhere.json", "-o", "best.yaml"],
    ["explain", "run.yaml", "--mesh", "data=3,tensor=3", "-o", "x.html"],
    ["explain", "run.yaml", "--mesh", "dta=2", "-o", "x.html"],
    ["report", "nowhere", "-o", "x.html", "--png", "pictures"],
    ["data", "prepare", "--text", "nowhere", "--out", "tokens"],
    ["data", "prepare", "--text", "run.yaml", "--tokenizer", "none", "--out", "deep/tokens"],
    ["checkpoint", "list", "nowhere"],
    ["checkpoint", "verify", "nowhere"],
    ["checkpoint", "rm", "nowhere", "--keep-last", "1"],
    ["bench", "step", "run.yaml", "stesp=3"],
    ["bench", "step", "run.yaml", "stesp=3", "--profile", "profile", "-o", "records"],
    ["bench", "step", "nowhere"],
    ["bench", "matmul", "--shape", "axb"],
    ["bench", "matmul", "--dtype", "float17"],
    ["bench", "collectives", "--mesh", "dta=2"],
    ["bench", "attention", "--dtype", "int8"],
    ["bench", "loader", "run.yaml", "stesp=3"],
    ["bench", "checkpoint", "run.yaml", "stesp=3"],
    ["bench", "startup", "run.yaml", "stesp=3"],
    ["bench", "sweep", "nowhere"],
    ["bench", "sweep", "run.yaml"],
    ["bench", "compare", "a.json", "b.json"],
    ["puzzle", "get", "nowhere"],
    ["puzzle", "check", "nowhere.py"],
]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer, "find_peak", lambda devices, dtype: None)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_what_is_refused_has_changed_nothing(place, capfd, monkeypatch, command):
    before = sorted(place.rglob("*"))
    message = Shell(capfd, monkeypatch).refused(*command)
    assert sorted(place.rglob("*")) == before, message
    assert (place / "run.yaml").read_text() == yaml.safe_dump(RUN)
