"""`jaxscale config`: the schema that editors read accepts what `load_config` reads, and the keys that a word names."""

import json
import re

import pytest
from jsonschema import Draft202012Validator

from jaxscale.cli.app import main
from jaxscale.config import load_config, shipped_configs
from jaxscale.config.keys import all_keys, matching
from jaxscale.config.schema import comment, model_schema, run_schema, schema_text
from jaxscale.files.reading import parse_yaml

RUNS = sorted(shipped_configs().glob("*.yaml"))
MODELS = sorted((shipped_configs() / "models").glob("*.yaml"))
RUN, MODEL = Draft202012Validator(run_schema()), Draft202012Validator(model_schema())
SMALL = {"num_layers": 4, "embed_dim": 8, "num_heads": 1, "mlp_dim": 8}
LEAST = {"name": "x", "steps": 1, "model": "llama3.1-8b", "data": {"kind": "synthetic"}}


def is_valid(changes: dict) -> bool:
    return RUN.is_valid(LEAST | changes)


@pytest.mark.parametrize("file", [*RUNS, *MODELS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_schema_accepts_every_shipped_file(file):
    validator = RUN if file in RUNS else MODEL
    validator.validate(parse_yaml(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("file", [*RUNS, *MODELS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_file_names_its_schema(file):
    first = file.read_text(encoding="utf-8").splitlines()[0]
    found = re.fullmatch(re.escape(comment("")) + r"(\S+)", first)
    assert found, first
    assert (file.parent / found[1]).is_file()


@pytest.mark.parametrize(
    ("file", "schema"), [("schema.json", run_schema), ("models/schema.json", model_schema)], ids=("run", "model")
)
def test_the_committed_schema_is_current(file, schema):
    """Else: `jaxscale config schema -o configs/schema.json`, and with --model configs/models/schema.json."""
    Draft202012Validator.check_schema(schema())
    assert (shipped_configs() / file).read_text(encoding="utf-8") == schema_text(schema())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"file": "llama3.1-8b", "num_layers": 2}},
        {"model": SMALL | {"vocab_size": None}, "data": {"path": "x"}},
        {"model": SMALL | {"vocab_size": 5, "pattern": [{"layers": 2, "rope": False}], "attention_bias": "qkv"}},
        {"step": {"remat": {"q": "save", "mlp_gate": "recompute"}}, "mesh": {"tensor": -1}},
        {"optimizer": {"clip_norm": None, "learning_rate": 1, "no_decay": []}},
        {"sharding": {"parameters": {"embed": None, "mlp": ["tensor", "fsdp"], "heads": "fsdp"}}},
    ],
)  # fmt: skip
def test_the_schema_accepts_what_is_read(changes, tmp_path):
    values = LEAST | changes
    assert RUN.is_valid(values)
    if values["data"] == LEAST["data"]:
        (tmp_path / "run.yaml").write_text(json.dumps(values))
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "changes",
    [
        {"stesp": 1},
        {"steps": 0},
        {"steps": "many"},
        {"model": {"num_layers": 2}},  # neither a file nor all sizes
        {"model": {"file": "llama3.1-8b", "layers": 2}},
        {"model": 5},
        {"step": {"remat": "ful"}},
        {"step": {"remat": {"mlp_gat": "save"}}},
        {"step": {"remat": {"q": "keep"}}},
        {"model": {"file": "llama3.1-8b", "lora": {"rank": 2, "on": ["w"]}}},
        {"optimizer": {"b1": 1.0}},
        {"objective": {"clip": [0.1]}},
    ],
)
def test_the_schema_refuses_what_is_refused(changes, tmp_path):
    assert not is_valid(changes)
    (tmp_path / "run.yaml").write_text(json.dumps(LEAST | changes))
    with pytest.raises(ValueError, match=r"\S"):
        load_config(tmp_path / "run.yaml")


# --- the verbs --------------------------------------------------------------------------------------------------


def run(monkeypatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["jaxscale", "config", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def test_keys_are_found_by_name_description_and_other_names():
    names = lambda word: [key.name for key in matching(word)]  # noqa: E731
    assert "optimizer.warmup_steps" in names("Warmup")
    assert "on_nonfinite" in names("infinite")
    assert names("batch size") == ["data.batch_size"]
    assert names("weight-decay") == ["optimizer.weight_decay", "optimizer.no_decay"]
    assert "optimizer.learning_rate" in names("lr")  # as other trainers call it


def test_keys_fit_the_terminal(monkeypatch, capsys):
    assert run(monkeypatch, "keys") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line.split("  ")[0] for line in lines if not line.startswith(" ")]
    assert heads == [key.name for key in all_keys()]
    assert run(monkeypatch, "keys", "clip_norm") == 0
    assert capsys.readouterr().out == (
        "optimizer.clip_norm  number > 0 | null, default 1\n"
        "    Largest norm of the whole gradient, which is scaled down to it; null: no\n    limit.\n"
    )


def test_keys_for_programs(monkeypatch, capsys):
    assert run(monkeypatch, "keys", "clip_norm", "--json") == 0
    [key] = json.loads(capsys.readouterr().out)
    assert (key["name"], key["values"], key["default"]) == ("optimizer.clip_norm", "number > 0 | null", "1")


def test_a_word_that_no_key_has_proposes_one(monkeypatch, capsys):
    assert run(monkeypatch, "keys", "warmup_stesp") == 2
    error = capsys.readouterr().err
    assert error == ("error: no key or description contains 'warmup_stesp'; did you mean optimizer.warmup_steps?\n")
    assert run(monkeypatch, "keys", "xyzzy") == 2
    assert "give another word" in capsys.readouterr().err


def test_the_schema_is_printed_or_written(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, "schema") == 0
    assert json.loads(capsys.readouterr().out) == run_schema()
    out = tmp_path / "model.json"
    assert run(monkeypatch, "schema", "--model", "-o", str(out)) == 0
    assert json.loads(out.read_text()) == model_schema()
    assert comment("model.json") in capsys.readouterr().out
    assert run(monkeypatch, "schema", "-o", str(tmp_path / "nowhere" / "x.json")) == 2
