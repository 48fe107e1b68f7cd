"""Chat: templates as transformers renders and encodes them, from a published model to a run and back; where it ends."""

import builtins
import json
import shutil

import pytest
import tokenizers
from support import make_config
from test_bad_input import Shell

import jaxscale
from jaxscale.data.chat import KEPT, Chat, read_published, render
from jaxscale.data.prepare import prepare
from jaxscale.data.sources import text_source
from jaxscale.data.tokenizer import load_tokenizer, train_bpe
from jaxscale.rollouts.sampler import Sampler
from jaxscale.serving.chat import as_chat
from jaxscale.training.trainer import train

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
CHATML = """{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
        {{- '<|im_start|>system\nYou are a helpful ship.<|im_end|>\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA3 = """{{- bos_token }}
{%- set ns = namespace(system="") %}
{%- for message in messages %}
    {%- if message.role == "system" %}{%- set ns.system = message.content | trim %}{%- continue %}{%- endif %}
    {%- if loop.index0 == 0 or ns.system %}
        {{- "<|start_header_id|>system<|end_header_id|>\n\nToday: " + strftime_now("%d %b %Y") }}
        {{- "\n" + ns.system + eos_token }}
    {%- endif %}
    {%- generation %}
    {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\n\n" + message["content"] | trim + "<|eot_id|>" }}
    {%- endgeneration %}
    {{- {"role": message.role, "a": "<é>"} | tojson }}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}{%- endif %}"""
RAISES = """{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "raises": RAISES}
PROMPTS = ["Hello", "  two\nlines <|im_end|> and é 🐎 ", "{{ 7 * 7 }} {% raw %}", ""]


@pytest.fixture(scope="module")
def tokenizer_text():
    text = train_bpe(
        iter(["the ship and the wind and a lamp, system user assistant You are helpful"] * 20), 300
    ).content
    library = tokenizers.Tokenizer.from_str(text)
    library.add_special_tokens(SPECIAL)
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", library.token_to_id("<|begin_of_text|>"))]
    )
    return library.to_str()


def write_tokenizer(directory, tokenizer_text, template, **changes):
    """As published files: tokenizer.json, tokenizer_config.json, generation_config.json."""
    directory.mkdir(exist_ok=True, parents=True)
    (directory / "tokenizer.json").write_text(tokenizer_text)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": {"content": "<|im_end|>", "lstrip": False, "rstrip": False, "__type": "AddedToken"},
        "pad_token": "<|endoftext|>",
        "chat_template": template,
        "model_max_length": 512,
    } | changes
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


# --- against transformers -------------------------------------------------------------------------------------


def by_transformers(directory, messages):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return text, ids


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("system", [None, "Be brief.\n"])
@pytest.mark.parametrize("form", ["string", "list", "file"])
@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_text_and_tokens_are_those_of_transformers(tokenizer_text, tmp_path, name, form, system):
    template = TEMPLATES[name]
    if form == "list":
        template = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    directory = write_tokenizer(tmp_path / "model", tokenizer_text, "not this" if form == "file" else template)
    if form == "file":
        (directory / "chat_template.jinja").write_text(TEMPLATES[name])
    codec = load_tokenizer(directory / "tokenizer.json")
    manner = as_chat(f"hf:{directory}", codec, system)
    for prompt in PROMPTS:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        text, ids = by_transformers(directory, messages)
        assert render(read_published(directory), messages, where="it") == text
        assert manner.encode(prompt) == ids
        assert codec.id_of("<|im_start|>" if name == "chatml" else "<|eot_id|>") in ids


@pytest.mark.filterwarnings("ignore")
def test_older_files_name_special_tokens_apart(tokenizer_text, tmp_path):
    directory = write_tokenizer(tmp_path / "model", tokenizer_text, LLAMA3)
    older = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|eot_id|>"}}
    (directory / "special_tokens_map.json").write_text(json.dumps(older))
    messages = [{"role": "user", "content": "Hello"}]
    text, _ = by_transformers(directory, messages)
    assert render(read_published(directory), messages, where="it") == text
    assert text.startswith("<|endoftext|>")


# --- what is refused ------------------------------------------------------------------------------------------

USER = [{"role": "user", "content": "x"}]
REFUSED = {
    RAISES: "System role not supported",
    "{{ messages | nope }}": "No filter named 'nope'",
    "{{ ''.__class__.__mro__ }}": "access to attribute '__class__' of 'str' object is unsafe",
    "{{ messages.append(1) }}": "access to attribute 'append' of 'list' object is unsafe",
    "{{ 1 / 0 }}": "division by zero",
    "{% for x in range(10000000) %}{% endfor %}": "Range too big",
    "{{ strftime_now.__globals__.x }}": "unsafe",
    "{{ dict.__class__.x }}": "unsafe",
}


@pytest.mark.parametrize(("template", "message"), REFUSED.items())
def test_what_a_template_refuses_is_one_line(template, message):
    messages = [{"role": "system", "content": "x"}, *USER]
    with pytest.raises(
        ValueError, match=r"^the chat template of it (refuses this conversation|cannot be read): [^\n]*$"
    ) as error:
        render(Chat({"chat_template": template}, {}), messages, where="it")
    assert message in str(error.value)


@pytest.mark.parametrize("template", [None, [], [{"name": "rag", "template": "x"}], 7])
def test_no_template(template):
    with pytest.raises(ValueError, match="it has no chat template"):
        render(Chat({"chat_template": template}, {}), USER, where="it")


def test_without_jinja2_the_extra_is_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name.startswith("jinja2"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"chat templates need jinja2: pip install 'jaxscale\[chat\]'"):
        render(Chat({"chat_template": "x"}, {}), USER, where="it")


def test_an_old_jinja2_is_refused(monkeypatch):
    monkeypatch.setattr("jinja2.__version__", "3.1.5")
    with pytest.raises(ValueError, match=r"need jinja2 3\.1\.6 or newer, and there is 3\.1\.5"):
        render(Chat({"chat_template": "x"}, {}), USER, where="it")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("content", ["{", "[1]", "\xff"])
def test_damaged_files_are_named(tokenizer_text, tmp_path, name, content):
    directory = write_tokenizer(tmp_path / "model", tokenizer_text, CHATML)
    (directory / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=name):
        read_published(directory)


# --- from a published model to a run, and back ----------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory, tokenizer_text):
    """A published chat model: exported from a run that was trained for a step."""
    place = tmp_path_factory.mktemp("chat")
    write_tokenizer(place / "bare", tokenizer_text, None)
    (place / "text.txt").write_text("the ship and the wind\n" * 60)
    prepare(text_source([place / "text.txt"]), place / "bare" / "tokenizer.json", place / "data", validation_tail=0.3)
    size = load_tokenizer(place / "bare" / "tokenizer.json").vocab_size
    sizes = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 32, "vocab_size": size}
    config = make_config(
        model=sizes,
        steps=1,
        out=str(place / "run"),
        data={"kind": "tokens", "path": str(place / "data"), "seq_len": 16},
        runtime={"platform": "cpu", "simulated_devices": 1},
    )
    train(config)
    with pytest.MonkeyPatch.context() as patch:
        Shell(NoCapture(), patch)("export", place / "run", place / "model", "--dtype", "float32")
    return place / "model"


class NoCapture:
    def readouterr(self):
        return "", ""


@pytest.fixture
def shell(capfd, monkeypatch):
    return Shell(capfd, monkeypatch)


@pytest.fixture
def model(published, tokenizer_text, tmp_path):
    shutil.copytree(published, tmp_path / "model")
    write_tokenizer(tmp_path / "model", tokenizer_text, CHATML, auto_map={"AutoTokenizer": ["x.X", None]})
    return tmp_path / "model"


ONE = ["mesh={data: 1}", "runtime.simulated_devices=1", "runtime.platform=cpu"]


def seen(monkeypatch):
    """What a sampler is given, and the tokens that it returns before each stop."""
    found, real = [], Sampler.__call__

    def keep(self, params, prompts, **options):
        out = real(self, params, prompts, **options)
        found.append((prompts, options["stop_ids"], out.rows(stop=False)))
        return out

    monkeypatch.setattr(Sampler, "__call__", keep)
    return found


def test_a_run_chats_and_stops_at_its_end_of_turn(model, tmp_path, shell, monkeypatch):
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5], "temperature": 0.7}))
    shell.good("import", model, "--out", tmp_path / "run", *ONE)
    calls, codec = seen(monkeypatch), load_tokenizer(model / "tokenizer.json")
    words = ["generate", tmp_path / "run", "--chat", "--temperature", 0, "--max-new-tokens", 12, "--prompt"]
    out = shell.good(*words, "the wind", "--system", "Be a ship.")
    prompts, stops, (free,) = calls.pop()
    text = "<|im_start|>system\nBe a ship.<|im_end|>\n<|im_start|>user\nthe wind<|im_end|>\n<|im_start|>assistant\n"
    assert prompts == [codec.encode_rendered(text).tolist()]
    assert set(stops) == {codec.separator_id, codec.id_of("<|im_end|>"), 3, 5}
    assert len(free) == 12
    assert out == codec.decode(free) + "\n\n"  # the answer alone

    kept = json.loads((tmp_path / "run" / KEPT).read_text())
    kept["generation_config"]["eos_token_id"] = free[4]
    (tmp_path / "run" / KEPT).write_text(json.dumps(kept))
    shell.good(*words, "the wind", "--system", "Be a ship.")
    assert calls.pop()[2] == [free[: free.index(free[4])]]


def test_the_library_chats_with_a_published_model_as_the_verb_does_with_its_run(model, tmp_path, shell):
    shell.good("import", model, "--out", tmp_path / "run", *ONE)
    words = ["--chat", "--temperature", 0, "--max-new-tokens", 9, "--prompt", "the wind", "--system", "Be a ship."]
    out = shell.good("generate", tmp_path / "run", *words)
    loaded = jaxscale.load(f"hf:{model}", mesh={"fsdp": 4, "tensor": 2}, **{"step.compute_dtype": "float32"})
    options = {"max_new_tokens": 9, "temperature": 0, "chat": True, "system": "Be a ship."}
    text = jaxscale.generate(loaded, "the wind", **options)[0]
    assert text + "\n\n" == out
    as_json = json.loads(shell.good("generate", tmp_path / "run", *words, "--json"))
    assert as_json == [{"prompt": "the wind", "text": text}]
    assert loaded.step is None
    assert f"<hf:{model}: " in repr(loaded)
    with pytest.raises(ValueError, match="step 3 is of a run's checkpoints"):
        jaxscale.load(f"hf:{model}", 3)


def test_without_chat_a_prompt_begins_a_document(model, tmp_path, shell, monkeypatch):
    """The separator comes first and is the only end, and special tokens in the text stay text."""
    shell.good("import", model, "--out", tmp_path / "run", *ONE)
    calls, codec = seen(monkeypatch), load_tokenizer(model / "tokenizer.json")
    shell.good("generate", tmp_path / "run", "--max-new-tokens", 1, "--prompt", "a <|im_end|>")
    prompts, stops, _ = calls.pop()
    assert prompts == [[codec.separator_id, *codec.encode("a <|im_end|>").tolist()]]
    assert codec.id_of("<|im_end|>") not in prompts[0]
    assert stops == (codec.separator_id,)


def test_an_export_writes_back_what_was_imported(model, tmp_path, shell):
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5], "temperature": 0.7}))
    (model / "chat_template.jinja").write_text(LLAMA3)
    before = json.loads((model / "tokenizer_config.json").read_text())
    shell.good("import", model, "--out", tmp_path / "run", *ONE)
    shell.good("export", tmp_path / "run", tmp_path / "out", "--dtype", "float32")
    after = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    before.pop("auto_map")
    assert after == before | {"chat_template": LLAMA3}
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    codec = load_tokenizer(tmp_path / "out" / "tokenizer.json")
    assert generation["eos_token_id"] == [3, 5, codec.separator_id]  # at which `generate` ends too
    assert generation["temperature"] == 0.7
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == generation["eos_token_id"]
    assert as_chat(f"hf:{tmp_path / 'out'}", codec, None).encode("x") == as_chat(f"hf:{model}", codec, None).encode("x")


def test_a_run_that_begins_from_a_chat_model_keeps_its_template(model, tmp_path, shell):
    """With the same tokenizer; also from a run, and still there when the run goes on."""
    text = tmp_path / "text.txt"
    text.write_text("the ship and the wind\n" * 60)
    for name, source in (("same", model / "tokenizer.json"), ("bytes", "byte")):
        shell.good("data", "prepare", "--text", text, "--tokenizer", source, "--out", tmp_path / name)
    data = ["data.kind=tokens", "data.seq_len=16", "metrics.tensorboard=false", *ONE]
    words = ["train", f"hf:{model}", "steps=1", *data]
    shell.good(*words, f"out={tmp_path / 'a'}", f"data.path={tmp_path / 'same'}")
    shell.good(*words, f"out={tmp_path / 'b'}", f"data.path={tmp_path / 'bytes'}", "data.verify=size")
    assert (tmp_path / "a" / KEPT).is_file()
    assert not (tmp_path / "b" / KEPT).exists()
    (model / "tokenizer.json").unlink()
    shell.good("train", tmp_path / "a", "steps=2")
    assert (tmp_path / "a" / KEPT).is_file()
    shell.good("train", tmp_path / "a", "steps=1", f"out={tmp_path / 'c'}", f"init={{from: {tmp_path / 'a'}}}")
    assert (tmp_path / "c" / KEPT).read_text() == (tmp_path / "a" / KEPT).read_text()


def test_chats_that_cannot_be_are_refused(model, tmp_path, shell):
    shell.good("import", model, "--out", tmp_path / "run", *ONE)
    run = tmp_path / "run"
    assert "--chat has no message; give it with --prompt" in shell.refused("generate", run, "--chat")
    assert "--system is a message of a chat; give --chat too" in shell.refused("generate", run, "--system", "x")
    kept = json.loads((run / KEPT).read_text())

    def refused(**changes):
        values = kept | {"tokenizer_config": kept["tokenizer_config"] | changes}
        (run / KEPT).write_text(json.dumps(values))
        return shell.refused("generate", run, "--chat", "--prompt", "x", "--system", "y")

    assert "System role not supported" in refused(chat_template=RAISES)
    assert "has no chat template" in refused(chat_template=None)
    assert "eos_token '<|nope|>' of" in refused(eos_token="<|nope|>")
    (run / KEPT).write_text(json.dumps(kept | {"fingerprint": "another"}))
    assert "has no chat template" in shell.refused("generate", run, "--chat", "--prompt", "x")
    (run / KEPT).write_text("{")
    assert "chat.json is damaged" in shell.refused("generate", run, "--chat", "--prompt", "x")


def test_a_damaged_template_stops_an_import_before_it_writes(model, tmp_path, shell):
    (model / "tokenizer_config.json").write_text("{")
    assert "tokenizer_config.json is damaged" in shell.refused("import", model, "--out", tmp_path / "run", *ONE)
    assert not (tmp_path / "run").exists()
