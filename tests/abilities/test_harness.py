"""The adapter for lm_eval: its three kinds of requests against our own numbers, and a task of YAML and JSON lines."""

import json

import jax
import pytest
from faults.processes import Group
from support import make_config
from test_bad_input import Shell

from jaxscale.data.prepare import prepare
from jaxscale.data.sources import text_source
from jaxscale.data.tokenizer import ByteTokenizer
from jaxscale.serving import harness
from jaxscale.serving.harness import until

T = 32
MODEL = {"vocab_size": 257, "num_layers": 2, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 64}
ONE = ["mesh={data: 1}", "runtime.simulated_devices=1"]
TEXT = "the ship left the harbour, and the wind was from the north\n" * 12


@pytest.fixture
def shell(capfd, monkeypatch):
    return Shell(capfd, monkeypatch)


def test_an_answer_ends_at_the_first_stop():
    assert until("a\nb|c", ["|", "\n"]) == "a"
    assert until("abc", "c") == "ab"
    assert until("abc", None) == until("abc", [""]) == "abc"


def test_without_the_extra_it_is_named(shell, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "Base", object)
    with pytest.raises(ValueError, match=r"lm_eval:x needs lm_eval; pip install 'jaxscale\[eval\]'"):
        harness.require_harness(["x"], None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run whose validation split is one document of whole rows."""
    pytest.importorskip("lm_eval")
    from jaxscale.training.trainer import train

    place = tmp_path_factory.mktemp("harness")
    (place / "train.txt").write_text(TEXT)
    (place / "validation.txt").write_text(TEXT[: 4 * T])
    validation = text_source([place / "validation.txt"])
    prepare(text_source([place / "train.txt"]), "byte", place / "data", validation=validation)
    config = make_config(
        {"data": 2, "tensor": 2},
        model=MODEL,
        steps=30,
        out=str(place / "run"),
        data={"kind": "tokens", "path": str(place / "data"), "batch_size": 8, "seq_len": T},
        runtime={"platform": "cpu", "simulated_devices": 4},
    )
    (place / "loss").write_text(str(train(config).validation_loss))
    return place


@pytest.fixture(scope="module")
def model(place):
    return harness.Model(str(place / "run"), *ONE)


class Request:
    def __init__(self, *args):
        self.args = args


def test_the_log_likelihood_of_a_document_is_the_validation_loss(place, model):
    """Rolling over the document in the rows of training, which are whole."""
    (nats,) = model.loglikelihood_rolling([Request(TEXT[: 4 * T])])
    assert -nats / (4 * T) == pytest.approx(float((place / "loss").read_text()), rel=1e-5)


def test_a_continuation_is_what_is_left_of_both_together(model):
    """log p(context) + log p(continuation | context) = log p(both), and greedy decoding writes what is greedy."""
    context, continuation = "the ship left", " the ha"
    both, first, second = (
        model.loglikelihood([Request(*pair)])[0]
        for pair in (("", context + continuation), ("", context), (context, continuation))
    )
    assert both[0] == pytest.approx(first[0] + second[0], rel=1e-5)
    (written,) = model.generate_until([Request("the ship left", {"until": ["|"], "max_gen_toks": 7})])
    assert model.loglikelihood([Request("the ship left", written)])[0][1]
    other = "zzz" if written[:3] != "zzz" else "yyy"
    assert not model.loglikelihood([Request("the ship left", other)])[0][1]
    assert model.loglikelihood([Request("the ship left ", "the")]) == model.loglikelihood(
        [Request("the ship left", " the")]
    )
    assert model.loglikelihood([Request("a", "")]) == [(0.0, True)]


def test_a_long_context_loses_its_beginning(model):
    long, short = "x" * 100 + TEXT[:T], ("x" * 100 + TEXT[:T])[-(T + 1 - 3) :]
    (found,) = model.loglikelihood([Request(long, "abc")])
    tokens = ByteTokenizer().encode(long + "abc")[-(T + 1) :]
    (wanted,) = model.scores([harness.Row(tokens, T + 1 - 3)])
    assert len(short) == T - 2
    assert found[0] == pytest.approx(wanted.total, rel=1e-6)


def test_generations_keep_their_order_and_their_settings(model):
    asked = [("the ship", 3), ("and the", 5), ("from", 3)]
    found = model.generate_until([Request(text, {"until": [], "max_gen_toks": n}) for text, n in asked])
    assert [len(text) for text in found] == [3, 5, 3]
    alone = [model.generate_until([Request(t, {"until": [], "max_gen_toks": n})])[0] for t, n in asked]
    assert found == alone


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_beams": 4}, "num_beams: not here"),
        ({"max_gen_toks": T}, "asks for 32 new tokens, and the model reads 32"),
    ],
)
def test_generations_that_are_refused(model, asked, message):
    with pytest.raises(ValueError, match=message):
        model.generate_until([Request("a", asked)])


def test_an_answer_beyond_the_context_is_refused(model):
    with pytest.raises(ValueError, match="asks for an answer of 40 tokens, and the model reads 32"):
        model.loglikelihood([Request("a", "b" * 40)])


TASKS = {
    "ships": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": ["harbour", "quagga"],
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}],
    },
    "winds": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "texts": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}",
              "metric_list": [{"metric": "byte_perplexity"}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(place):
    import yaml

    folder = place / "tasks"
    folder.mkdir()
    lines = [{"question": "the ship left the ", "label": 0, "answer": "harb"}] * 3
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, values in TASKS.items():
        about = {"task": name, "dataset_path": "json", "test_split": "test",
                 "dataset_kwargs": {"data_files": {"test": str(folder / "lines.jsonl")}}}  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(about | values))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_tasks_of_yaml_and_json_lines(place, folder, shell, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    words = ["--tasks", "lm_eval:ships,lm_eval:winds", "--tasks", "lm_eval:texts", "--tasks-from", folder]
    found = json.loads(shell.good("evaluate", place / "run", *words, "--json", *ONE))["abilities"]
    assert [one["ability"] for one in found] == ["lm_eval:ships", "lm_eval:winds", "lm_eval:texts"]
    assert [one["examples"] for one in found] == [3, 3, 3]
    ships, winds, texts = ({name: m["value"] for name, m in one["metrics"].items()} for one in found)
    assert ships["acc"] == 1.0
    assert winds["exact_match"] in (0.0, 1.0)
    assert 1 < texts["byte_perplexity"] < 257
    assert found[0]["chance"] is None
    assert "lm_eval:ships" in shell.good("evaluate", place / "run", *words, "--examples", 1, *ONE)
    message = shell.refused("evaluate", place / "run", "--tasks", "lm_eval:nowhere", "--tasks-from", folder)
    assert "lm_eval has no task 'nowhere' in" in message
    assert "is no directory" in shell.refused(
        "evaluate", place / "run", "--tasks", "lm_eval:ships", "--tasks-from", "no"
    )
    message = shell.refused("evaluate", place / "run", "--tasks", "coin", "--tasks-from", folder)
    assert "is for tasks of lm_eval; give one as --tasks lm_eval:NAME" in message


def test_every_mesh_gives_the_same(place, model):
    many = harness.Model(str(place / "run"), "mesh={data: 2, fsdp: 2, tensor: 2}", "runtime.simulated_devices=8")
    assert jax.device_count() == 8
    requests = [Request("the ship", " left"), Request("", "harbour"), Request("the wind was", " from")]
    for a, b in zip(many.loglikelihood(requests), model.loglikelihood(requests), strict=True):
        assert a[0] == pytest.approx(b[0], rel=1e-5)
        assert a[1] == b[1]


@pytest.mark.faults
def test_two_processes_give_what_one_gives(place, folder, tmp_path, monkeypatch):
    """Every process asks the same, and the first one prints."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tasks = ["--tasks", "lm_eval:ships,lm_eval:winds,lm_eval:texts", "--tasks-from", str(folder), "--json"]
    found = []
    for processes in (1, 2):
        words = ["evaluate", str(place / "run"), *tasks, "mesh={data: 2}", "runtime.simulated_devices=2"]
        with Group(["-m", "jaxscale.cli", *words], tmp_path / "logs", processes=processes) as group:
            assert group.wait() == [0] * processes, group.texts()
            assert not any('"abilities"' in group.text(rank) for rank in range(1, processes))
            text = group.text(0)
        found.append(json.loads(text[text.index("{\n") : text.rindex("}") + 1])["abilities"])
    for one, two in zip(*found, strict=True):
        assert one["examples"] == two["examples"] == 3
        for name, metric in one["metrics"].items():
            assert two["metrics"][name]["value"] == pytest.approx(metric["value"], rel=1e-5), name
