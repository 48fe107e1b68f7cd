"""Published models in and out, against transformers: logits, files, config.json, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
from support import Setup, published_names

from jaxscale import config as cfg
from jaxscale.cli.app import app
from jaxscale.config.families import FAMILIES
from jaxscale.config.published import as_theirs
from jaxscale.data.tokenizer import character_tokenizer, load_tokenizer
from jaxscale.interop.tensors import tensors
from jaxscale.interop.weights import Files
from jaxscale.parallel.sharding import on_mesh
from jaxscale.serving.evaluate import evaluate_places
from jaxscale.serving.export import export
from jaxscale.training import initial
from jaxscale.training.build import build
from jaxscale.training.frozen import whole
from jaxscale.training.initial import initial_state
from jaxscale.training.step import all_parameters, gradients

torch = pytest.importorskip("torch", reason="torch has a CPU build for Python 3.11 only; CI runs this there")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
pytestmark = [pytest.mark.filterwarnings("ignore")]

V, D, N, K, H, F, T = 91, 32, 4, 2, 10, 48, 24  # an odd vocabulary, N H != D
COMMON = {
    "vocab_size": V, "hidden_size": D, "num_hidden_layers": 3, "num_attention_heads": N, "num_key_value_heads": K,
    "head_dim": H, "intermediate_size": F, "max_position_embeddings": 64, "pad_token_id": None,
}  # fmt: skip
WITHOUT_HEAD_DIM = {k: v for k, v in COMMON.items() if k != "head_dim"}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
DEEPSEEK = {
    **{k: v for k, v in COMMON.items() if k not in ("head_dim", "num_key_value_heads", "num_hidden_layers")},
    "num_key_value_heads": N, "kv_lora_rank": 16, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 8,
    "first_k_dense_replace": 1, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
    "moe_intermediate_size": 24, "n_shared_experts": 2, "num_mtp_layers": 0,
}  # fmt: skip
DEEPSEEK_ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 8.0, "beta_slow": 1.0,
                 "mscale": 1.0, "mscale_all_dim": 0.707, "original_max_position_embeddings": 16}  # fmt: skip
QWEN_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True,
}  # fmt: skip
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**COMMON, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True),
    "llama tied": lambda: transformers.LlamaConfig(**COMMON, tie_word_embeddings=True),
    "mistral": lambda: transformers.MistralConfig(**COMMON, sliding_window=9),
    "qwen3": lambda: transformers.Qwen3Config(**COMMON),
    "mixtral": lambda: transformers.MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**COMMON, **QWEN_EXPERTS),
    "qwen3_moe every second": lambda: transformers.Qwen3MoeConfig(
        **COMMON | {"num_hidden_layers": 5}, **QWEN_EXPERTS, decoder_sparse_step=2
    ),
    "qwen3_moe first windows": lambda: transformers.Qwen3MoeConfig(
        **COMMON | {"num_hidden_layers": 4},
        **QWEN_EXPERTS,
        mlp_only_layers=[0, 1],
        use_sliding_window=True,
        sliding_window=7,
        max_window_layers=1,
    ),
    "qwen2": lambda: transformers.Qwen2Config(**WITHOUT_HEAD_DIM),
    "qwen2 windows": lambda: transformers.Qwen2Config(
        **WITHOUT_HEAD_DIM, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "gemma2": lambda: transformers.Gemma2Config(**COMMON, sliding_window=7, query_pre_attn_scalar=24),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **COMMON | {"num_hidden_layers": 5},
        sliding_window=7,
        sliding_window_pattern=3,
        query_pre_attn_scalar=24,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
    ),
    "olmo2": lambda: transformers.Olmo2Config(**WITHOUT_HEAD_DIM),
    "smollm3": lambda: transformers.SmolLM3Config(**WITHOUT_HEAD_DIM | {"num_hidden_layers": 5}),
    "granite": lambda: transformers.GraniteConfig(
        **WITHOUT_HEAD_DIM,
        embedding_multiplier=6.0,
        attention_multiplier=0.2,
        residual_multiplier=0.3,
        logits_scaling=4.0,
        attention_bias=True,
    ),
    "phi3": lambda: transformers.Phi3Config(**WITHOUT_HEAD_DIM, sliding_window=9),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **COMMON,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=7,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "beta_fast": 8.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 16,
        },
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **DEEPSEEK, q_lora_rank=12, num_hidden_layers=4, rope_parameters=DEEPSEEK_ROPE
    ),
    "deepseek_v3 halves": lambda: transformers.DeepseekV3Config(
        **DEEPSEEK, q_lora_rank=None, num_hidden_layers=3, rope_interleave=False
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=V, n_positions=T, n_embd=D, n_layer=3, n_head=N, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """name -> a directory as `save_pretrained` writes it, with random norms and biases, and its logits."""
    kept = {}

    def get(name):
        if name not in kept:
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(MODELS[name](), attn_implementation="eager").eval()
            with torch.no_grad():
                biases = [b for n, b in model.named_buffers() if "correction_bias" in n]
                for p in (*model.parameters(), *biases):
                    p.add_(0.1 * torch.randn_like(p))
                out = tmp_path_factory.mktemp("published") / name.replace(" ", "-")
                model.save_pretrained(out)
                kept[name] = out, model(torch.tensor(TOKENS)).logits.numpy()
        return kept[name]

    return get


SPARSE = ("mixtral", *(name for name in MODELS if name.startswith("qwen3_moe")))
EXPERTS = (*SPARSE, "gpt_oss", "deepseek_v3", "deepseek_v3 halves")
TOKENS = np.random.default_rng(0).integers(0, V, (8, T))


def overrides(**mesh):
    sizes = [f"mesh.{a}={n}" for a, n in mesh.items()]
    return ["step.compute_dtype=float32", "data.seq_len=24", "data.batch_size=8", f"steps={STEPS}", *sizes]


def config_of(directory, **mesh):
    return cfg.load_config(f"hf:{directory}", overrides(**mesh))


def logits(config):
    setup = build(config, jax.devices()[: int(np.prod(list(config.mesh.sizes(None).values())))])
    with setup.context():
        state = initial_state(config, setup.program, print)
        model = setup.program.merge(all_parameters(state, state.params))
        return np.asarray(jax.jit(model)(TOKENS.astype(np.int32)))[:, :, :V]


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(published, name):
    directory, wanted = published(name)
    np.testing.assert_allclose(logits(config_of(directory, data=1)), wanted, atol=2e-5)


@pytest.mark.parametrize("name", [n for n in MODELS if n not in ("llama tied", "qwen2 windows")])
def test_logits_on_a_mesh(published, name):
    directory, wanted = published(name)
    third = {"expert": 2} if name in EXPERTS else {"data": 2}
    np.testing.assert_allclose(logits(config_of(directory, fsdp=2, tensor=2, **third)), wanted, atol=2e-5)


# --- training -------------------------------------------------------------------------------------------------

STEPS, RATE = 20, 1e-3


MATRICES = {"mixtral": (("w1", "w3"), "w2")}  # of an expert in the files; others say gate_proj, up_proj, down_proj


def as_in_files(name, value, family):
    """Experts of a layer are one array there. The files have each by itself, except those of gpt-oss."""
    if family == "mixtral":
        name = name.replace(".mlp.", ".block_sparse_moe.")
    above, _, matrix = name.partition(".experts.")
    if family == "gpt_oss" or not matrix:
        return [(name, value)]
    wide, narrow = MATRICES.get(family, (("gate_proj", "up_proj"), "down_proj"))
    parts = wide if matrix == "gate_up_proj" else (narrow,)
    return [
        (f"{above}.experts.{expert}.{part}.weight", half)
        for expert, of in enumerate(value)
        for part, half in zip(parts, np.split(of, len(parts)), strict=True)
    ]


def their_steps(directory):
    """Gradients by name, and the losses of some steps of AdamW without decay."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    tokens, losses, grads = torch.tensor(TOKENS), [], {}
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(tokens).logits.reshape(-1, V), tokens.roll(-1, 1).reshape(-1))
        loss.backward()
        grads = grads or {
            k: v
            for n, p in model.named_parameters()
            for k, v in as_in_files(n, p.grad.numpy().copy(), model.config.model_type)
        }
        optimizer.step()
        losses.append(loss.item())
    return grads, losses


@pytest.mark.parametrize("name", [n for n in MODELS if n != "llama tied"])
def test_gradients_and_steps_are_those_of_transformers(published, name):
    directory, _ = published(name)
    adamw = [f"optimizer.learning_rate={RATE}", "optimizer.b2=0.95", "optimizer.weight_decay=0",
             "optimizer.warmup_steps=0", "optimizer.schedule=constant", "optimizer.clip_norm=null",
             "loss.bias_rate=0"]  # fmt: skip
    config = cfg.load_config(f"hf:{directory}", [*overrides(data=1), *adamw])
    setup = Setup(config, batch={"tokens": TOKENS.astype(np.int32), "targets": np.roll(TOKENS, -1, 1).astype(np.int32),
                                 "weights": np.ones(TOKENS.shape, np.float32)})  # fmt: skip
    with setup.context():
        state = initial_state(config, setup.program, print)
        merge = lambda p: setup.program.merge(all_parameters(state, p))  # noqa: E731
        grads = jax.jit(lambda p, b: gradients(config, merge, p, b, jax.random.key(0))[0])(state.params, setup.batch)
        grads, losses = published_names(jax.device_get(whole(grads, state.router_bias)), config), []
        for _ in range(STEPS):
            state, metrics = setup.program.step(state, setup.batch)
            losses.append(float(metrics["loss"]))
    wanted, their_losses = their_steps(directory)
    largest = max(np.abs(w).max() for w in wanted.values())
    for key, own in ((key, own) for key, own in grads.items() if "correction_bias" not in key):
        error = np.abs(own - wanted[key]).max() / max(np.abs(wanted[key]).max(), largest / 100)
        assert error < 2e-5, f"gradient of {key} differs by {error:.1e}"
    np.testing.assert_allclose(losses, their_losses, rtol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_run_is_exported_as_it_came(published, name, tmp_path):
    """Imported by the verb, exported by the verb: the same tensors bit by bit, and transformers loads them."""
    directory, wanted = published(name)
    run(["import", str(directory), "--out", str(tmp_path / "run")])
    run(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--dtype", "float32", "--max-shard", "20KB"])
    before, after = tensors(directory), tensors(tmp_path / "out")
    assert set(after) == set(before) - ({"lm_head.weight"} if "tied" in name or name == "gpt2" else set())
    for key, place in after.items():
        np.testing.assert_array_equal(place.read(), before[key].read(), err_msg=key)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        np.testing.assert_allclose(model.eval()(torch.tensor(TOKENS)).logits.numpy(), wanted, atol=1e-5)


def written(model) -> dict:
    return as_theirs(model, dtype="float32", separator=None)


def test_an_export_has_what_llama_cpp_s_converter_reads(published, tmp_path):
    """SentencePiece's file where the model has one, GPT-2's older name of a length, no window where no key is known."""
    directory, run_of_it = tmp_path / "llama", tmp_path / "again"
    shutil.copytree(published("llama")[0], directory)
    character_tokenizer("abcdefgh \n").save(directory)
    (directory / "tokenizer.model").write_bytes(b"pieces")
    run(["import", str(directory), "--out", str(run_of_it)])
    run(["export", str(run_of_it), str(tmp_path / "out")])
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"pieces"
    theirs = {name: written(config_of(published(name)[0]).model) for name in ("olmo2", "gpt2", "mistral")}
    assert "sliding_window" not in theirs["olmo2"]
    assert theirs["gpt2"]["n_ctx"] == theirs["gpt2"]["n_positions"]
    assert theirs["mistral"]["sliding_window"] == 9


def test_a_mistral_without_the_key_has_the_window_of_transformers(published, tmp_path):
    """4096; one that has none is written as a Llama."""
    shutil.copytree(published("mistral")[0], tmp_path / "mistral")
    path = tmp_path / "mistral" / "config.json"
    values = json.loads(path.read_text())
    for given, window in (({}, 4096), ({"sliding_window": None}, None)):
        path.write_text(json.dumps({k: v for k, v in values.items() if k != "sliding_window"} | given))
        model = config_of(tmp_path / "mistral").model
        assert model.sliding_window == window == transformers.MistralConfig(**given).sliding_window
        assert written(model).get("sliding_window") == window
        assert written(model)["model_type"] == ("mistral" if window else "llama")


@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
@pytest.mark.parametrize("mesh", [{"data": 1}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_large_block_is_read_layer_by_layer(published, monkeypatch, name, mesh):
    """The same bits, in the same layout; of a source no more than a layer is asked for at one time."""
    config = config_of(published(name)[0], **mesh)
    setup = build(config, jax.devices()[: int(np.prod(list(mesh.values())))])
    asked = []
    with setup.context():
        whole_blocks = initial_state(config, setup.program, print)
        monkeypatch.setattr(initial, "LARGE", 0)
        block = Files.block
        monkeypatch.setattr(Files, "block", lambda self, *a: asked.append(block(self, *a)) or asked[-1])
        slices = initial_state(config, setup.program, print)
    for a, b in zip(jax.tree.leaves(whole_blocks), jax.tree.leaves(slices), strict=True):
        assert a.sharding == b.sharding
        if a.dtype != jax.random.key(0).dtype:
            np.testing.assert_array_equal(a, b)
    assert {len(x) for x in asked if x.ndim > 2} == {1}


def run(words):
    app(words, standalone_mode=False)


def test_a_run_goes_on_from_another_run(published, tmp_path):
    directory, wanted = published("llama")
    run(["import", str(directory), "--out", str(tmp_path / "run")])
    config = config_of(directory, data=1)
    config = cfg.validate(config.model_dump(mode="json") | {"init": {"from": str(tmp_path / "run")}}, source="test")
    np.testing.assert_allclose(logits(config), wanted, atol=2e-5)


def test_a_published_model_is_evaluated_as_transformers_does(published, tmp_path):
    """Text as bytes of a small tokenizer: the mean loss of its tokens, and bits per byte."""
    directory = tmp_path / "llama"
    shutil.copytree(published("llama")[0], directory)
    character_tokenizer("abcdefgh \n").save(directory)
    text = "a bad cab\nfed a hag\n" * 5
    (tmp_path / "text.txt").write_text(text)
    overrides = ["mesh={data: 1}", "runtime.simulated_devices=1", "step.compute_dtype=float32", "data.seq_len=24"]
    found = evaluate_places(f"hf:{directory}", [str(tmp_path / "text.txt")], overrides, say=print).total
    codec = load_tokenizer(directory / "tokenizer.json")
    ids = np.array([codec.separator_id, *codec.encode(text)])
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    nats = 0.0
    for start in range(0, len(ids) - 1, 24):
        row = torch.tensor(ids[start : start + 25])
        with torch.no_grad():
            log_p = model(row[None, :-1]).logits[0].double().log_softmax(-1)
        nats -= float(log_p.gather(1, row[1:, None]).sum())
    assert found.tokens == found.bytes == len(text)
    assert found.loss == pytest.approx(nats / len(text), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / len(text) / np.log(2), rel=1e-5)


# --- what is refused ------------------------------------------------------------------------------------------


def changed(directory, tmp_path, **values):
    out = tmp_path / "changed"
    shutil.copytree(directory, out)
    path = out / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return out


WRONG = [
    ({"hidden_act": "gelu"}, "hidden_act=gelu changes the model"),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "of these only llama3"),
    ({"model_type": "bert"}, "model_type bert is not known; there are llama, mistral"),
    ({"embedding_multiplier": 2.0}, "embedding_multiplier=2.0 is not known"),
    ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} changes the model"),
    ({"num_key_value_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
    ({"layer_types": ["linear_attention"] * 3}, "layers of this kind cannot be expressed"),
    ({"num_hidden_layers": 4}, "lacks model.layers.3"),
    ({"num_hidden_layers": 2}, "has model.layers.2"),
    ({"intermediate_size": 64}, "asks for [64"),
]


@pytest.mark.parametrize(("values", "says"), WRONG, ids=[str(v) for v, _ in WRONG])
def test_what_changes_the_model_is_refused_by_its_name(published, tmp_path, values, says):
    directory = changed(published("llama")[0], tmp_path, **values)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        initial_of(directory)
    assert says in str(error.value), error.value


def initial_of(directory):
    config = config_of(directory, data=1)
    setup = build(config, jax.devices()[:1])
    with on_mesh(setup.mesh, setup.rules):
        initial_state(config, setup.program, print)


def test_a_published_model_has_no_steps(published):
    config = config_of(published("llama")[0], data=1)
    values = config.model_dump(mode="json")
    config = cfg.validate(values | {"init": values["init"] | {"step": 3}}, source="test")
    with pytest.raises(ValueError, match=r"init.step=3 is of a run's checkpoints"):
        logits(config)


def test_what_no_family_expresses_is_refused_by_its_name():
    model = cfg.load_config("llama3.2-1b", ["data.kind=synthetic", "data.path=null", "model.logits_softcap=30"]).model
    with pytest.raises(ValueError, match=r"model.logits_softcap=30.0: a config.json of llama"):
        as_theirs(model, dtype="bfloat16", separator=None)


SHIPPED = {
    "llama3.1-8b": "llama", "llama3.2-1b": "llama", "mistral-7b": "mistral", "qwen3-8b": "qwen3",
    "mixtral-8x7b": "mixtral", "qwen3-30b-a3b": "qwen3_moe", "gpt2-124m": "gpt2", "qwen2.5-0.5b": "qwen2",
    "qwen2.5-7b": "qwen2", "gemma-2-9b": "gemma2", "gemma-3-1b": "gemma3_text", "gemma-3-27b": "gemma3_text",
    "olmo-2-7b": "olmo2", "smollm2-135m": "llama", "smollm3-3b": "smollm3", "granite-3.3-8b": "granite",
    "phi-3-mini-4k": "phi3", "gpt-oss-120b": "gpt_oss",
    "deepseek-v3": "deepseek_v3",
}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_have_a_config_json(name):
    model = cfg.Model.model_validate(cfg.read_yaml(cfg.shipped_configs() / "models" / f"{name}.yaml"))
    values = as_theirs(model, dtype="bfloat16", separator=1)
    assert values["model_type"] == SHIPPED[name]
    assert SHIPPED[name] in FAMILIES


def test_an_export_takes_no_directory_that_is_there(tmp_path):
    with pytest.raises(ValueError, match="already exists"):
        export(tmp_path, tmp_path)
