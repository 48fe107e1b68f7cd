"""What a run file may say, what it may not, and that the shipped ones are the models they are named after."""

import copy
import json
import math
import re

import pytest
import yaml

from jaxscale import config as cfg
from jaxscale.config import dump_config, load_config, overrides, shipped_configs
from jaxscale.config.mesh_text import mesh_text, read_mesh, split_axes
from jaxscale.predict.costs import parameter_counts, train_flops_per_token
from jaxscale.training.layout import parameter_layout

RUNS = sorted(shipped_configs().glob("*.yaml"))
MODELS = sorted((shipped_configs() / "models").glob("*.yaml"))
PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "llama3.2-1b": 1_235_814_400,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "qwen3-8b": 8_190_735_360,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "gemma-3-1b": 999_885_952,
    "gemma-3-27b": 27_009_346_304,
    "smollm2-135m": 134_515_008,
}
MODELS_ALONE = {  # without a run file
    "gemma-2-9b": 9_241_705_984,
    "deepseek-v3": 671_026_419_200,
    "gpt-oss-120b": 116_829_156_672,
    "granite-3.3-8b": 8_170_864_640,
    "olmo-2-7b": 7_298_617_344,
    "phi-3-mini-4k": 3_821_079_552,
    "smollm3-3b": 3_075_098_624,
}
MODEL = {"vocab_size": 257, "num_layers": 1, "embed_dim": 32, "num_heads": 2, "mlp_dim": 64}
BASE = {"name": "t", "steps": 2, "model": MODEL, "data": {"kind": "synthetic", "batch_size": 8, "seq_len": 32}}


@pytest.fixture
def base(tmp_path):
    """A small valid run file."""
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


def refused(path, *overrides: str) -> str:
    """The message with which a config is refused: one line."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_config(path, overrides)
    assert type(error.value) is ValueError
    message = str(error.value)
    assert message.strip()
    assert "\n" not in message
    return message


# --- shipped configs ------------------------------------------------------------------------------------------


def test_the_shipped_configs_are_the_promised_ones():
    long = {"llama3.1-8b-64k", "llama3.1-8b-128k", "llama3.1-8b-1m"}
    learned = {"llama3.1-8b-dpo", "llama3.1-8b-grpo"}
    assert {p.stem for p in RUNS} == {*PUBLISHED, *long, *learned, "quickstart", "quickstart-experts"}
    assert {p.stem for p in MODELS} == {*PUBLISHED, *MODELS_ALONE}


@pytest.mark.parametrize("path", [*RUNS, *MODELS], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_shipped_configs_load_and_round_trip(path, tmp_path):
    config = load_config(path)
    assert config.model.name
    written = tmp_path / "again.yaml"
    written.write_text(dump_config(config))
    assert load_config(written) == config


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_run_files_say_command_hardware_and_expectation(path):
    header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert re.search(rf"^#\s+jaxscale train {re.escape(path.stem)}\b", header, re.M)
    assert re.search(r"^# For: \S", header, re.M)
    assert re.search(r"^# Expect: \S", header, re.M)
    assert load_config(path.stem).name == path.stem


@pytest.mark.parametrize(("name", "published"), (PUBLISHED | MODELS_ALONE).items())
def test_parameter_counts_are_the_published_ones(name, published):
    """By formula, and counted in the tree of the model itself, on the mesh of its run file."""
    config = load_config(name if name in PUBLISHED else f"models/{name}")
    assert sum(parameter_counts(config.model).values()) == published
    _, rows = parameter_layout(config)
    tables = 1 if config.model.tie_embeddings else 2
    padding = tables * (config.model.padded_vocab_size - config.model.vocab_size) * config.model.embed_dim
    assert sum(math.prod(row.shape) for row in rows) - padding == published


def test_model_file_alone_is_a_run_to_look_at():
    assert load_config("models/llama3.1-8b").model == load_config("llama3.1-8b").model


# --- MFU conventions ------------------------------------------------------------------------------------------


def test_palm_over_causal_flops_of_llama_8b():
    model = load_config("llama3.1-8b").model
    ratio = train_flops_per_token(model, 8192, convention="palm") / train_flops_per_token(model, 8192)
    assert ratio == pytest.approx(1.125, rel=0.005)


def test_sliding_window_flops_count_what_the_mask_shows():
    model = load_config("mistral-7b").model
    window, T = 4096, 8192
    assert model.sliding_window == window

    def attention(seq_len):  # FLOPs of one token's attention
        wide = model.model_copy(update={"sliding_window": None})
        parameters = (
            train_flops_per_token(wide, seq_len) - 6 * model.num_layers * model.num_heads * model.head_size * seq_len
        )
        return train_flops_per_token(model, seq_len) - parameters

    keys = sum(min(t + 0.5, window) for t in range(T)) / T  # a token's own key counts half, as in T/2
    assert attention(T) == pytest.approx(12 * model.num_layers * model.num_heads * model.head_size * keys, rel=1e-3)
    wide = model.model_copy(update={"sliding_window": 10 * T})
    assert train_flops_per_token(wide, T) == train_flops_per_token(model.model_copy(update={"sliding_window": None}), T)


# --- overrides ------------------------------------------------------------------------------------------------


def test_overrides_are_yaml_values(base):
    config = load_config(
        base,
        ["steps=7", "optimizer.learning_rate=1e-3", "step.remat={q: save}", "runtime.compilation_cache=null",
         "checkpoint.resume=no", "sharding.parameters.embed=[fsdp, tensor]", "mesh.tensor=2", "data.seq_len=64"],
    )  # fmt: skip
    assert config.steps == 7
    assert config.optimizer.learning_rate == 1e-3
    assert config.step.remat == {"q": "save"}
    assert config.runtime.compilation_cache is None
    assert config.checkpoint.resume is False
    assert config.sharding.parameters == {"embed": ["fsdp", "tensor"]}
    assert (config.mesh.tensor, config.data.seq_len, config.data.batch_size) == (2, 64, 8)


def test_override_reaches_into_a_model_that_is_named_by_its_file():
    config = load_config("gpt2-124m", ["model.num_layers=2", "model.sliding_window=64"])
    assert (config.model.num_layers, config.model.sliding_window, config.model.embed_dim) == (2, 64, 768)


def test_model_by_file_with_changes(base, tmp_path):
    config = load_config(base, ["model={file: gpt2-124m, num_layers: 3}"])
    assert (config.model.num_layers, config.model.vocab_size) == (3, 50257)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(MODEL | {"num_layers": 5}))
    assert load_config(base, ["model=mine"]).model.num_layers == 5
    assert load_config(base, ["model.file=mine.yaml", "model.mlp_dim=8"]).model.mlp_dim == 8


SHIPPED = sorted(path for folder in ("", "models") for path in (shipped_configs() / folder).glob("*.yaml"))


def inside_sections(config):
    """Keys of sections in the model, and their values."""
    sections = {key: value for key, value in config.model.model_dump(mode="json").items() if isinstance(value, dict)}
    return {f"model.{key}.{name}": x for key, section in sections.items() for name, x in section.items()}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_one_key_of_a_section_leaves_the_others_as_they_are(path):
    """The model may be inside the file, or named by it."""
    config = load_config(path)
    for key, value in inside_sections(config).items():
        if not isinstance(value, list | dict):
            assert load_config(path, [f"{key}={json.dumps(value)}"]).model == config.model, key


def test_a_file_s_changes_to_a_model_may_be_in_its_sections(base):
    base.write_text(yaml.safe_dump(BASE | {"model": {"file": "mixtral-8x7b", "moe": {"num_experts": 4}}}))
    moe = load_config(base).model.moe
    assert (moe.num_experts, moe.top_k, moe.mlp_dim) == (4, 2, 14336)


def test_overrides_of_a_model_that_is_named_beside_them(base):
    """The name counts first, wherever it stands."""
    for typed in (["model.num_layers=2", "model=gpt2-124m"], ["model=gpt2-124m", "model.num_layers=2"]):
        config = load_config(base, typed)
        assert (config.model.num_layers, config.model.embed_dim) == (2, 768)


def test_later_overrides_win(base):
    assert load_config(base, ["steps=3", "steps=4"]).steps == 4


@pytest.mark.parametrize("override", ["steps", "=3", "", ".steps=3", "model.=3", "model..x=3", "steps 3"])
def test_override_without_key_or_value(base, override):
    assert refused(base, override) == f"command line: override {override!r} is not section.key=value"


@pytest.mark.parametrize("text", ["[", "{a: ", "{a: 1, a: 2}", '"\\q"'])
def test_override_that_is_no_yaml(base, text):
    message = refused(base, f"steps={text}")
    assert message.startswith("command line: override ")
    assert "is not a YAML value" in message


def test_override_into_a_value(base):
    assert "steps is a value, not a section" in refused(base, "steps.foo=3")


SAMPLE = {  # one key of each type that a key has
    str(annotation): key
    for key, annotation in overrides.keys_of(cfg.Config).items()
    if overrides.section_of(annotation) is None and key.split(".")[0] not in ("sharding",)
} | {"model": "model", "axis names": "sharding.parameters.embed", "option": "runtime.compiler_options.xla_flag"}
ODD = (
    "010", "0010", "08", "-010", "1:40", "1:40:00", "1_000", "0x10", "0o10", "0b11", "1e3", "1e-3", "1E3", "1.", ".5",
    "+5", "5.0", "123", "1.10", "yes", "no", "on", "off", "y", "Yes", "ON", "true", "false", "True", "none", "None",
    "null", "~", "", " ", "2024-01-02", "2024-01-02 10:00:00", "try #2", "#2", "a: b", "a:b", "- a", "*a", "&a", "!x",
    "!!int 3", "%x", "@x", "`x`", "|", ">", "?", "=", "<<", " lead", "trail ", " 7 ", "'7'", '"a b"', "'a", 'a"b',
    "[a]", "[010, on]", "{a: b}", "[", "{", "a,b", "1,5", "inf", ".inf", "nan", ".nan", "1/2", "$HOME", "a\\b", "é",
)  # fmt: skip
MEANT = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


def as_typed(value, text: str) -> bool:
    """Is `value` what a person means who types `text`?"""
    bare = text.strip()
    if bare in ("null", "~"):  # the default of `out`
        return value is None or value == "runs/t"
    if isinstance(value, bool):
        return MEANT.get(bare.lower(), {"1": True, "0": False, "y": True}.get(bare)) is value
    if isinstance(value, int | float):
        number = bare.strip("'\"")
        return (int(number, 0) if number[:2] in ("0x", "0o") else float(number)) == value
    if isinstance(value, list):
        return text == f"[{', '.join(value)}]"
    if isinstance(value, dict):
        return text == "{a: b}" and value == {"a": "b"}
    return value == text or (bare[0] in "'\"" and value == bare[1:-1] and bare[-1] == bare[0])


def load_or_message(path, overrides=()) -> tuple[cfg.Config | None, str]:
    try:
        return load_config(path, overrides), ""
    except ValueError as error:
        return None, str(error)


def leaf(config: cfg.Config, key: str):
    value = config.model_dump()
    for name in key.split("."):
        value = value[name]
    return value


@pytest.mark.parametrize("key", SAMPLE.values())
def test_what_is_typed_is_what_is_meant(base, key):
    """Every type of key with every odd text: as it was typed, or refused in one line that names the command line."""
    before = load_config(base).model_dump()
    for text in ODD:
        config, message = load_or_message(base, [f"{key}={text}"])
        if config is None:
            assert message.startswith("command line: "), (key, text, message)
            assert "\n" not in message
            assert key.split(".")[0] in message, (key, text, message)
            continue
        assert as_typed(leaf(config, key), text), (key, text, leaf(config, key))
        after = config.model_dump()
        others = {name for name in before if before[name] != after[name]} - {key.split(".")[0]}
        assert others <= ({"out"} if key == "name" else set()), (key, text, others)


@pytest.mark.parametrize("key", SAMPLE.values())
def test_what_stands_in_a_file_is_what_is_meant(tmp_path, key):
    """The same in a file, where YAML's own marks (comments, lists, anchors) are a file's."""
    for text in (t for t in ODD if not re.search(r"[#&*!%@`|>?\[{\\]|^-|: ", t) and t.strip("'\" ") and "<<" not in t):
        values = inside = copy.deepcopy(BASE)
        *sections, last = key.split(".")
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[last] = "HERE"
        path = tmp_path / "odd.yaml"
        path.write_text(yaml.safe_dump(values).replace("HERE", text))
        config, message = load_or_message(path)
        if config is None:
            assert str(path) in message or "no config models/" in message
        else:
            assert as_typed(leaf(config, key), text.strip()), (key, text, leaf(config, key))


def test_a_written_config_is_read_back_whatever_its_texts(tmp_path, base):
    for text in (t for t in ODD if t.strip() and t not in ("null", "~")):
        config, _ = load_or_message(base, [f"name={text}", f"runtime.compiler_options.xla_flag={text}"])
        if config is None:
            continue
        (tmp_path / "again.yaml").write_text(dump_config(config))
        assert load_config(tmp_path / "again.yaml") == config, text


def test_problems_of_the_file_and_of_the_command_line_are_told_apart(base):
    base.write_text(yaml.safe_dump(BASE | {"seed": -1}))
    message = refused(base, "steps=0")
    assert re.match(r"command line: steps=0: .*; .*base.yaml: seed=-1: ", message)
    assert refused(base, "seed=3", "steps=0").startswith("command line: steps=0")
    assert "base.yaml" not in refused(base, "seed=3", "steps=0")


def test_a_section_that_is_null_in_the_file_is_filled_by_an_override(base):
    base.write_text(yaml.safe_dump(BASE | {"model": MODEL | {"rope_scaling": None}}))
    config = load_config(base, ["model.rope_scaling.factor=4"])
    assert config.model.rope_scaling is not None
    assert config.model.rope_scaling.factor == 4


# --- what is refused ------------------------------------------------------------------------------------------

UNKNOWN = {
    "optimiser.learning_rate=1": ("optimiser.learning_rate", "optimizer.learning_rate"),
    "mesh.tensr=2": ("mesh.tensr", "mesh.tensor"),
    "data.sequence_length=3": ("data.sequence_length", "data.seq_len"),
    "model.n_layers=3": ("model.n_layers", "model.num_layers"),
    "model.rope_scaling={factr: 3}": ("model.rope_scaling.factr", "model.rope_scaling.factor"),
    "sharding.parametrs={}": ("sharding.parametrs", "sharding.parameters"),
    "step.microbatch=2": ("step.microbatch", "step.microbatches"),
    "optimizer.lr=1": ("optimizer.lr", "optimizer.learning_rate"),
    "lr=1": ("lr", "optimizer.learning_rate"),
    "learning_rate=1": ("learning_rate", "optimizer.learning_rate or outer.learning_rate"),
    "leraning_rate=1": ("leraning_rate", "optimizer.learning_rate or outer.learning_rate"),
    "model.learning_rate=1": ("model.learning_rate", "optimizer.learning_rate or outer.learning_rate"),
    "train.lr=1": ("train.lr", "optimizer.learning_rate"),
    "batch=2": ("batch", "data.batch_size"),
    "batch_size=2": ("batch_size", "data.batch_size"),
    "bs=2": ("bs", "data.batch_size"),
    "seq_len=2": ("seq_len", "data.seq_len"),
    "wd=0": ("wd", "optimizer.weight_decay"),
    "epochs=2": ("epochs", "steps"),
    "max_steps=2": ("max_steps", "steps"),
    "setps=2": ("setps", "steps"),
    "stesp=2": ("stesp", "steps"),
    "--max-steps=2": ("--max-steps", "steps"),
    "every=2": ("every", "outer.every or checkpoint.every or evaluation.every or metrics.every"),
    "tensor=2": ("tensor", "mesh.tensor"),
    "eval.every=2": ("eval.every", "evaluation.every"),
    "warmup=2": ("warmup", "optimizer.warmup_steps"),
    "dtype=float32": ("dtype", "step.compute_dtype"),
    "n_layer=2": ("n_layer", "model.num_layers"),
    "optimizer.momentum=0.9": ("optimizer.momentum", "outer.momentum"),
}
NOTHING_NEAR = (
    "model.dropout=0.1", "workers=3", "data.num_workers=3", "foo=1", "optimizer.colour=9", "x.y=1", "gpus=8",
    "dropout=8", "tokenizer=byte", "model.foo=1",
    "evaluation.steps=2",
)  # fmt: skip


@pytest.mark.parametrize(("override", "names"), UNKNOWN.items())
def test_unknown_key_names_the_nearest(base, override, names):
    key, near = names
    assert refused(base, override) == f"command line: unknown key {key}; did you mean {near}?"


@pytest.mark.parametrize("override", NOTHING_NEAR)
def test_unknown_key_with_none_near_proposes_nothing(base, override):
    assert refused(base, override) == f"command line: unknown key {override.split('=')[0]}"


def test_every_synonym_names_a_key_that_is_there():
    known = overrides.keys_of(cfg.Config)
    assert not set(overrides.SYNONYMS.values()) - set(known)
    assert not set(overrides.SYNONYMS) & set(known), "a key of that name is found by itself"
    assert not set(filter(None, overrides.SECTIONS.values())) - set(known)


TYPES = {
    "steps=many": ("steps='many'", "integer"),
    "steps=true": ("steps", "true"),
    "steps=2.5": ("steps=2.5", "integer"),
    "steps=": ("override 'steps='", "no value", "null"),
    "steps=1:40": ("steps='1:40'", "integer"),
    "optimizer.learning_rate=yes": ("optimizer.learning_rate='yes'", "number"),
    "optimizer.learning_rate=fast": ("optimizer.learning_rate='fast'", "number"),
    "optimizer.learning_rate=.nan": ("optimizer.learning_rate=nan", "finite"),
    "optimizer.clip_norm=.inf": ("optimizer.clip_norm=inf", "finite"),
    "checkpoint.resume=maybe": ("checkpoint.resume='maybe'", "boolean"),
    "mesh=8": ("mesh=8", "section", "as mesh.replica=VALUE"),
    "optimizer=adamw": ("optimizer is a section; give a value to a key, as optimizer.name=VALUE",),
    "step=4": ("step is a section; give a value to a key, as steps=VALUE",),
    "mesh=null": ("mesh=None", "section"),
    "model=[gpt2-124m]": ("model=['gpt2-124m']", "section"),
    "model={file: 3}": ("no config models/3",),
    "model={file: [3]}": ("model.file=", "not a file"),
    "metrics.mfu=standard": ("metrics.mfu='standard'", "'causal' or 'palm'"),
    "step.compute_dtype=float16": ("step.compute_dtype='float16'", "'bfloat16' or 'float32'"),
    "step.remat=ful": ("step.remat='ful'", "'none', 'full' or 'dots'"),
    "step.remat={q: sav}": ("step.remat.q='sav'", "'save', 'offload' or 'recompute'"),
    "sharding.parameters={embed: {a: 3}}": ("sharding.parameters.embed={'a': 3}", "string"),
}  # fmt: skip


@pytest.mark.parametrize(("override", "words"), TYPES.items())
def test_wrong_type_names_the_value_and_the_rule(base, override, words):
    message = refused(base, override)
    assert all(word in message for word in words), message


OUT_OF_RANGE = (
    "steps=0", "steps=-1", "steps=99999999999", "seed=-1", "seed=99999999999999999999", "out=''", "name=''",
    "data.batch_size=0", "data.batch_size=-8", "data.seq_len=0", "data.prefetch=0", "runtime.simulated_devices=0",
    "model.num_layers=0", "model.norm_eps=0", "model.rope_theta=0", "model.rope_scaling.factor=0", "model.init_std=-1",
    "model.logits_softcap=0", "model.attention_softcap=-3", "model.sliding_window=0", "loss.chunk=0", "loss.z_loss=-1",
    "optimizer.learning_rate=-1", "optimizer.b1=1", "optimizer.b2=-0.1", "optimizer.eps=0", "optimizer.ema=0",
    "optimizer.ema=1", "optimizer.clip_norm=0", "optimizer.final_fraction=1.5", "optimizer.weight_decay=-1",
    "optimizer.warmup_steps=-1", "checkpoint.every=-1", "checkpoint.keep_last=0", "checkpoint.keep_every=0",
    "evaluation.batches=0", "metrics.every=0", "step.microbatches=0",
)  # fmt: skip


@pytest.mark.parametrize("override", OUT_OF_RANGE)
def test_number_out_of_range_names_key_and_value(base, override):
    key, value = override.split("=")
    assert re.search(rf"{re.escape(key)}={re.escape(value)}: \S+ should ", refused(base, override))


RULES = {
    "model.num_heads=3": "embed_dim 32 is not divisible by num_heads 3; give head_dim",
    "model.num_kv_heads=3": "num_heads 2 is not a multiple of num_kv_heads 3",
    "model.head_dim=3": "head_dim 3 is odd; rotary positions turn pairs, so make it even",
    "mesh.tensor=0": "tensor=0 must be a positive size, or -1",
    "mesh.fsdp=-2": "fsdp=-2 must be a positive size, or -1",
    "mesh={fsdp: -1, tensor: -1}": "fsdp and tensor are both -1; only one axis",
    "mesh={data: -1, tensor: -1}": "data and tensor are both -1; only one axis",
    "mesh.replica=-1": "replica=-1: how many replicas there are changes what is learnt; give their number",
    "mesh.replica=2": "mesh.replica: 2 replicas need outer.every, the steps between their outer steps; set e.g. outer",
    "outer.every=2": "outer.every=2 is for replicas, and mesh.replica is 1; set mesh.replica or mesh.dcn.replica, or",
    "mesh.context=0": "context=0 must be a positive size, or -1 for the remaining devices",
    "data.kind=tokens": "data.kind=tokens needs data.path; `jaxscale data prepare",
    "data.kind=llmc": "data.kind=llmc needs data.path",
    "data.path=data/x": "data.path is not read with kind=synthetic",
    "data.validation_path=x": "data.validation_path is only for kind=llmc",
    "step.remat={attention_context: save}": "step.remat.attention_context is called step.remat.attended now",
    "step.remat={qq: save}": "step.remat.qq: no such activation; did you mean q?",
    "step.microbatches=3": "data.batch_size 8 is not divisible by step.microbatches 3; try [1, 2, 4, 8]",
    "loss.chunk=5": "data.seq_len 32 is not divisible by loss.chunk 5; try 4",
    "model={file: gpt2-124m, max_seq_len: 16}": "data.seq_len 32 is beyond the 16 learned positions",
    "optimizer.decay_steps=5": "decay_steps is only for schedule=wsd",
    "model=nope": "no config models/nope; shipped ones: deepseek-v3, gemma-2-9b, gemma-3-1b, ",
}


@pytest.mark.parametrize(("override", "message"), RULES.items())
def test_broken_rule_says_value_rule_and_fix(base, override, message):
    assert message in refused(base, override)


FILES = {
    "": "holds NoneType, not `key: value` lines",
    "# only a comment": "holds NoneType",
    "[1, 2]": "holds list",
    "just text": "holds str",
    "name: a\n\tsteps: 3": "cannot read",
    "a: [": "cannot read",
    "name: a\nname: b\n": "the key name stands twice",
    "model:\n  num_layers: 2\n  num_layers: 3\n": "the key num_layers stands twice",
    "{}": "name is missing; add it; steps is missing; add it; model is missing; add it; data is missing; add it",
    "1: 2": "unknown key 1",
    "name: t\nsteps: 1\nmodel:\ndata:\n": "model=None: a section",
}


@pytest.mark.parametrize(("text", "message"), FILES.items())
def test_file_that_is_no_run(tmp_path, text, message):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    answer = refused(path)
    assert message in answer
    assert str(path) in answer


def test_file_that_is_not_text(tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    assert f"cannot read {path}" in refused(path)


def test_config_that_does_not_exist(tmp_path):
    assert "did you mean quickstart?; shipped ones: deepseek-v3, gemma-2-9b, gemma-3-1b" in refused("qucikstart")
    assert f"no config {tmp_path / 'none.yaml'}" in refused(tmp_path / "none.yaml")
    assert "is no run's directory, as it has no config.yaml; give a YAML file" in refused(tmp_path)
    assert "no config aaaa" in refused("a" * 5000)


@pytest.mark.parametrize("by", ["directory", "file"])
@pytest.mark.parametrize("below", [None, "kept", "../elsewhere", "s3://bucket/prefix"])
def test_a_runs_config_is_where_its_directory_is_now(tmp_path, by, below):
    old, new = tmp_path / "old", tmp_path / "new"
    new.mkdir()
    directory = below if below is None or "://" in below else str((old / below).resolve())
    values = BASE | {"out": str(old), "checkpoint": {"directory": directory, "every": 7}}
    (new / "config.yaml").write_text(yaml.safe_dump(values))
    given = new if by == "directory" else new / "config.yaml"
    if by == "file":  # a file of that name alone is nobody's run
        assert load_config(given).out == str(old)
        (new / "environment.json").write_text("{}")
    loaded = load_config(given, ["steps=9"])
    assert (loaded.out, loaded.steps, loaded.checkpoint.every) == (str(new), 9, 7)
    assert loaded.checkpoint.directory == (str(new / "kept") if below == "kept" else directory)
    assert load_config(given, ["out=there"]).out == "there"


# --- meshes on devices ----------------------------------------------------------------------------------------


def test_mesh_sizes_resolve():
    assert cfg.Mesh().sizes(8) == {"data": 8}
    assert cfg.Mesh(data=2, tensor=-1).sizes(8) == {"data": 2, "tensor": 4}
    assert cfg.Mesh(fsdp=-1).sizes(8) == {"fsdp": 8}, "the default of data gives way"
    assert list(cfg.Mesh(tensor=2, fsdp=2, data=2).sizes(8)) == ["data", "fsdp", "tensor"], "slowest link first"
    assert cfg.Mesh(data=1).sizes(1) == {"data": 1}, "never a mesh without axes"
    assert cfg.Mesh(data=-1, fsdp=4).sizes(None) == {"fsdp": 4}


@pytest.mark.parametrize(
    ("mesh", "devices", "message"),
    [
        ({"data": 2, "fsdp": 2}, 8, "mesh data=2, fsdp=2 needs 4 devices and there are 8; set an axis to -1"),
        ({"data": 4, "tensor": 4}, 8, "needs 16 devices and there are 8"),
        ({"data": 1}, 8, "mesh of one device needs 1 devices and there are 8"),
        ({"fsdp": 3}, 8, "mesh data=-1, fsdp=3: 3 does not divide 8 devices; make the product"),
    ],
)
def test_mesh_that_does_not_fit(mesh, devices, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cfg.Mesh(**mesh).sizes(devices)


# --- values that are filled in --------------------------------------------------------------------------------


def test_defaults_are_resolved(base):
    config = load_config(base)
    assert config.out == "runs/t"
    assert (config.model.num_kv_heads, config.model.head_dim, config.model.padded_vocab_size) == (2, 16, 384)


def test_home_is_expanded(base, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = load_config(base, ["out=~/runs/a", "data.kind=tokens", "data.path=~/data/a"])
    assert (config.out, config.data.path) == ("/home/someone/runs/a", "/home/someone/data/a")


def test_config_is_frozen(base):
    with pytest.raises(ValueError, match="frozen"):
        load_config(base).steps = 3


@pytest.mark.parametrize("name", ["a/../../b", "..", "/tmp/b"])
def test_a_name_stays_in_the_directory_of_runs(name):
    assert f"name={name} leads out of runs/; give a plain name" in refused("quickstart", f"name={name}")
    assert load_config("quickstart", [f"name={name}", "out=here"]).out == "here"
    assert load_config("quickstart", ["name=a/b"]).out == "runs/a/b"


def test_a_mesh_in_words_is_read_back():
    sizes = {"data": 2, "fsdp": 4, "tensor": 1}
    assert mesh_text(sizes) == "data=2, fsdp=4, tensor=1"
    assert mesh_text(sizes, {"data": 2}) == "data=2 (2 over slices), fsdp=4, tensor=1"
    assert split_axes(sizes) == {"data": 2, "fsdp": 4}
    assert read_mesh(mesh_text(sizes), cfg.AXES) == sizes
    assert read_mesh("data=-1,fsdp=2", cfg.AXES, rest=True) == {"data": -1, "fsdp": 2}
    for text, says in (("data=-1", "is not axis=size"), ("data=2,data=2", "twice 'data'"), ("x=2", "no axis 'x'")):
        with pytest.raises(ValueError, match=says):
            read_mesh(text, cfg.AXES)


def test_a_mesh_over_slices_alone_is_said_without_a_stray_comma():
    with pytest.raises(ValueError, match=r"^mesh dcn\.data=2 needs 2 devices and there are 3"):
        cfg.Mesh(data=1, dcn=cfg.Dcn(data=2)).sizes(3)
