"""LoRA's matrices out and in: merged exports and PEFT's adapters against transformers, and what is refused."""

import json

import jax
import numpy as np
import pytest

from jaxscale import config as cfg
from jaxscale.cli.app import app
from jaxscale.interop.tensors import places, tensors
from jaxscale.training.build import build
from jaxscale.training.initial import initial_state
from jaxscale.training.step import all_parameters
from jaxscale.training.trainer import train

torch = pytest.importorskip("torch", reason="torch has a CPU build for Python 3.11 only; CI runs this there")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
pytestmark = [pytest.mark.filterwarnings("ignore")]

V, T = 91, 24
SIZES = {
    "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 10, "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, V, (8, T))
ON = "q,k,v,out,gate,up,down"
LORA = [f"model.lora.on=[{ON}]", "model.lora.rank=4", "model.lora.alpha=6"]
FAST = ["step.compute_dtype=float32", "data.seq_len=24", "data.batch_size=8", "optimizer.learning_rate=0.02",
        "optimizer.schedule=constant", "metrics.tensorboard=false", "mesh.data=1",
        "runtime.simulated_devices=1"]  # fmt: skip


def run(words):
    app([str(word) for word in words], standalone_mode=False)


def logits_of(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def loaded(directory):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SIZES))
    out = tmp_path_factory.mktemp("published") / "llama"
    model.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A run of LoRA on the base, with its exports: merged and as an adapter."""
    place = tmp_path_factory.mktemp("lora")
    train(cfg.load_config(f"hf:{base}", [*LORA, *FAST, "steps=6", f"out={place / 'run'}"]))
    run(["export", place / "run", place / "merged", "--dtype", "float32"])
    run(["export", place / "run", place / "adapter", "--adapter"])
    return place


def config_of(base, *overrides):
    return cfg.load_config(f"hf:{base}", [*FAST, *overrides])


def our_logits(config):
    setup = build(config, jax.devices()[:1])
    with setup.context():
        state = initial_state(config, setup.program, print)
        model = setup.program.merge(all_parameters(state, state.params))
        return np.asarray(jax.jit(model)(TOKENS.astype(np.int32)))[:, :, :V]


def test_the_merged_export_is_what_was_trained(base, trained):
    """transformers' logits of it are those of the run, read again with its own matrices beside the base."""
    wanted = our_logits(config_of(base, *LORA, f"init.from={trained / 'run'}"))
    merged = logits_of(loaded(trained / "merged"))
    assert np.abs(merged - logits_of(loaded(base))).max() > 0.1
    np.testing.assert_allclose(merged, wanted, atol=2e-5)
    assert set(tensors(trained / "merged")) == set(tensors(base))


def test_an_adapter_read_by_us_is_what_was_trained(base, trained):
    found = our_logits(config_of(base, *LORA, f"init.adapter={trained / 'adapter'}"))
    np.testing.assert_allclose(found, logits_of(loaded(trained / "merged")), atol=2e-5)


def test_an_adapter_in_peft_s_format_is_what_was_trained(base, trained):
    """By PEFT's definition: W + lora_alpha / r B A for each module that the names of the tensors name."""
    about = json.loads((trained / "adapter" / "adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"], about["base_model_name_or_path"]) == (4, 6.0, str(base))
    assert about["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    found = {name: place.read() for name, place in places(trained / "adapter" / "adapter_model.safetensors").items()}
    model = loaded(base)
    for name in [n for n in found if n.endswith("lora_A.weight")]:
        module = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
        b = found[name.replace("lora_A", "lora_B")]
        with torch.no_grad():
            module.weight += torch.tensor(about["lora_alpha"] / about["r"] * (b @ found[name]))
    assert len(found) == 2 * 3 * 7
    np.testing.assert_allclose(logits_of(model), logits_of(loaded(trained / "merged")), atol=2e-5)


def test_peft_reads_what_we_write_and_we_read_what_it_writes(base, trained, tmp_path):
    peft = pytest.importorskip("peft")
    model = peft.PeftModel.from_pretrained(loaded(base), trained / "adapter")
    wanted = logits_of(loaded(trained / "merged"))
    np.testing.assert_allclose(logits_of(model), wanted, atol=2e-5)
    model.save_pretrained(tmp_path / "again")
    found = our_logits(config_of(base, *LORA, f"init.adapter={tmp_path / 'again'}"))
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_lora_goes_on_bit_by_bit_after_a_restart(base, trained, tmp_path):
    config = config_of(base, *LORA, "steps=6", "checkpoint.every=3", f"out={tmp_path / 'run'}")
    train(config.model_copy(update={"steps": 3}))
    train(config)
    run(["export", tmp_path / "run", tmp_path / "merged", "--dtype", "float32"])
    after, wanted = tensors(tmp_path / "merged"), tensors(trained / "merged")
    assert {n: p.read().tobytes() for n, p in after.items()} == {n: p.read().tobytes() for n, p in wanted.items()}


def test_a_run_of_the_base_is_a_beginning_too(base, tmp_path):
    run(["import", base, "--out", tmp_path / "run"])
    found = our_logits(config_of(base, *LORA, f"init.from={tmp_path / 'run'}"))
    np.testing.assert_allclose(found, logits_of(loaded(base)), atol=2e-5)


# --- what is refused ------------------------------------------------------------------------------------------


def changed(directory, tmp_path, **values):
    out = tmp_path / "changed"
    out.mkdir()
    about = json.loads((directory / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(about | values))
    (out / "adapter_model.safetensors").write_bytes((directory / "adapter_model.safetensors").read_bytes())
    return out


WRONG = [
    ({"r": 8}, [], "r=8, and model.lora.rank is 4; set it alike"),
    ({"lora_alpha": 4}, [], "lora_alpha=4, and model.lora.alpha is 6; set it alike"),
    ({"use_rslora": True}, [], "use_rslora=True changes the model"),
    ({"use_dora": True}, [], "use_dora=True changes the model"),
    ({"rank_pattern": {"q_proj": 8}}, [], "rank_pattern={'q_proj': 8} changes the model"),
    ({"bias": "all"}, [], "bias=all changes the model"),
    ({"peft_type": "IA3"}, [], "peft_type=IA3 changes the model"),
    ({"target_modules": ["q_proj"]}, [], "target_modules=['q_proj'], and model.lora.on is [q, k, v"),
    ({"target_modules": "all-linear"}, ["model.lora.on=[q]"], "which model.lora.on has not (36 such tensors)"),
    ({}, ["model.lora.rank=2", "model.lora.alpha=6"], "r=4, and model.lora.rank is 2"),
]


@pytest.mark.parametrize(("values", "overrides", "says"), WRONG, ids=[says for _, _, says in WRONG])
def test_an_adapter_that_means_something_else_is_refused(base, trained, tmp_path, values, overrides, says):
    directory = changed(trained / "adapter", tmp_path, **values)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        our_logits(config_of(base, *LORA, *overrides, f"init.adapter={directory}"))
    assert says in str(error.value)


def test_a_run_with_lora_is_no_beginning_of_one_without(base, trained):
    with pytest.raises(ValueError, match="is another model"):
        our_logits(config_of(base, f"init.from={trained / 'run'}"))


def test_a_run_without_lora_has_no_adapter(base, tmp_path):
    run(["import", base, "--out", tmp_path / "run"])
    with pytest.raises(ValueError, match=r"the run has no model.lora; leave --adapter out"):
        app(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--adapter"], standalone_mode=False)
    assert not (tmp_path / "out").exists()
