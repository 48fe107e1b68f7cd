"""Text survives its tokenizer, and no text can pose as a separator."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxscale.data.tokenizer import load_tokenizer, train_bpe

SAMPLE = ["the cat sat on the mat\n" * 20, "def main():\n    return 'žluťoučký'\n" * 10]


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(iter(SAMPLE), 280)


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_byte_round_trip(text):
    tokenizer = load_tokenizer("byte")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.size == len(text.encode())
    assert (ids < 256).all()


def test_byte_identity():
    tokenizer = load_tokenizer("byte")
    assert (tokenizer.vocab_size, tokenizer.separator_id, len(tokenizer.fingerprint)) == (257, 256, 64)
    assert tokenizer.encode("a\0ž").tolist() == [97, 0, 197, 190]
    assert tokenizer.decode([256, 97, 256, 255, 300]) == "a\ufffd"


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_bpe_round_trip(bpe, text):
    assert bpe.decode(bpe.encode(text)) == text


def test_bpe_merges_and_batches(bpe):
    ids = bpe.encode(SAMPLE[0])
    assert len(ids) < len(SAMPLE[0]) / 2
    assert bpe.vocab_size == 280
    assert [b.tolist() for b in bpe.encode_batch(SAMPLE)] == [bpe.encode(text).tolist() for text in SAMPLE]


def test_literal_separator_is_text(bpe):
    text = f"GPT-2 ends with {bpe.separator} they say"
    ids = bpe.encode(text)
    assert bpe.separator_id not in ids
    assert bpe.decode([bpe.separator_id, *ids, bpe.separator_id]) == text


def test_save_and_load_keep_identity(bpe, tmp_path):
    path = bpe.save(tmp_path)
    loaded = load_tokenizer(path)
    assert loaded.fingerprint == bpe.fingerprint
    assert (loaded.separator, loaded.separator_id) == (bpe.separator, bpe.separator_id)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    assert load_tokenizer(path).fingerprint == bpe.fingerprint


def make_file(tmp_path, *, special=(), plain=(), change=lambda content: None):
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.train_from_iterator(SAMPLE, trainers.BpeTrainer(vocab_size=280, show_progress=False))
    library.add_tokens(list(plain))
    library.add_special_tokens(list(special))
    content = json.loads(library.to_str())
    change(content)
    path = tmp_path / "their-tokenizer.json"
    path.write_text(json.dumps(content))
    return path


def test_separator_preference(tmp_path):
    tokenizer = load_tokenizer(make_file(tmp_path, special=["<s>", "</s>", "<pad>"]))
    assert tokenizer.separator == "</s>"
    assert tokenizer.vocab_size == tokenizer.separator_id + 2
    assert tokenizer.separator_id not in tokenizer.encode("a</s>b")


def test_explicit_separator_becomes_special(tmp_path):
    path = make_file(tmp_path, plain=["<sep>"], special=["</s>"])
    tokenizer = load_tokenizer(path, separator="<sep>")
    assert tokenizer.separator == "<sep>"
    assert tokenizer.separator_id not in tokenizer.encode("a<sep>b")
    assert tokenizer.fingerprint != load_tokenizer(path).fingerprint


def test_truncation_and_padding_are_off(tmp_path):
    def truncate(content):
        content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        content["padding"] = {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        }

    tokenizer = load_tokenizer(make_file(tmp_path, special=["</s>"], change=truncate))
    short, long = tokenizer.encode_batch(["a", "the cat sat on the mat"])
    assert len(short) == 1
    assert len(long) > 4


def test_no_separator(tmp_path):
    path = make_file(tmp_path, special=["<weird>"])
    with pytest.raises(ValueError, match=r"--separator TOKEN.*<weird>"):
        load_tokenizer(path)
    assert load_tokenizer(path, separator="<weird>").separator == "<weird>"
    with pytest.raises(ValueError, match="'<nope>' is not a token"):
        load_tokenizer(path, separator="<nope>")


def test_bad_specs(tmp_path):
    (tmp_path / "junk.json").write_text("{}")
    with pytest.raises(ValueError, match="not a Hugging Face tokenizer"):
        load_tokenizer(tmp_path / "junk.json")
    with pytest.raises(ValueError, match="neither `byte` nor a file"):
        load_tokenizer("gpt2")
    with pytest.raises(ValueError, match="leave out --separator"):
        load_tokenizer("byte", separator="x")
    with pytest.raises(ValueError, match="257"):
        train_bpe(iter(SAMPLE), 100)


def words(tmp_path, **model):
    """A tokenizer of whole words, in a file."""
    added = [{"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True}]  # fmt: skip
    values = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
              "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model}  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(values))
    return path


def test_a_tokenizer_that_makes_the_library_panic(bpe, tmp_path, capfd):
    values = json.loads(bpe.content)
    values["model"]["continuing_subword_prefix"] = "\u3c70"  # longer than what the merges would take it off
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="is not a Hugging Face tokenizer file"):
        load_tokenizer(tmp_path / "tokenizer.json")
    assert not capfd.readouterr().err  # the panic itself goes nowhere


def test_a_text_that_a_tokenizer_cannot_encode(tmp_path):
    path = words(tmp_path, type="WordLevel", vocab={"<s>": 0, "one": 1}, unk_token="[none]")
    with pytest.raises(ValueError, match="cannot encode a text"):
        load_tokenizer(path).encode("two")


def test_token_ids_beyond_int32(tmp_path):
    path = words(tmp_path, type="WordLevel", vocab={"<s>": 0, "one": 2**32 - 1}, unk_token="<s>")
    with pytest.raises(ValueError, match="a token of id 4294967295, beyond int32"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    ("single", "separator"),
    [("<s> $A", "<s>"), ("$A", "</s>"), ("<s> $A </s>", "</s>"), ("$A </s>", "</s>")],
)
def test_the_separator_is_what_the_file_itself_puts_before_a_text(tmp_path, single, separator):
    def template(library):
        processors = tokenizers.processors
        ids = [(t, library.token_to_id(t)) for t in ("<s>", "</s>")]
        library.post_processor = processors.Sequence(
            [processors.ByteLevel(), processors.TemplateProcessing(single=single, special_tokens=ids)]
        )
        return library

    path = make_file(tmp_path, special=["<s>", "</s>"])
    path.write_text(template(tokenizers.Tokenizer.from_file(str(path))).to_str())
    assert load_tokenizer(path).separator == separator
    assert load_tokenizer(path, separator="</s>").separator == "</s>"
