"""Published models in and out, against transformers: logits, files, config.json, and what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from jaxscale import config as cfg
from jaxscale.cli.app import app
from jaxscale.config.published import FAMILIES, as_theirs
from jaxscale.data.tokenizer import character_tokenizer, load_tokenizer
from jaxscale.interop.tensors import tensors
from jaxscale.parallel.sharding import on_mesh
from jaxscale.serving.evaluate import evaluate_places
from jaxscale.serving.export import export
from jaxscale.training.build import build
from jaxscale.training.initial import initial_state

torch = pytest.importorskip("torch", reason="torch has a CPU build for Python 3.11 only; CI runs this there")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
pytestmark = [pytest.mark.filterwarnings("ignore")]

V, D, N, K, H, F, T = 91, 32, 4, 2, 10, 48, 24  # an odd vocabulary, N H != D
COMMON = {
    "vocab_size": V, "hidden_size": D, "num_hidden_layers": 3, "num_attention_heads": N, "num_key_value_heads": K,
    "head_dim": H, "intermediate_size": F, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**COMMON, rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True),
    "llama tied": lambda: transformers.LlamaConfig(**COMMON, tie_word_embeddings=True),
    "mistral": lambda: transformers.MistralConfig(**COMMON, sliding_window=9),
    "qwen3": lambda: transformers.Qwen3Config(**COMMON),
    "mixtral": lambda: transformers.MixtralConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **COMMON, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True
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
                for p in model.parameters():
                    p.add_(0.1 * torch.randn_like(p))
                out = tmp_path_factory.mktemp("published") / name.replace(" ", "-")
                model.save_pretrained(out)
                kept[name] = out, model(torch.tensor(TOKENS)).logits.numpy()
        return kept[name]

    return get


TOKENS = np.random.default_rng(0).integers(0, V, (8, T))


def config_of(directory, **mesh):
    over = [f"mesh.{a}={n}" for a, n in mesh.items()]
    return cfg.load_config(
        f"hf:{directory}",
        ["step.compute_dtype=float32", "data.seq_len=24", "data.batch_size=8", "steps=2", *over],
    )


def logits(config):
    setup = build(config, jax.devices()[: int(np.prod(list(config.mesh.sizes(None).values())))])
    with setup.context():
        state = initial_state(config, setup.program, print)
        model = setup.program.merge(state.params)
        return np.asarray(jax.jit(model)(TOKENS.astype(np.int32)))[:, :, :V]


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(published, name):
    directory, wanted = published(name)
    np.testing.assert_allclose(logits(config_of(directory, data=1)), wanted, atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
def test_logits_on_a_mesh(published, name):
    directory, wanted = published(name)
    third = {"expert": 2} if name == "mixtral" else {"data": 2}
    np.testing.assert_allclose(logits(config_of(directory, fsdp=2, tensor=2, **third)), wanted, atol=2e-5)


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


def run(words):
    app(words, standalone_mode=False)


def test_a_run_goes_on_from_another_run(published, tmp_path):
    directory, wanted = published("llama")
    run(["import", str(directory), "--out", str(tmp_path / "run")])
    config = config_of(directory, data=1)
    config = cfg.validate(config.model_dump(mode="json") | {"init": {"from": str(tmp_path / "run")}}, source="test")
    np.testing.assert_allclose(logits(config), wanted, atol=2e-5)


def test_a_published_model_is_evaluated_as_transformers_does(published, tmp_path):
    """Text as bytes of a small tokenizer: the mean loss of its tokens, and bits a byte."""
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
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "of these only llama3"),
    ({"model_type": "bert"}, "model_type bert is not known; there are llama, mistral"),
    ({"embedding_multiplier": 2.0}, "embedding_multiplier=2.0 is not known"),
    ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} changes the model"),
    ({"num_key_value_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
    ({"layer_types": ["linear_attention"] * 3}, "layers of several kinds"),
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


@pytest.mark.parametrize(
    "name",
    ["llama3.1-8b", "llama3.2-1b", "mistral-7b", "qwen3-8b", "mixtral-8x7b", "qwen3-30b-a3b", "models/gpt2-124m"],
)
def test_shipped_models_have_a_config_json(name):
    model = cfg.load_config(name, [] if "/" in name else ["data.kind=synthetic", "data.path=null"]).model
    values = as_theirs(model, dtype="bfloat16", separator=1)
    assert values["model_type"] in FAMILIES


def test_an_export_takes_no_directory_that_is_there(tmp_path):
    with pytest.raises(ValueError, match="is there already"):
        export(tmp_path, tmp_path)
