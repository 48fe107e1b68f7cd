"""`jaxscale data ...` as a person types it, and a run on what it made."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from jaxscale import cli
from jaxscale.config import load_config
from jaxscale.files.jsonl import read_records


@pytest.fixture
def run(capfd, monkeypatch):
    """`jaxscale ...` in this process: its stdout, or with `code` its stderr."""

    def call(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["jaxscale", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capfd.readouterr()
        assert (exit.value.code or 0) == code, err
        return err if code else out

    return call


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Twelve documents of one length in a folder with another file, beside it two more."""
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    with open("texts/a.jsonl", "w") as file:
        for i in range(12):
            file.write(json.dumps({"text": f"def f{i}(x):\n    return x + {i}\n" * 60}) + "\n")
    Path("texts/notes.md").write_text("x")
    for name in "uv":
        Path(f"{name}.txt").write_text(f"line of {name}\n" * 300)
    return tmp_path


def test_prepare_ends_with_what_comes_next(run, corpus):
    prepare = ["data", "prepare", "--jsonl", "texts", "--tokenizer", "bpe:300", "--validation-tail", ".1", "--out", "d"]
    out = run(*prepare)
    index = json.loads(Path("d/index.json").read_text())
    train = index["splits"]["train"]["tokens"]
    assert "1 file was not read (not named .jsonl or .json or .ndjson): notes.md" in out
    assert f"vocabulary {index['tokenizer']['vocab_size']}, separator <|endoftext|> (id 0)" in out
    assert f"train: 12 documents, {train:,} tokens (8" in out
    assert f"an epoch: {train:,} tokens, {(train - 1) // 1024} rows of the default data.seq_len=1024" in out
    (command,) = [line.split() for line in out.splitlines() if line.startswith("  jaxscale train ")]
    config = load_config(command[2], command[3:])  # the command is one that works
    assert config.model.vocab_size == index["tokenizer"]["vocab_size"]
    assert config.data.path == str(corpus / "d")
    again = run(
        "data", "prepare", "--jsonl", "texts", "--tokenizer", "bpe:300", "--validation-tail", ".1", "--out", "d"
    )
    assert "already prepared" in again
    assert "notes.md" in again  # what was left out of a dataset is told again


def test_show(run, corpus):
    run("data", "prepare", "--jsonl", "texts", "--validation-text", "u.txt", "--out", "d")
    out = run("data", "show", "d", "--documents", "2", "--characters", "20")
    assert "d: jsonl of 1 files, " in out
    assert "train: 12 documents, " in out
    assert "validation: 1 documents, " in out
    assert "notes.md" in out
    assert "--- train, document 2 of 12\ndef f1(x):\n    retur ..." in out
    assert "--- validation, document 1 of 1\nline of u\nline of u\n ..." in out
    assert "document" not in run("data", "show", "d", "--documents", "0").replace("documents,", "")
    assert "nowhere is no prepared dataset" in run("data", "show", "nowhere", code=2)


def test_refusals(run, corpus):
    texts = ["data", "prepare", "--jsonl", "texts", "--out", "d"]
    for arguments, said in (
        (["--validation-text", "u.txt", "--validation-jsonl", "texts"], "are both given; give one of them"),
        (["--validation-text", "u.txt", "--validation-tail", ".1"], "validation by tail and by files"),
        (["--validation-tail", "1"], "validation_tail 1.0 is not in [0, 1)"),
        (["--validation-jsonl", "texts/a.jsonl"], "a.jsonl is among the training files too"),
        (["--skip-bad", "-1"], "skip_bad -1 is negative"),
    ):
        assert said in run(*texts, *arguments, code=2)
    assert not Path("d").exists()


def test_a_run_on_a_mixture_goes_on_where_it_stopped(run, corpus, monkeypatch):
    """Without model.vocab_size; the same losses whether the run was stopped or not."""
    monkeypatch.setattr("jaxscale.training.trainer.find_peak", lambda devices, dtype: None)
    monkeypatch.setattr("jaxscale.report.curve.plot_losses", lambda records, path, title: path)
    for name in "uv":
        run("data", "prepare", "--text", f"{name}.txt", "--tokenizer", "byte", "--validation-tail", ".2", "--out", name)
    values = {
        "name": "tiny", "steps": 4, "model": {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32},
        "data": {"mixture": {"u": 1, "v": 3}, "batch_size": 8, "seq_len": 32}, "mesh": {"data": 8},
        "step": {"compute_dtype": "float32", "remat": "none"}, "evaluation": {"batches": 1},
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant"}, "metrics": {"tensorboard": False},
        "runtime": {"platform": "cpu", "compilation_cache": None},
    }  # fmt: skip
    Path("tiny.yaml").write_text(yaml.safe_dump(values))
    assert "vocab_size: 257" in run("show", "tiny.yaml")
    run("train", "tiny.yaml", "out=whole")
    run("train", "tiny.yaml", "out=parts", "steps=2")
    run("train", "tiny.yaml", "out=parts")
    losses = {
        out: {r["step"]: r["loss"] for r in read_records(Path(out, "metrics.jsonl")) if r["kind"] == "train"}
        for out in ("whole", "parts")
    }
    assert losses["parts"] == losses["whole"]
    assert sorted(losses["whole"]) == [1, 2, 3, 4]
    assert load_config("whole/config.yaml").model.vocab_size == 257
    assert Path("whole/tokenizer-identity.json").exists()
