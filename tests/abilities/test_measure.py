"""Abilities measured with a model: as it generates, as plain numpy has it, on every mesh, while it trains."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import Listener, make_config
from test_bad_input import Shell

import jaxscale
from jaxscale import abilities
from jaxscale.abilities.measure import Measure, with_length
from jaxscale.abilities.rows import prepare
from jaxscale.abilities.table import tasks_of
from jaxscale.data.prepare import prepare as prepare_data
from jaxscale.data.sources import jsonl_source, text_source
from jaxscale.data.tokenizer import ByteTokenizer
from jaxscale.files.jsonl import read_records
from jaxscale.parallel.mesh import make_mesh
from jaxscale.serving.load import config_of, continued, load
from jaxscale.serving.tasks import evaluate_tasks
from jaxscale.training.step import state_of
from jaxscale.training.trainer import train

MODEL = {"vocab_size": 257, "num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 64}
ONE = ["mesh={data: 1}", "runtime.simulated_devices=1"]
NAMES = ["count", "parity_chain", "coin", "bracket", "rule:4", "induction"]
TAUGHT = ["count", "parity_chain", "rule"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Documents of abilities, and a run on them, on 2 x 2 x 2, that measured while it trained."""
    place = tmp_path_factory.mktemp("abilities")
    lines = (json.dumps({"text": text}) for text in abilities.documents(TAUGHT, 0, 1500))
    (place / "documents.jsonl").write_text("\n".join(lines))
    prepare_data(jsonl_source([place / "documents.jsonl"]), "byte", place / "data", validation_fraction=0.05)
    listener = Listener()
    train(run_config(place), watcher=listener)
    (place / "said.txt").write_text("\n".join(listener.lines))
    return place


def run_config(place, **sections):
    values = {
        "model": MODEL,
        "steps": 60,
        "out": str(place / "run"),
        "data": {"kind": "tokens", "path": str(place / "data"), "batch_size": 16, "seq_len": 128},
        "optimizer": {"ema": 0.5},
        "evaluation": {"every": 30, "abilities": NAMES, "examples": 24},
        "runtime": {"platform": "cpu", "simulated_devices": 8},
        "checkpoint": {"every": 30},
    }
    return make_config({"data": 2, "fsdp": 2, "tensor": 2}, **values | sections)


def measured(place, names, overrides=ONE, **options):
    options = {"examples": 24} | options
    return evaluate_tasks(str(place / "run"), names, overrides, say=lambda line: None, **options)


@pytest.fixture(scope="module")
def on_one(place):
    return measured(place, NAMES)[0]["abilities"]


def on_one_device(place):
    config = config_of(str(place / "run"), ONE)
    return load(str(place / "run"), config, make_mesh(config.mesh, jax.devices()[:1]), ByteTokenizer(), say=print)


def same(found, wanted, tolerance=1e-5):
    assert [(one["ability"], one["shots"], one["examples"]) for one in found] == [
        (one["ability"], one["shots"], one["examples"]) for one in wanted
    ]
    for a, b in zip(found, wanted, strict=True):
        for name, metric in a["metrics"].items():
            assert metric["value"] == pytest.approx(b["metrics"][name]["value"], rel=tolerance, abs=tolerance), name
        assert np.allclose(a.get("curve", []), b.get("curve", []), rtol=tolerance)


# --- against other ways to the same number ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["count", "parity_chain", "rule:1"])
def test_greedy_exact_match_is_what_is_generated_token_by_token(place, name):
    """With the cache of `generate`, at temperature 0. Some answers are right and some wrong."""
    loaded = on_one_device(place)
    tasks = tasks_of(name, seed=3, count=48)
    (one,) = prepare(tasks, ByteTokenizer(), seq_len=128)
    with loaded.context():
        measure = Measure(loaded.config, loaded.program, loaded.mesh)
        rows = [texts[example.answers[0]] for example, texts in zip(tasks[0].examples, one.rows, strict=True)]
        scores = measure.scores(state_of(loaded.params), rows)
    answers = [example.answers[0] for example in tasks[0].examples]
    prompts = [example.prompt for example in tasks[0].examples]
    texts = continued(loaded, prompts, max_new_tokens=len(answers[0]), temperature=0.0)
    assert [text == answer for text, answer in zip(texts, answers, strict=True)] == [
        bool(score.right.all()) for score in scores
    ]
    firsts = [text[:1] == answer[:1] for text, answer in zip(texts, answers, strict=True)]
    assert firsts == [bool(score.right[0]) for score in scores]
    assert len(set(firsts)) == 2


def test_log_probabilities_are_those_of_plain_numpy(place):
    """Each row by itself, without padding, log-softmax in float64."""
    loaded = on_one_device(place)
    assert loaded.averaged
    (one,) = prepare(tasks_of("parity_chain", seed=0, count=6), ByteTokenizer(), seq_len=128)
    rows = [row for texts in one.rows for row in texts.values()]
    with loaded.context():
        scores = Measure(loaded.config, loaded.program, loaded.mesh).scores(state_of(loaded.params), rows)
        run = jax.jit(lambda params, tokens: loaded.program.merge(params)(tokens))
        for row, score in zip(rows, scores, strict=True):
            logits = np.asarray(run(loaded.params, row.tokens[None, :-1]), np.float64)[0, :, :257]
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            wanted = [log_p[i - 1, row.tokens[i]] for i in range(row.start, len(row.tokens))]
            assert score.log_p == pytest.approx(wanted, rel=1e-4)
            assert score.right.tolist() == [
                logits[i - 1].argmax() == row.tokens[i] for i in range(row.start, len(row.tokens))
            ]


@pytest.mark.parametrize(
    ("mesh", "more"),
    [
        ("{data: 2, fsdp: 2, tensor: 2}", []),
        ("{data: 8}", []),
        ("{fsdp: 8}", []),
        ("{data: 2, tensor: 4}", ["model.num_kv_heads=2"]),
        ("{data: 2, context: 4}", []),
        ("{data: 2, pipeline: 2, fsdp: 2}", ["step.microbatches=2", "step.remat=full"]),
    ],
)
def test_every_mesh_gives_the_same(place, on_one, mesh, more):
    (record,) = measured(place, NAMES, [f"mesh={mesh}", *more])
    assert math.prod(record["mesh"].values()) == 8
    same(record["abilities"], on_one)


@pytest.mark.parametrize(
    "words", [["loss.chunk=16"], ["step.microbatches=4"], ["data.batch_size=6"], ["data.seq_len=256"]]
)
def test_how_rows_are_cut_changes_nothing(place, on_one, words):
    same(measured(place, NAMES, [*ONE, *words])[0]["abilities"], on_one)


def test_experts_are_measured_too(tmp_path, place):
    """A mixture of experts, on two devices that split them and on one."""
    moe = {"num_experts": 4, "top_k": 2, "mlp_dim": 32}
    config = run_config(place, model=MODEL | {"moe": moe}, steps=2, out=str(tmp_path / "run"))
    train(config)
    found = [
        evaluate_tasks(str(tmp_path / "run"), ["count", "coin"], words, examples=16, say=print)[0]["abilities"]
        for words in (ONE, ["mesh={data: 2, expert: 2}", "runtime.simulated_devices=4"])
    ]
    same(*found)


def test_replicas_are_measured_by_their_outer_parameters(tmp_path, place):
    """While they train on a mesh of replicas, and afterwards on one device."""
    data = {"kind": "tokens", "path": str(place / "data"), "batch_size": 16, "seq_len": 128}
    config = make_config(
        {"replica": 2, "fsdp": 2},
        model=MODEL,
        steps=4,
        out=str(tmp_path / "run"),
        data=data,
        outer={"every": 2},
        evaluation={"abilities": ["count", "coin"], "examples": 16},
        runtime={"platform": "cpu", "simulated_devices": 4},
    )
    train(config)
    (written,) = [r for r in read_records(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "abilities"]
    words = [*ONE, "outer.every=null"]
    (found,) = evaluate_tasks(str(tmp_path / "run"), ["count", "coin"], words, examples=16, say=print)
    same(found["abilities"], written["abilities"])


class FixedLength(nnx.Module):
    """A model of the user's own, with a parameter for each of 64 positions: it cannot read shorter rows."""

    def __init__(self, rngs, vocab=384, T=64, D=16):
        def make(shape, axes):
            return nnx.Param(jax.random.normal(rngs.params(), shape), out_sharding=axes)

        self.embedding, self.places = make((vocab, D), ("vocab", "embed")), make((T, D), ("positions", "embed"))

    def __call__(self, tokens):
        x = jaxscale.lookup(self.embedding[...], tokens, dtype=jnp.float32)
        x = jaxscale.shard(x, "batch", "sequence", "embed") + jax.reshard(self.places[...], jax.P(None, None))
        return jaxscale.einsum("btd,vd->btv", x, self.embedding[...], out=("batch", "sequence", "vocab"))


def test_a_model_of_ones_own_reads_rows_of_its_length(tmp_path, place):
    """Without `hidden` and `head`; its log-probabilities are those of its logits."""
    data = {"kind": "tokens", "path": str(place / "data"), "batch_size": 8, "seq_len": 64}
    more = {"optimizer": {"ema": None}, "steps": 2, "data": data, "out": str(tmp_path / "run")}
    config = run_config(place, **more, evaluation={"abilities": ["count", "coin"], "examples": 8})
    result = train(config, model=FixedLength)
    (written,) = [r for r in read_records(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "abilities"]
    table, places = (np.asarray(result.state.params[name], np.float64) for name in ("embedding", "places"))
    nats = []
    for example in tasks_of("count", seed=0, count=8)[0].examples:
        tokens = [256, *example.prompt.encode()]
        logits = ((table[tokens[-1]] + places[len(tokens) - 1]) @ table.T)[:257]
        nats.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[ord(example.answers[0])])
    assert written["abilities"][0]["metrics"]["nll"]["value"] == pytest.approx(np.mean(nats), rel=1e-4)


# --- while it trains --------------------------------------------------------------------------------------------


def test_a_run_writes_what_its_checkpoints_come_to(place):
    """The same numbers, from the state in memory and from the checkpoint, averaged parameters included."""
    written = {r["step"]: r for r in read_records(place / "run" / "metrics.jsonl") if r["kind"] == "abilities"}
    assert list(written) == [0, 30, 60]
    records = measured(place, NAMES, step="all")
    assert [record["step"] for record in records] == [30, 60]
    for record in records:
        same(record["abilities"], written[record["step"]]["abilities"])
    (last,) = measured(place, NAMES)
    assert last == records[1]
    (first,) = measured(place, NAMES, step=30)
    assert first == records[0]
    assert first["abilities"] != last["abilities"]
    assert "step 60: count 0." in (place / "said.txt").read_text()


def test_training_teaches(place):
    """Bytes become digits: the loss of an answer falls."""
    values = [r["abilities"][0]["metrics"]["nll"]["value"] for r in read_records(place / "run" / "metrics.jsonl")
              if r["kind"] == "abilities"]  # fmt: skip
    assert values[0] == pytest.approx(math.log(257), rel=0.1)
    assert values[-1] < 3


def test_one_program_for_all_evaluations(place, tmp_path, caplog):
    """JAX says what it compiles: once, for the three evaluations of all abilities."""
    sections = {"steps": 4, "evaluation": {"every": 2, "abilities": ["count", "coin", "rule"], "examples": 24}}
    with jax.log_compiles():
        train(run_config(place, out=str(tmp_path / "run"), **sections))
    compiled = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
    assert sum("jit(token_scores)" in line for line in compiled) == 1
    assert len([r for r in read_records(tmp_path / "run" / "metrics.jsonl") if r["kind"] == "abilities"]) == 3


def test_a_run_without_a_validation_split_measures_abilities(place, tmp_path):
    (tmp_path / "text.txt").write_text("N:000000000000|0\n" * 200)
    prepare_data(text_source([tmp_path / "text.txt"]), "byte", tmp_path / "data", validation_fraction=0.0)
    data = {"kind": "tokens", "path": str(tmp_path / "data"), "batch_size": 16, "seq_len": 128}
    train(run_config(place, data=data, out=str(tmp_path / "run"), steps=2))
    kinds = [
        r["kind"] for r in read_records(tmp_path / "run" / "metrics.jsonl") if r["kind"] in ("abilities", "validation")
    ]
    assert kinds == ["abilities", "abilities"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"evaluation": {"abilities": ["cpoy"]}}, "no ability 'cpoy'; did you mean copy?"),
        ({"evaluation": {"abilities": ["induction"]}, "data": {"seq_len": 64}},
         "example 1 of ability induction has 101 tokens, and the model reads 64"),
        ({"evaluation": {"abilities": ["copy"]}, "data": {"kind": "synthetic", "path": None}},
         "evaluation.abilities needs a tokenizer, and data.kind=synthetic has none"),
    ],
)  # fmt: skip
def test_a_run_refuses_before_it_writes(place, tmp_path, sections, message):
    data = {"kind": "tokens", "path": str(place / "data"), "batch_size": 16, "seq_len": 128}
    sections = sections | {"data": data | sections.get("data", {}), "out": str(tmp_path / "run")}
    with pytest.raises(ValueError, match=r".") as error:
        train(run_config(place, **sections))
    assert message in str(error.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# --- the length of rows -----------------------------------------------------------------------------------------


def test_rows_are_as_short_as_the_mesh_allows():
    config = make_config(data={"seq_len": 1024}, loss={"chunk": 512})
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    lengths = {n: with_length(config, n, mesh).data.seq_len for n in (1, 16, 17, 100, 512, 513, 1024)}
    assert lengths == {1: 16, 16: 16, 17: 32, 100: 128, 512: 512, 513: 1024, 1024: 1024}
    assert with_length(config, 100, mesh).loss.chunk is None
    assert with_length(config, 512, mesh).loss.chunk == 512
    eight = make_mesh(make_config({"data": 8}).mesh, jax.devices())
    assert with_length(make_config({"data": 8}, data={"seq_len": 48}), 3, eight).data.seq_len == 48


# --- the verb ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(capfd, monkeypatch):
    return Shell(capfd, monkeypatch)


def test_the_verb_prints_a_table_and_json(place, shell, tmp_path):
    values = {"name": "sums", "metrics": ["exact_str_match"], "examples": [{"input": "1+1", "target": "2"}]}
    (tmp_path / "sums.json").write_text(json.dumps(values))
    words = ["--tasks", f"count, rule:4,{tmp_path / 'sums.json'}", "--tasks", "coin", "--examples", 12, *ONE]
    out = shell.good("evaluate", place / "run", *words)
    assert "step 60 of" in out
    assert "log_odds" in out
    found = json.loads(shell.good("evaluate", place / "run", *words, "--json"))
    assert [(one["ability"], one["shots"]) for one in found["abilities"]] == [
        ("count", 0), ("rule", 4), ("sums", 0), ("coin", 0)
    ]  # fmt: skip
    assert (found["kind"], found["step"], found["averaged"], found["seed"]) == ("abilities", 60, True, 0)
    both = json.loads(shell.good("evaluate", place / "run", *words, "--json", "--step", "all"))
    assert [record["step"] for record in both["records"]] == [30, 60]
    assert both["records"][1] == found


def test_a_seed_draws_other_examples(place, on_one):
    other = measured(place, ["coin"], seed=1)[0]["abilities"][0]
    mine = next(one for one in on_one if one["ability"] == "coin")
    assert other["metrics"]["log_odds"] != mine["metrics"]["log_odds"]


REFUSED = [
    (["--tasks", "cpoy"], "no ability 'cpoy'; did you mean copy?"),
    (["--tasks", "nowhere.json"], "nowhere.json cannot be read: No such file"),
    (["--tasks", "copy", "--step", "7"], "has no checkpoint of step 7; it has [30, 60]"),
    (["--tasks", "copy", "--step", "x"], "--step x: give the number of a checkpoint's step, or with --tasks `all`"),
    (["--step", "all"], "--step all: give the number of a checkpoint's step; `all` is for --tasks"),
    (["--tasks", "copy", "--data", "x"], "--tasks makes or reads its own examples; leave out --data and --split"),
    (["--examples", "4"], "--examples, --seed and --tasks-from are of tasks; give --tasks too"),
    (["--tasks", "copy", "--examples", "0"], "greater than or equal to 1"),
    (["--tasks", "copy:9"], "and the model reads 128 (data.seq_len)"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_is_refused(place, shell, words, message):
    assert message in shell.refused("evaluate", place / "run", *words, *ONE)


def test_text_to_train_on_is_written_once(shell, tmp_path):
    out = shell.good("data", "abilities", "copy,count", "--out", tmp_path / "a.jsonl", "--count", 5, "--seed", 2)
    assert "5 documents" in out
    texts = [json.loads(line)["text"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert texts == abilities.documents(["copy", "count"], 2, 5)
    assert "a.jsonl exists" in shell.refused("data", "abilities", "copy", "--out", tmp_path / "a.jsonl")
    assert "no ability 'x'" in shell.refused("data", "abilities", "x", "--out", tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl").exists()
