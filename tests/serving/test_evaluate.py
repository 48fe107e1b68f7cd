"""Evaluation of a run: against plain numpy, on every mesh, each token once, by source; and what is refused."""

import json
import math

import jax
import numpy as np
import pytest
from support import make_config
from test_bad_input import Shell

from jaxscale import config as cfg
from jaxscale.data.prepare import prepare
from jaxscale.data.rows import windows
from jaxscale.data.sources import text_source
from jaxscale.data.store import TokenStore
from jaxscale.data.tokenizer import load_tokenizer
from jaxscale.parallel.mesh import make_mesh
from jaxscale.serving.evaluate import evaluate_places
from jaxscale.serving.load import config_of, load, tokenizer_of
from jaxscale.training.trainer import train

T = 32
MODEL = {"vocab_size": 257, "num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 64}
ONE = ["mesh={data: 1}", "runtime.simulated_devices=1"]
TEXTS = {
    "a.txt": "the ship left the harbour, and the wind was from the north\n" * 9,
    "b.txt": "žluťoučký kůň 🐎 and a lamp\n" * 5,
    "c.txt": "tide",  # shorter than a row
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Texts, two prepared datasets of them, and a run with an average on their mixture, on 2 x 2 x 2."""
    place = tmp_path_factory.mktemp("evaluate")
    (place / "texts").mkdir()
    for name, text in TEXTS.items():
        (place / "texts" / name).write_text(text, encoding="utf-8")
    for name in ("a", "b"):
        files = [place / "texts" / f"{name}.txt", place / "texts" / "c.txt"]
        prepare(text_source(files), "byte", place / name, validation_tail=0.4)
    config = make_config(
        {"data": 2, "fsdp": 2, "tensor": 2},
        model=MODEL,
        steps=6,
        out=str(place / "run"),
        data={"kind": "tokens", "mixture": {str(place / "a"): 2, str(place / "b"): 1}, "batch_size": 8, "seq_len": T},
        optimizer={"ema": 0.9},
        runtime={"platform": "cpu", "simulated_devices": 8},
        checkpoint={"every": 3},
    )
    train(config)
    return place


def run_evaluation(place, data, overrides=(), **options):
    return evaluate_places(str(place / "run"), data, overrides, say=lambda line: None, **options)


def by_numpy(place, tokens):
    """(targets, nats): rows of T tokens from the first, each document apart, log-softmax in float64."""
    config = config_of(str(place / "run"), ["mesh={data: 1}"])
    loaded = load(str(place / "run"), config, make_mesh(config.mesh, jax.devices()[:1]), None, say=print)
    assert loaded.averaged
    run = jax.jit(lambda p, *rest: loaded.program.merge(p)(rest[0], positions=rest[1], segments=rest[2]))
    nats, count = 0.0, 0
    with loaded.context():
        for start in range(0, len(tokens) - 1, T):
            own = tokens[start : start + T + 1]
            inputs, document, position = np.zeros((3, 1, T), np.int32)
            for i, token in enumerate(own[:-1]):
                begins = i == 0 or token == 256
                inputs[0, i] = token
                document[0, i] = begins if i == 0 else document[0, i - 1] + begins
                position[0, i] = 0 if begins else position[0, i - 1] + 1
            logits = np.asarray(run(loaded.params, inputs, position, document), np.float64)[0, :, :257]
            log_p = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
            log_p -= logits.max(-1, keepdims=True)
            nats -= sum(log_p[i, target] for i, target in enumerate(own[1:]))
            count += len(own) - 1
    return count, nats


def as_tokens(*texts):
    return np.concatenate([[256, *text.encode()] for text in texts])


def test_the_loss_is_that_of_plain_numpy(place):
    """A directory is one source: its documents in the order of their names."""
    found = run_evaluation(place, [str(place / "texts")], ONE)
    (one,) = found.sources
    tokens, nats = by_numpy(place, as_tokens(*TEXTS.values()))
    assert one.tokens == tokens
    assert one.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert one.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert one.bytes == sum(len(text.encode()) for text in TEXTS.values())
    assert one.bits_per_byte == pytest.approx(nats / math.log(2) / one.bytes, rel=1e-5)
    assert found.averaged
    assert found.step == 6
    assert "averaged parameters" in found.model


@pytest.mark.parametrize(
    "mesh", ["{data: 2, fsdp: 2, tensor: 2}", "{data: 8}", "{fsdp: 2, context: 2, tensor: 2}", "{pipeline: 2, data: 4}"]
)
def test_every_mesh_gives_the_same(place, mesh):
    data = [str(place / "texts" / name) for name in TEXTS]
    rest = ["step.microbatches=2", "step.remat=full"] if "pipeline" in mesh else []
    many = run_evaluation(place, data, [f"mesh={mesh}", *rest])
    one = run_evaluation(place, data, ONE)
    assert [s.tokens for s in many.rows] == [s.tokens for s in one.rows]
    for a, b in zip(many.rows, one.rows, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5)


def test_sources_add_up_to_the_total(place):
    data = [str(place / "texts" / name) for name in TEXTS]
    found = run_evaluation(place, data, ONE)
    assert [s.source for s in found.rows] == [*data, "total"]
    for (name, text), one in zip(TEXTS.items(), found.sources, strict=True):
        assert (one.tokens, one.bytes) == (len(text.encode()), len(text.encode())), name
        _, nats = by_numpy(place, as_tokens(text))
        assert one.nats == pytest.approx(nats, rel=1e-5)
    assert found.total.tokens == sum(s.tokens for s in found.sources)
    assert found.total.loss == pytest.approx(sum(s.nats for s in found.sources) / found.total.tokens)


def test_a_mixture_is_evaluated_source_by_source(place):
    """Without --data: the run's own validation splits. Bytes are known, as the tokens are bytes."""
    found = run_evaluation(place, [], ONE)
    assert [s.source for s in found.sources] == [f"{place / 'a'} (validation)", f"{place / 'b'} (validation)"]
    for one in found.sources:
        store = [np.fromfile(f, "<u2") for f in sorted((place / one.source[len(str(place)) + 1]).glob("validation*"))]
        tokens, nats = by_numpy(place, np.concatenate(store))
        assert (one.tokens, one.bytes) == (tokens, int((np.concatenate(store) != 256).sum()))
        assert one.loss == pytest.approx(nats / tokens, rel=1e-5)
    train_split = run_evaluation(place, [str(place / "a")], ONE, split="train")
    assert train_split.total.tokens > found.sources[0].tokens


def test_another_step_has_another_loss(place):
    losses = {step: run_evaluation(place, [str(place / "texts")], ONE, step=step).total.loss for step in (3, 6)}
    assert losses[3] > losses[6]


def test_the_length_of_a_row_does_not_change_what_is_counted(place):
    data = [str(place / "texts")]
    counts = {n: run_evaluation(place, data, [*ONE, f"data.seq_len={n}"]).total.tokens for n in (8, 32, 128)}
    assert set(counts.values()) == {len(as_tokens(*TEXTS.values())) - 1}


@pytest.mark.parametrize("tokens", [2, 7, 8, 9, 17])
def test_the_rest_is_a_row_and_each_target_weighs_once(tokens):
    store = TokenStore("made up", (np.arange(tokens, dtype=np.uint16),), 300, 256)
    rows = windows(store, 8, rest=True)
    every = [rows.row(i) for i in range(len(rows))]
    assert [int(t) for row in every for t in row["targets"][row["weights"] == 1]] == list(range(1, tokens))
    assert all(len(row["tokens"]) == 8 for row in every)


# --- the verb -------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(capfd, monkeypatch):
    return Shell(capfd, monkeypatch)


def test_the_verb_prints_a_table_and_json(place, shell):
    texts = [word for name in ("a.txt", "b.txt") for word in ("--data", str(place / "texts" / name))]
    out = shell.good("evaluate", place / "run", *texts, *ONE)
    assert "averaged parameters" in out
    assert "total" in out
    assert "bits" in out
    values = json.loads(shell.good("evaluate", place / "run", *texts, "--json", *ONE))
    assert [s["source"] for s in values["sources"]] == [texts[1], texts[3]]
    assert values["total"]["tokens"] == sum(s["tokens"] for s in values["sources"])
    assert values["averaged"] is True
    assert values["total"]["bits_per_byte"] > 0


def test_bytes_of_other_tokens_are_not_known(place, tmp_path, shell):
    """A BPE's dataset: no bits per byte, null in JSON. The file itself has them."""
    spec = make_bpe(place, tmp_path)
    out = json.loads(shell.good("evaluate", tmp_path / "run", "--data", tmp_path / "bpe", "--json", *ONE))
    assert out["total"]["bytes"] is out["total"]["bits_per_byte"] is None
    text = place / "texts" / "a.txt"
    out = json.loads(shell.good("evaluate", tmp_path / "run", "--data", text, "--json", *ONE))
    assert out["total"]["bytes"] == text.stat().st_size
    assert out["total"]["tokens"] == len(spec.encode(text.read_text()))


def make_bpe(place, tmp_path):
    """A dataset of a BPE, and a run on it."""
    prepare(text_source([place / "texts"]), "bpe:280", tmp_path / "bpe", validation_tail=0.4)
    config = cfg.load_config(place / "run" / "config.yaml")
    values = config.model_dump(mode="json") | {"out": str(tmp_path / "run"), "steps": 1}
    values["data"] |= {"mixture": None, "path": str(tmp_path / "bpe")}
    values["model"] |= {"vocab_size": 280}
    train(cfg.validate(values, source="test"))
    return load_tokenizer(tmp_path / "bpe" / "tokenizer.json")


def test_a_tokenizer_that_does_not_fit_is_refused_by_name(place, tmp_path, shell):
    prepare(text_source([place / "texts"]), "bpe:280", tmp_path / "bpe", validation_tail=0.4)
    message = shell.refused("evaluate", place / "run", "--data", tmp_path / "bpe")
    assert f"{tmp_path / 'bpe'} was made by tokenizer bpe:280 (fingerprint " in message
    assert f"and {place / 'run'} has another (" in message


REFUSED = [
    ([], "nowhere", "is not a run: it has no config.yaml"),
    (["--data", "nowhere.txt"], None, "'nowhere.txt' names no file"),
    (["--data", "no*.txt"], None, "'no*.txt' names no file"),
    (["--data", "x.jsonl"], None, "x.jsonl holds records, not plain text"),
    (["--split", "test"], None, "--split test: it is one of train, validation"),
    (["--step", 5], None, "has no checkpoint of step 5; it has [3, 6]"),
    (["model.num_layers=3"], None, "model.num_layers: 2 -> 3; override mesh and runtime only"),
    (["mesh.tensor=3"], None, "12 devices"),
    (["--tokenizer", "nowhere.json"], None, "tokenizer 'nowhere.json' is neither"),
    (["mseh.tensor=2"], None, "unknown key mseh.tensor; did you mean mesh.tensor?"),
]


@pytest.mark.parametrize(("arguments", "run", "message"), REFUSED, ids=lambda x: str(x)[:30])
def test_what_is_refused(place, shell, arguments, run, message):
    assert message in shell.refused("evaluate", run or place / "run", *arguments)


def test_text_that_cannot_be_read_is_refused(place, tmp_path, shell):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_text("")
    message = shell.refused("evaluate", place / "run", "--data", tmp_path / "latin.txt")
    assert "latin.txt is not UTF-8 at byte 3" in message
    assert "--skip-bad" not in message
    assert "empty.txt has no text" in shell.refused("evaluate", place / "run", "--data", tmp_path / "empty.txt")


def test_a_published_model_has_no_steps(place, tmp_path, shell):
    message = shell.refused("evaluate", f"hf:{tmp_path}", "--data", place / "texts")
    assert f"{tmp_path / 'config.json'} cannot be read" in message


def test_a_run_without_a_tokenizer_reads_no_text(place, tmp_path, shell):
    alone = {"platform": "cpu", "simulated_devices": 1}
    config = make_config(model=MODEL, steps=1, out=str(tmp_path / "run"), data={"seq_len": T}, runtime=alone)
    train(config)
    assert tokenizer_of(str(tmp_path / "run"), None, config, needed=False) is None
    message = shell.refused("evaluate", tmp_path / "run", "--data", place / "texts")
    assert "the model has no tokenizer to read" in message
    assert "data.kind=synthetic is no prepared dataset" in shell.refused("evaluate", tmp_path / "run")
    shell.good("evaluate", tmp_path / "run", "--data", place / "texts", "--tokenizer", "byte")
    said = []
    evaluate_places(str(tmp_path / "run"), [str(place / "a")], say=said.append)
    assert said == [
        f"{tmp_path / 'run'} has no tokenizer, so nothing says whether byte, which made {place / 'a'}, is its own"
    ]


def test_a_run_of_replicas_is_evaluated_by_its_outer_parameters(place, tmp_path):
    """On its own mesh of replicas as on one device."""
    config = make_config(
        {"replica": 2, "fsdp": 2},
        model=MODEL,
        steps=4,
        out=str(tmp_path / "run"),
        data={"kind": "tokens", "path": str(place / "a"), "batch_size": 8, "seq_len": T},
        outer={"every": 2},
        evaluation={"batches": 1000},
        runtime={"platform": "cpu", "simulated_devices": 4},
    )
    result = train(config)
    on_both, on_one = (
        evaluate_places(str(tmp_path / "run"), [], words, say=print).total
        for words in ([], ["mesh={data: 1}", "runtime.simulated_devices=1", "outer.every=null"])
    )
    assert on_both.loss == pytest.approx(on_one.loss, rel=1e-5)
    assert on_both.tokens == on_one.tokens
    assert on_both.loss == pytest.approx(result.validation_loss, rel=0.01)  # which leaves out the last, shorter row
