"""Files as data: nothing in them runs, and none of them is larger than it looks."""

import ast
import json
import time
from pathlib import Path

import pytest
import yaml

import jaxscale
from jaxscale.config import divisors, load_config, read_yaml
from jaxscale.files.reading import DEPTH, parse_json, parse_yaml
from jaxscale.files.redact import LONGEST, command_line, one_line, redact, shown

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 5000 + "]" * 5000, "nested deeper"),
        (BOMB, "more than 10,000 values"),
        ("a: &a [*a]", "an alias within what it stands for"),
        ("a: !!python/object/apply:os.system ['touch made']", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: !!bool maybe", "not what its tag says"),
        ("a: !!timestamp never", "not what its tag says"),
        ("a: 1\na: 2", "the key a stands twice"),
        ("{[1, 2]: 3}", "unhashable key"),
        ("a: " + "x" * 1_000_000, "characters"),
    ],
)
def test_yaml_that_is_refused(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        parse_yaml(text)
    assert not list(tmp_path.iterdir())
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"cannot read .*run.yaml"):
        read_yaml(tmp_path / "run.yaml")


def test_aliases_and_merge_keys_are_read_where_they_are_small():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: *a}") == {"a": {"x": 1}, "b": {"x": 1, "y": {"x": 1}}}


@pytest.mark.parametrize("text", ["[" * 5000 + "]" * 5000, '{"a":' * (DEPTH + 1) + "1" + "}" * (DEPTH + 1)])
def test_json_that_is_too_deep(text):
    for given in (text, text.encode()):
        with pytest.raises(ValueError, match="nested deeper"):
            parse_json(given)


def test_json_with_many_brackets_that_are_not_nested():
    values = [[], {"a": "[" * 500}] * 100
    assert parse_json(json.dumps(values)) == values


def test_divisors_of_the_largest_number_are_found_at_once():
    start = time.process_time()
    assert divisors(2**31 - 1) == [1, 2**31 - 1]
    assert divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36]
    assert time.process_time() - start < 60  # to find a hang: trying every number takes minutes


def test_a_refusal_of_many_things_is_one_line_that_ends(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "name: x\nsteps: 1\n" + "".join(f"key{i}: {'x' * 300}\n" for i in range(500)) + "model: [" + "1, " * 3000 + "]"
    )
    with pytest.raises(ValueError, match=r"and \d+ more") as error:
        load_config(tmp_path / "run.yaml")
    assert len(str(error.value)) < LONGEST
    with pytest.raises(ValueError, match="a number of thousands of digits"):
        load_config("quickstart", ["steps=0x" + "f" * 5000])


# --- credentials ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("out=s3://KEY:SE/CR+ET@bucket/run", "out=s3://***@bucket/run"),
        ("s3:/KEY:SECRET@bucket is not there", "s3:/***@bucket is not there"),  # as a path is written
        ("https://TOKEN@host/x https://user:pw@other", "https://***@host/x https://***@other"),
        ("--tokenizer=https://host/t?X-Amz-Signature=abc&n=1", "--tokenizer=https://host/t?X-Amz-Signature=***&n=1"),
        ("HF_TOKEN=abc AWS_SECRET_ACCESS_KEY=x/y api-key=z", "HF_TOKEN=*** AWS_SECRET_ACCESS_KEY=*** api-key=***"),
        ("data.path=gs://bucket/tokens max_tokens=5", "data.path=gs://bucket/tokens max_tokens=5"),
        ("{'Authorization': 'Bearer eyJ.a-b_c', 'n': 1}", "{'Authorization': 'Bearer ***', 'n': 1}"),
        ("curl -H 'authorization: Basic dXNlcjpwdw=='", "curl -H 'authorization: Basic ***'"),
        ("refused: Bearer hf_1x2y was sent", "refused: Bearer *** was sent"),
        ("token: hf_abc, secret: x/y+z", "token: ***, secret: ***"),
        ('{"api_key": "abc", "HF_TOKEN": "hf_x"}', '{"api_key": "***", "HF_TOKEN": "***"}'),
        ("AWS_SECRET_ACCESS_KEY: abc", "AWS_SECRET_ACCESS_KEY: ***"),
        ("tokens: 4096 tokenizer: byte token: 17 token: null", "tokens: 4096 tokenizer: byte token: 17 token: null"),
        ("eos_token: '</s>' bos_token: BOS token: <|end|>", "eos_token: '</s>' bos_token: BOS token: <|end|>"),
        ("a bearer of bad news; batch_tokens: 65536", "a bearer of bad news; batch_tokens: 65536"),
        ("someone@example.org --prompt 'a: b'", "someone@example.org --prompt 'a: b'"),
    ],
)
def test_credentials_are_taken_out(text, safe):
    assert redact(text) == safe
    assert one_line(text) == safe
    assert redact(safe) == safe


def test_a_message_is_one_plain_line():
    assert one_line("a\n\tb\x1b[31m\0 \u202e") == r"a b\x1b[31m\x00 \u202e"
    long = one_line("begin " + "x" * 10**6 + " end")
    assert len(long) <= LONGEST
    assert long.startswith("begin ")
    assert long.endswith(" end")
    assert shown(["http://user:token@host", *["x"] * 99]).startswith("['http://***@host'")
    assert len(shown("x" * 999)) <= 100


def test_the_recorded_command_holds_no_credentials(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/jaxscale", "train", "tiny", "out=s3://KEY:SECRET@bucket/run"])
    assert command_line() == ["jaxscale", "train", "tiny", "out=s3://***@bucket/run"]


@pytest.mark.parametrize(
    "override",
    [
        "out=s3://KEY:SECRET@bucket/run",
        "data.path=https://user:SECRET@host/x",
        "name='api_key=SECRET'",
        "runtime.compiler_options={flag: 'http://user:SECRET@host'}",
        "optimizer.no_decay=['http://user:SECRET@host']",
    ],
)
def test_a_config_with_credentials_is_refused_without_telling_them(override):
    with pytest.raises(ValueError, match="holds credentials") as error:
        load_config("quickstart", [override])
    assert "SECRET" not in str(error.value)


# --- nothing runs ---------------------------------------------------------------------------------------------

RUNS = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


@pytest.mark.parametrize("file", sorted(Path(jaxscale.__file__).parent.rglob("*.py")), ids=lambda file: file.stem)
def test_no_module_reads_data_as_code(file):
    """No pickle, eval or exec, no shell, and YAML through `reading` alone."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert not RUNS & {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in RUNS
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("exec", "compile") and file.parts[-3:] == ("puzzles", "grader", "child.py"):
                continue  # a puzzle's file is a program, the learner's own: running it is what `check` is for
            assert called not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), called
            assert not called.startswith("yaml.") or "dump" in called or file.stem == "reading", called
            assert not {k.arg for k in node.keywords} & {"allow_pickle", "shell"}, called


def test_scalars_inside_every_kind_of_collection_are_plain_values():
    values = parse_yaml("a: !!set {x, y}\nb: !!pairs [p: 1]\nc: !!omap [q: z]\nd: [[w]]\n")
    assert values == {"a": {"x", "y"}, "b": [("p", 1)], "c": [("q", "z")], "d": [["w"]]}
    yaml.safe_dump(values)  # which refuses subclasses of str
