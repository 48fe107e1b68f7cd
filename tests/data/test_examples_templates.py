"""Templates: the tokens and masks that transformers says, prefixes that hold or are refused, every tokenizer."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxscale.data.chat import Chat
from jaxscale.data.examples.masks import encode_examples
from jaxscale.data.examples.records import to_example
from jaxscale.data.examples.templates import NAMED, make_template
from jaxscale.data.tokenizer import character_tokenizer, load_tokenizer, train_bpe

HERE = Path(__file__).parent / "templates"
GOLDEN = json.loads((HERE / "golden.json").read_text(encoding="utf-8"))
FILE = load_tokenizer(HERE / "tokenizer.json")
BYTE = load_tokenizer("byte")


def of(template, kind="conversations", **record):
    """The documents of one record, or its refusal raised."""
    (found,) = encode_examples(template, [to_example(kind, record, "f:1", "f:1")])
    if isinstance(found, ValueError):
        raise found
    return found


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def trained(template, marked):
    """The text of each trained run of tokens, with special tokens as they are spelled."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], marked.roles, [0]]) > 0))
    return [shown(template, marked.ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def shown(template, ids):
    separator = template.codec.separator_id
    return "".join("<SEP>" if i == separator else template.codec.decode([int(i)]) for i in ids)


# --- against transformers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['template']}-{len(case['messages'])}")
def test_tokens_and_masks_are_those_of_transformers(case):
    template = make_template(case["template"], FILE, None, where="golden")
    (marked,) = of(template, messages=case["messages"])
    assert marked.ids.tolist() == case["tokens"]
    assert marked.roles.tolist() == case["roles"]
    assert marked.roles[-2:].any()  # the end of the last turn is trained


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['template']}-{len(case['messages'])}")
def test_a_prompt_is_what_is_sampled_after(case):
    *before, answer = case["messages"]
    template = make_template(case["template"], FILE, None, where="golden")
    (prompt,) = of(template, "prompts", prompt=before)
    assert prompt.ids.tolist() == case["prompt"]
    assert not prompt.roles.any()
    (whole,) = of(template, prompt=before, completion=[answer])
    assert whole.ids.tolist() == case["tokens"]
    assert int(np.flatnonzero(whole.roles)[0]) == len(prompt.ids)  # trained from where the sampler begins


def test_the_golden_files_are_what_transformers_says_now(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.delitem(sys.modules, "make", raising=False)
    import make

    assert make.by_transformers() == GOLDEN


# --- what is trained ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("tokenizer", ["byte", "bpe", "char", "file"])
def test_every_template_goes_with_every_tokenizer(name, tokenizer):
    characters = "".join(named.text for named in NAMED.values()) + "the ship?"
    codec = {
        "byte": lambda: BYTE,
        "bpe": lambda: train_bpe(iter(["the ship and the wind"] * 20), 280),
        "char": lambda: character_tokenizer(characters),
        "file": lambda: FILE,
    }[tokenizer]()
    template = make_template(name, codec, None, where=tokenizer)
    (marked,) = of(template, messages=[user("the ship?"), assistant("the wind"), user("so?"), assistant("the ship?")])
    first, second = trained(template, marked)
    thoughts = "<think>\n\n</think>\n\n" if name == "qwen3" else ""
    end = "<SEP>" if tokenizer != "file" or name == "plain" else NAMED[name].end
    assert (first, second) == (f"{thoughts}the wind{end}", f"{thoughts}the ship?{end}")
    assert marked.ids[np.flatnonzero(marked.roles)[-1]] in template.stop_ids
    assert template.codec.separator_id in template.stop_ids
    assert bool(template.lacking) == (tokenizer != "file" and name != "plain")


def test_masks_are_by_position():
    """An assistant that says what the user said: the same tokens, of which one part is trained."""
    template = make_template("plain", BYTE, None, where="byte")
    (marked,) = of(template, prompt="ab", completion="ab")
    assert marked.ids.tolist() == [256, 97, 98, 97, 98, 256]
    assert marked.roles.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_prompt_and_its_completion_are_encoded_apart():
    """As a sampler has them: tokens that would merge over the border do not."""
    codec = train_bpe(iter(["the ship the ship"] * 20), 270)
    whole = codec.encode("the ship")
    template = make_template("plain", codec, None, where="bpe")
    (marked,) = of(template, prompt="the sh", completion="ip")
    parts = [codec.encode("the sh"), codec.encode("ip")]
    assert marked.ids.tolist() == [codec.separator_id, *np.concatenate(parts).tolist(), codec.separator_id]
    assert len(np.concatenate(parts)) > len(whole)


def test_earlier_answers_of_a_prompt_are_not_trained():
    template = make_template("chatml", FILE, None, where="file")
    (marked,) = of(template, prompt=[user("2:"), assistant("2"), user("4:")], completion=[assistant("4")])
    assert trained(template, marked) == ["4<|im_end|>"]


def test_a_pair_has_two_documents():
    template = make_template("plain", BYTE, None, where="byte")
    chosen, rejected = of(template, "pairs", prompt="p", chosen="yes", rejected="n")
    assert chosen.ids.tolist() == [256, 112, *b"yes", 256]
    assert chosen.roles.tolist() == [0, 0, 1, 1, 1, 1]
    assert rejected.roles.tolist() == [0, 0, 2, 2]


# --- what is refused ------------------------------------------------------------------------------------------


def test_tokens_that_merge_over_the_border_are_refused():
    template = make_template("chatml", train_bpe(iter(["a\n\n\nb"] * 20), 275), None, where="bpe")
    with pytest.raises(ValueError, match=r"f:1: the tokens .* up to turn 2 do not begin .*: token \d+ is .*whole"):
        of(template, messages=[user("a"), assistant("\n\nb")])


@pytest.mark.parametrize("text", ["<|im_end|>", "a <|im_start|> b", "<|endoftext|>", "<|eot_id|>"])
@pytest.mark.parametrize("who", ["user", "assistant", "system"])
def test_a_special_token_in_a_message_is_refused(text, who):
    messages = [user("a"), assistant("b")]
    messages = [{"role": who, "content": text}, *messages] if who != "assistant" else [user("a"), assistant(text)]
    with pytest.raises(ValueError, match=rf"a {who} message spells the special token '<\|\w+\|>'"):
        of(make_template("chatml", FILE, None, where="file"), messages=messages)


def test_plain_reads_a_special_token_as_text():
    template = make_template("plain", FILE, None, where="file")
    (marked,) = of(template, prompt="<|im_end|>", completion="<|endoftext|>")
    assert [i for i in marked.ids if i == FILE.separator_id] == [FILE.separator_id] * 2
    assert FILE.id_of("<|im_end|>") not in marked.ids


@pytest.mark.parametrize(
    "messages",
    [[{"role": "system", "content": "s"}, user("a"), assistant("b")], [user("a"), user("b"), assistant("c")]],
)
def test_plain_has_no_place_for_other_turns(messages):
    with pytest.raises(ValueError, match="plain takes turns of user and assistant"):
        of(make_template("plain", BYTE, None, where="byte"), messages=messages)


def test_tool_calls_need_the_own_template():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    with pytest.raises(ValueError, match="chatml has no place for tool_calls"):
        of(make_template("chatml", FILE, None, where="file"), messages=[user("a"), call])


# --- a tokenizer's own template -------------------------------------------------------------------------------

SIMPLE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"  # noqa: E501


def own(text, **config):
    published = Chat({"chat_template": text, "eos_token": "<|im_end|>"} | config, {"eos_token_id": 3})
    return make_template("own", FILE, published, where="m")


def test_the_own_template():
    template = own(SIMPLE)
    (marked,) = of(template, messages=[user("a"), assistant("b")])
    assert trained(template, marked) == ["b<|im_end|>"]
    assert template.stop_ids == (FILE.separator_id, 3, FILE.id_of("<|im_end|>"))


def test_the_end_of_turn_is_found_though_no_file_names_it():
    template = own(SIMPLE.replace("{{ eos_token }}", "<|eot_id|>"))
    assert FILE.id_of("<|eot_id|>") in template.stop_ids


def test_the_own_template_takes_tools():
    template = own("{% if tools %}{{ tools | tojson }}{% endif %}" + SIMPLE)
    (marked,) = of(template, messages=[user("a"), assistant("b")], tools=[{"name": "wind"}])
    assert "wind" in FILE.decode(marked.ids)
    with pytest.raises(ValueError, match="tools is no list"):
        of(template, messages=[user("a"), assistant("b")], tools="wind")


FORGETS = "{% for m in messages %}[{{ m.role }}]{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"  # noqa: E501


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FORGETS, "with turn 2 do not begin those of the whole: token"),
        (SIMPLE.replace("[assistant]", "[bot]"), "up to turn 2 do not begin those of the whole"),
        ("{{ raise_exception('no') }}", "refuses this conversation: no"),
    ],
)
def test_what_is_not_its_own_beginning_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        of(own(text), messages=[user("a"), assistant("bbb"), user("c"), assistant("d")])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{% if %}", "cannot be read"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "writes no special token after an answer"),
        (None, "has no template of its own; give --tokenizer DIR/tokenizer.json"),
    ],
)
def test_an_own_template_that_cannot_be_used(text, said):
    with pytest.raises(ValueError, match=said):
        own(text)


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match="template 'alpaca' is not one of chatml, llama3, qwen3, plain, own"):
        make_template("alpaca", BYTE, None, where="byte")
