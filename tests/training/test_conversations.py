"""A run on conversations: its loss is the mean over what is trained, it answers by its template and at its stop."""

import json

import jax
import numpy as np
import pytest
from made_examples import dataset, records_of
from test_bad_input import Shell

from jaxscale import config as cfg
from jaxscale.data.chat import KEPT, read_kept
from jaxscale.data.examples.store import open_example_store
from jaxscale.data.order import row_indices
from jaxscale.data.store import open_tokenizer
from jaxscale.parallel.mesh import make_mesh
from jaxscale.rollouts.sampler import Sampler
from jaxscale.serving.chat import as_chat
from jaxscale.serving.load import config_of, load
from jaxscale.training.build import build
from jaxscale.training.feed import open_source

SMALL = [
    *("model.num_layers=2", "model.embed_dim=32", "model.mlp_dim=64", "model.vocab_size=null"),
    *("data.seq_len=384", "data.batch_size=8", "steps=3", "optimizer.warmup_steps=1"),
    *("checkpoint.every=3", "metrics.tensorboard=false", "runtime.compilation_cache=null"),
]
ONE = ["mesh={data: 1}", "runtime.simulated_devices=1"]


@pytest.fixture
def shell(capfd, monkeypatch):
    return Shell(capfd, monkeypatch)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Datasets of each kind, and one of conversations of the template plain."""
    place = tmp_path_factory.mktemp("conversations")
    for kind in ("conversations", "pairs", "prompts"):
        dataset(place, kind, records_of(kind, 60), kind, validation_fraction=0.2)
    turns = [{"prompt": f"{i} + 1 =", "completion": str(i + 1)} for i in range(60)]
    dataset(place, "conversations", turns, "plain", template="plain", tokenizer="bpe:300", validation_fraction=0.2)
    return place


@pytest.fixture
def trained(place, shell):
    """A run of three steps on each dataset, trained once."""

    def run(name, *more):
        out = place / "runs" / name
        if not out.exists():
            shell.good("train", "quickstart", f"data.path={place / name}", f"out={out}", *SMALL, *more)
        return out

    return run


def records_in(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def nats_of(logits, targets):
    """-log softmax, float64."""
    logits = np.asarray(logits, np.float64)
    highest = logits.max(-1, keepdims=True)
    log_z = np.log(np.exp(logits - highest).sum(-1)) + highest[..., 0]
    return log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]


def mean_by_hand(merge, params, store, numbers, vocab_size):
    """(trained tokens, mean nats): each document in a row of its own, without packing, segments or weights."""
    run = jax.jit(lambda p, tokens: merge(p)(tokens))
    total, count = 0.0, 0
    for number in numbers:
        tokens, roles = store.document(number)
        padded = np.zeros((1, 384), np.int32)
        padded[0, : len(tokens)] = tokens
        logits = np.asarray(run(params, padded))[0, : len(tokens) - 1, :vocab_size]
        nats = nats_of(logits, tokens[1:])
        total, count = total + nats[roles[1:] == 1].sum(), count + int((roles[1:] == 1).sum())
    return count, total / count


def test_the_first_loss_is_the_mean_over_trained_tokens(place, trained):
    out = trained("conversations")
    first = next(r for r in records_in(out) if r["kind"] == "train")
    config = cfg.load_config(out / "config.yaml", ONE)
    rows = open_source(config, "train")
    chosen = row_indices(config.seed, 0, 8, len(rows))
    numbers = [number for i in chosen for number, _, _ in rows.documents_in(int(i))]
    assert len(numbers) > len(chosen)  # packed
    built = build(config, jax.devices()[:1])
    with built.context():
        state = built.program.init()
        store = open_example_store(place / "conversations")
        count, mean = mean_by_hand(built.program.merge, state.params, store, numbers, 257)
    assert first["step"] == 1
    assert first["tokens"] == count
    assert first["loss"] == pytest.approx(mean, rel=1e-5)


def test_evaluation_is_over_trained_tokens_too(place, trained, shell):
    out = trained("conversations")
    found = json.loads(shell.good("evaluate", out, "--json", *ONE))
    config = config_of(str(out), ONE)
    loaded = load(str(out), config, make_mesh(config.mesh, jax.devices()[:1]), None, say=print)
    store = open_example_store(place / "conversations", "validation")
    with loaded.context():
        count, mean = mean_by_hand(loaded.program.merge, loaded.params, store, range(len(store.lengths)), 257)
    (source,) = found["sources"]
    assert (source["tokens"], source["bytes"]) == (count, None)
    assert source["loss"] == pytest.approx(mean, rel=1e-5)
    in_training = [r for r in records_in(out) if r["kind"] == "validation"][-1]
    assert in_training["step"] == 3
    assert in_training["loss"] == pytest.approx(mean, rel=1e-5)


def generated(monkeypatch, shell, out, *words):
    """The tokens of the prompt and the stops that `generate` gives to the sampler."""
    found, real = [], Sampler.__call__

    def keep(self, params, prompts, **options):
        found.append((prompts[0], tuple(options["stop_ids"])))
        return real(self, params, prompts, **options)

    monkeypatch.setattr(Sampler, "__call__", keep)
    shell.good("generate", out, "--chat", "--prompt", "2 + 1 =", "--max-new-tokens", 2, *words)
    return found[0]


def test_a_run_answers_by_the_template_of_its_data(place, trained, shell, monkeypatch):
    out = trained("conversations")
    tokens, stops = generated(monkeypatch, shell, out, "--system", "be")
    assert bytes(t for t in tokens if t < 256) == (
        b"<|im_start|>system\nbe\n<|im_start|>user\n2 + 1 =\n<|im_start|>assistant\n"
    )
    assert tokens.count(256) == 2
    assert stops == (256,)
    assert read_kept(out, open_tokenizer(place / "conversations").fingerprint).name == "chatml"


def test_a_run_on_the_template_plain_reads_prompts_as_documents(place, trained, shell, monkeypatch):
    out, codec = trained("plain"), open_tokenizer(place / "plain")
    tokens, stops = generated(monkeypatch, shell, out)
    store = open_example_store(place / "plain")
    assert tokens == [codec.separator_id, *codec.encode("2 + 1 =").tolist()]
    assert tokens in [store.document(i)[0][: len(tokens)].tolist() for i in range(len(store))]  # as it was trained
    assert stops == (codec.separator_id,)
    with pytest.raises(ValueError, match="template plain, which has no system message"):
        as_chat(str(out), codec, "be")


def test_a_run_lends_its_tokenizer_and_template(place, trained, tmp_path):
    summary = dataset(tmp_path, "prompts", records_of("prompts", 5), tokenizer=trained("plain"), template=None)
    assert summary.index.examples.template == "plain"
    assert summary.index.tokenizer.fingerprint == open_tokenizer(place / "plain").fingerprint
    summary = dataset(
        tmp_path, "prompts", records_of("prompts", 5), "b", tokenizer=trained("conversations"), template=None
    )
    assert summary.index.examples.template == "chatml"
    assert summary.index.tokenizer.spec == "byte"


def test_an_export_carries_the_template(place, trained, shell, tmp_path):
    out = trained("plain")
    kept = json.loads((out / KEPT).read_text())
    assert kept["template"] == "plain"
    shell.good("export", out, tmp_path / "out", "--dtype", "float32")
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == kept["tokenizer_config"]["chat_template"]
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pairs", "objective.kind=next_token reads no pairs"),
        ("prompts", "holds prompts, which have no answers to train on"),
    ],
)
def test_what_next_token_cannot_train_on(place, shell, tmp_path, name, said):
    line = shell.refused("train", "quickstart", f"data.path={place / name}", f"out={tmp_path / 'run'}", *SMALL)
    assert said in line


@pytest.mark.parametrize("name", ["pairs", "prompts"])
def test_what_has_no_loss_a_token_is_not_evaluated(place, trained, shell, name):
    assert f"holds {name}, which have no loss a token" in shell.refused(
        "evaluate", trained("conversations"), "--data", place / name, *ONE
    )


def test_longer_conversations_are_told(place, shell, tmp_path):
    words = [f"data.path={place / 'conversations'}", f"out={tmp_path / 'run'}", *SMALL, "data.seq_len=128"]
    out = shell.good("train", "quickstart", *words)
    assert "are longer than data.seq_len=128 and are left out" in " ".join(out.split())
