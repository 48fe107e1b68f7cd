"""Datasets of examples: the same bytes twice, tokens with their roles across shards, prompts with their records."""

import json

import numpy as np
import pytest
from made_examples import dataset, records_of

from jaxscale.console.data import show_dataset
from jaxscale.data.chat import Chat, kept_text, read_kept
from jaxscale.data.examples.masks import encode_examples
from jaxscale.data.examples.prompts import open_prompts
from jaxscale.data.examples.records import to_example
from jaxscale.data.examples.store import open_example_store, template_of
from jaxscale.data.examples.templates import make_template
from jaxscale.data.index import read_index
from jaxscale.data.prepare import prepare
from jaxscale.data.sources import text_source
from jaxscale.data.split import name_hash
from jaxscale.data.store import open_tokenizer
from jaxscale.data.tokenizer import load_tokenizer

KINDS = ["conversations", "pairs", "prompts"]


def documents(store):
    return [tuple(x.tolist() for x in store.document(i)) for i in range(len(store.lengths))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard_tokens", [7, 300, 2**27])
def test_every_document_once_with_its_roles(tmp_path, kind, shard_tokens):
    records = records_of(kind, 30)
    summary = dataset(tmp_path, kind, records, validation_fraction=0.2, shard_tokens=shard_tokens)
    template = make_template(summary.index.examples.template, load_tokenizer("byte"), None, where="x")
    examples = [to_example(kind, r, f"data.jsonl:{i}", "x") for i, r in enumerate(records, start=1)]
    wanted = {"train": [], "validation": []}
    for example, made in zip(examples, encode_examples(template, examples), strict=True):
        split = "validation" if name_hash(example.name) < 0.2 else "train"
        wanted[split] += [(m.ids.tolist(), m.roles.tolist()) for m in made]
    for split, of_split in wanted.items():
        store = open_example_store(tmp_path / "data", split)
        assert of_split
        assert documents(store) == of_split
        beside = summary.index.examples.splits[split]
        assert beside.examples == len(of_split) // store.per_example == len(store)
        assert beside.trained == sum(sum(r > 0 for r in roles) for _, roles in of_split)
        assert beside.longest == store.sizes.max()
        assert store.stop_ids == (256,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300", "char"])
def test_twice_the_same_bytes(tmp_path, kind, tokenizer):
    records = records_of(kind, 20)
    for name in "ab":
        dataset(tmp_path / name, kind, records, tokenizer=tokenizer)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name / "data").iterdir()} for name in "ab")
    assert first == second


def test_prepared_already_and_what_is_another_dataset(tmp_path):
    records = records_of("conversations", 10)
    first = dataset(tmp_path, "conversations", records)
    again = dataset(tmp_path, "conversations", records)
    assert again.already_prepared
    assert again.index == first.index
    with pytest.raises(ValueError, match="its template is chatml, not qwen3"):
        dataset(tmp_path, "conversations", records, template="qwen3")
    with pytest.raises(ValueError, match="its text has other contents"):
        dataset(tmp_path, "conversations", records[::-1])
    other = dataset(tmp_path, "conversations", records, template="qwen3", overwrite=True)
    assert other.index.examples.template == "qwen3"
    (tmp_path / "data" / "train-00000.roles").unlink()
    with pytest.raises(ValueError, match=r"is not a whole dataset \(shard .*roles is missing"):
        dataset(tmp_path, "conversations", records, template="qwen3")


@pytest.mark.parametrize("name", ["train-00000.roles", "train-00000.lengths", "train-00000.records", "chat.json"])
def test_what_has_changed_is_refused(tmp_path, name):
    dataset(tmp_path, "prompts", records_of("prompts", 5))
    path = tmp_path / "data" / name
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"{name} has changed since it was made"):
        open_prompts(tmp_path / "data")


def test_an_index_that_does_not_agree_with_itself(tmp_path):
    dataset(tmp_path, "pairs", records_of("pairs", 5), validation_fraction=0)
    path = tmp_path / "data" / "index.json"
    whole = json.loads(path.read_text())
    for change, said in [
        (lambda i: i["examples"]["splits"]["train"].update(examples=4), "documents is not 2 for each example"),
        (lambda i: i["examples"]["splits"]["train"]["roles"].pop(), "one file of roles and of lengths for each shard"),
        (lambda i: i["examples"]["splits"]["train"]["roles"][0].update(bytes=1), "bytes are not those of"),
        (lambda i: i["examples"]["splits"].pop("train"), "examples.splits.train is missing"),
        (lambda i: i["examples"].update(kind="prompts"), "documents is not 1 for each example"),
    ]:
        changed = json.loads(json.dumps(whole))
        change(changed)
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=said):
            read_index(tmp_path / "data")


def test_prompts_keep_their_records(tmp_path):
    records = records_of("prompts", 40)
    dataset(tmp_path, "prompts", records, validation_fraction=0.3, shard_tokens=100)
    found = {}
    for split in ("train", "validation"):
        prompts = open_prompts(tmp_path / "data", split)
        assert len(prompts)
        assert prompts.stop_ids == (256,)
        for i in range(len(prompts)):
            text = bytes(t for t in prompts.tokens(i) if t < 256).decode()
            assert text.endswith("<|im_start|>assistant\n")
            found[text.removeprefix("<|im_start|>user\n").removesuffix("\n<|im_start|>assistant\n")] = prompts.record(i)
        with pytest.raises(IndexError):
            prompts.tokens(len(prompts))
    assert found == {r["prompt"]: {"answer": r["answer"], "more": r["more"]} for r in records}


def test_another_kind_is_no_prompts(tmp_path):
    dataset(tmp_path, "pairs", records_of("pairs", 3))
    with pytest.raises(ValueError, match="holds pairs, not prompts"):
        open_prompts(tmp_path / "data")


# --- tokenizers and templates ---------------------------------------------------------------------------------


def test_a_dataset_lends_its_tokenizer_and_template(tmp_path):
    dataset(tmp_path, "conversations", records_of("conversations", 20), "first", tokenizer="bpe:300", template="qwen3")
    summary = dataset(tmp_path, "prompts", records_of("prompts", 5), tokenizer=tmp_path / "first", template=None)
    first = read_index(tmp_path / "first")
    assert summary.index.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert summary.index.examples.template == "qwen3"
    assert summary.index.examples.chat == first.examples.chat


def published(place, golden, template, **config):
    place.mkdir()
    (place / "tokenizer.json").write_text(golden)
    (place / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, **config}))
    return place


OWN = "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"  # noqa: E501


def test_the_own_template_is_the_default_where_there_is_one(tmp_path, golden_tokenizer):
    place = published(tmp_path / "m", golden_tokenizer, OWN, bos_token="<|begin_of_text|>")
    records = records_of("conversations", 10)
    summary = dataset(tmp_path, "conversations", records, tokenizer=place / "tokenizer.json", template=None)
    codec = open_tokenizer(tmp_path / "data")
    assert summary.index.examples.template == "own"
    assert codec.id_of("<|eot_id|>") in summary.index.examples.stop_ids
    kept = template_of(tmp_path / "data")
    assert kept.template == OWN
    assert kept.tokens["bos_token"] == "<|begin_of_text|>"
    (place / "tokenizer_config.json").write_text(json.dumps({"chat_template": OWN + " "}))
    with pytest.raises(ValueError, match="its template own has another text"):
        dataset(tmp_path, "conversations", records, tokenizer=place / "tokenizer.json", template=None)


def test_an_own_template_that_does_not_hold_is_refused_for_each_conversation(tmp_path, golden_tokenizer):
    forgets = OWN.replace("{{ m.content }}", "{{ m.content if loop.last or m.role != 'assistant' }}")
    place = published(tmp_path / "m", golden_tokenizer, forgets)
    short = [r for r in records_of("conversations", 30) if sum(m["role"] == "assistant" for m in r["messages"]) == 1]
    assert dataset(tmp_path / "short", "conversations", short, tokenizer=place, template="own").documents == len(short)
    with pytest.raises(ValueError, match=r"data\.jsonl:\d+: the tokens of the conversation with turn \d+ do not begin"):
        dataset(tmp_path, "conversations", records_of("conversations", 30), tokenizer=place, template="own")


def test_what_cannot_be_asked(tmp_path):
    records = records_of("conversations", 3)
    with pytest.raises(ValueError, match="template 'alpaca' is not one of"):
        dataset(tmp_path, "conversations", records, template="alpaca")
    with pytest.raises(ValueError, match="bpe:300 is trained here and has no template of its own"):
        dataset(tmp_path, "conversations", records, tokenizer="bpe:300", template="own")
    with pytest.raises(ValueError, match=r"is a directory without tokenizer.json"):
        dataset(tmp_path, "conversations", records, tokenizer=tmp_path)


def test_notes(tmp_path):
    summary = dataset(tmp_path, "conversations", records_of("conversations", 5))
    assert any("has no <|im_start|>: text to it; in place of <|im_end|> the separator" in n for n in summary.notes)
    plain = dataset(tmp_path, "conversations", [{"prompt": "a", "completion": "b"}], "plain", template="plain")
    assert plain.notes == ("no validation split: there is only one document",)


def test_kept_templates(tmp_path):
    (tmp_path / "chat.json").write_text(kept_text(Chat({"a": 1}, {}, "plain"), "f"))
    assert read_kept(tmp_path, "f") == Chat({"a": 1}, {}, "plain")
    assert read_kept(tmp_path, "g") is None


def test_datasets_of_text_have_no_word_of_examples(corpus, tmp_path):
    prepare(text_source([corpus]), "byte", tmp_path / "text")
    assert "examples" not in json.loads((tmp_path / "text" / "index.json").read_text())
    assert template_of(tmp_path / "text") is None
    with pytest.raises(ValueError, match="holds text, not conversations"):
        open_example_store(tmp_path / "text")


def test_roles_of_the_store_are_those_of_its_tokens(tmp_path):
    dataset(tmp_path, "pairs", records_of("pairs", 9), shard_tokens=11)
    store = open_example_store(tmp_path / "data")
    whole = store.roles.read(0, store.tokens.num_tokens)
    assert np.array_equal(whole, np.concatenate([roles for _, roles in documents(store)]))
    assert set(whole.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("kind", "record", "lines"),
    [
        ("conversations", {"prompt": "a", "completion": "b"}, ["<separator>a{+b<separator>+}"]),
        ("pairs", {"prompt": "a", "chosen": "b", "rejected": "c"},
         ["<separator>a{+b<separator>+}", "<separator>a{-c<separator>-}"]),
        ("prompts", {"prompt": "a", "answer": "é"}, ["<separator>a", '{"answer": "é"}']),
    ],
)  # fmt: skip
def test_show_marks_what_is_trained(tmp_path, capsys, kind, record, lines):
    dataset(tmp_path, kind, [record], template="plain")
    show_dataset(tmp_path / "data", documents=3, characters=400)
    out = capsys.readouterr().out
    assert out.endswith(f"--- train, {kind[:-1]} 1 of 1\n" + "".join(f"{line}\n" for line in lines))
    assert "template plain: an answer ends at token 256" in out
    assert f"train: 1 {kind}, " in out
    assert ("are trained" in out) == (kind != "prompts")
