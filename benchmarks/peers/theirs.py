"""The other side: the same model in Hugging Face `transformers` on torch, from the same parameters, on the same rows.

Its best attention (`sdpa`: flash attention on a GPU), fused AdamW, no recompute; threads as torch chooses them.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from benchmarks.common import serve, time_steps
from benchmarks.peers.shapes import run_config
from jaxscale import config as cfg
from jaxscale.data.order import row_indices
from jaxscale.data.rows import Synthetic, load_rows

Arrays = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("family")
    parser.add_argument("device")
    parser.add_argument("initial", type=Path)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    config, device = run_config(arguments.family, arguments.device), arguments.device
    module, weights = FAMILIES[arguments.family](config.model, Initial(arguments.initial))
    missing = module.load_state_dict({k: torch.tensor(v) for k, v in weights.items()}, strict=False).missing_keys
    if set(missing) - {"lm_head.weight"}:  # gpt2's is the embedding
        raise SystemExit(f"parameters without a value: {missing}")
    module = module.train().to(device)
    adam = config.optimizer
    optimizer = torch.optim.AdamW(
        module.parameters(), adam.learning_rate, betas=(adam.b1, adam.b2), eps=adam.eps, weight_decay=adam.weight_decay,
        fused=True,
    )  # fmt: skip
    call = torch.compile(module) if arguments.compile else module
    source, done = Synthetic(config.model.vocab_size, config.data.seq_len, seed=config.seed), 0

    def one() -> float:
        nonlocal done
        rows = load_rows(source, row_indices(config.seed, done, config.data.batch_size, len(source)))
        tokens, targets = (torch.from_numpy(rows[name]).long().to(device) for name in ("tokens", "targets"))
        done += 1
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=config.step.compute_dtype == "bfloat16"):
            logits = call(input_ids=tokens).logits
        loss = torch.nn.functional.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), targets.reshape(-1))
        loss.backward()
        optimizer.step()
        return loss.item()

    about = {
        "threads": torch.get_num_threads(), "optimizer": "AdamW, fused", "attention": "sdpa",
        "mode": "compiled" if arguments.compile else "eager",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }  # fmt: skip
    serve(about, steps=lambda count: time_steps(one, count), matmul=matmul)


def matmul() -> float:
    """Best float32 FLOP/s of this torch on the CPU: what its BLAS reaches on this machine."""
    best = 0.0
    for n in (1024, 2048):
        a, b = torch.randn(n, n), torch.randn(n, n)
        for _ in range(5):
            start = time.perf_counter()
            a @ b
            best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


class Initial:
    """jaxscale's parameters by path, e.g. `initial(3, "attention", "q")` for one of layer 3."""

    def __init__(self, path: Path):
        self.arrays = dict(np.load(path))

    def __call__(self, *path: str | int) -> np.ndarray:
        names = [p for p in path if isinstance(p, str)]
        layer = [p for p in path if isinstance(p, int)]
        key = "".join(f"['{name}']" for name in (["layers"] if layer else []) + names)
        return self.arrays[key][layer[0]] if layer else self.arrays[key]


def llama(model: cfg.Model, initial: Initial) -> tuple[torch.nn.Module, Arrays]:
    module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size, hidden_size=model.embed_dim, intermediate_size=model.mlp_dim,
            num_hidden_layers=model.num_layers, num_attention_heads=model.num_heads,
            num_key_value_heads=model.kv_heads, head_dim=model.head_size, max_position_embeddings=model.max_seq_len,
            rms_norm_eps=model.norm_eps, rope_theta=model.rope_theta, tie_word_embeddings=False, use_cache=False,
            attn_implementation="sdpa",
        )
    )  # fmt: skip
    D = model.embed_dim
    out = {
        "model.embed_tokens.weight": initial("embedding")[: model.vocab_size],
        "model.norm.weight": initial("final_norm", "scale"),
        "lm_head.weight": initial("unembedding").T[: model.vocab_size],
    }
    for i in range(model.num_layers):
        to = f"model.layers.{i}."
        for name in "qkv":
            out[f"{to}self_attn.{name}_proj.weight"] = initial(i, "attention", name).reshape(D, -1).T
        out[f"{to}self_attn.o_proj.weight"] = initial(i, "attention", "out").reshape(-1, D).T
        for name in ("gate", "up", "down"):
            out[f"{to}mlp.{name}_proj.weight"] = initial(i, "mlp", name).T
        out[f"{to}input_layernorm.weight"] = initial(i, "attention_norm", "scale")
        out[f"{to}post_attention_layernorm.weight"] = initial(i, "mlp_norm", "scale")
    return module, out


def gpt2(model: cfg.Model, initial: Initial) -> tuple[torch.nn.Module, Arrays]:
    module = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=model.vocab_size, n_positions=model.max_seq_len, n_embd=model.embed_dim,
            n_layer=model.num_layers, n_head=model.num_heads, n_inner=model.mlp_dim, activation_function="gelu_new",
            layer_norm_epsilon=model.norm_eps, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            bos_token_id=None, eos_token_id=None, attn_implementation="sdpa",
        )
    )  # fmt: skip
    D = model.embed_dim
    out = {
        "transformer.wte.weight": initial("embedding")[: model.vocab_size],
        "transformer.wpe.weight": initial("position_embedding"),
        "transformer.ln_f.weight": initial("final_norm", "scale"),
        "transformer.ln_f.bias": initial("final_norm", "bias"),
    }
    for i in range(model.num_layers):  # matrices as [in, out], as here
        to = f"transformer.h.{i}."
        qkv = [initial(i, "attention", name).reshape(D, -1) for name in "qkv"]
        out[f"{to}attn.c_attn.weight"] = np.concatenate(qkv, axis=1)
        biases = [initial(i, "attention", f"{name}_bias").reshape(-1) for name in "qkv"]
        out[f"{to}attn.c_attn.bias"] = np.concatenate(biases)
        out[f"{to}attn.c_proj.weight"] = initial(i, "attention", "out").reshape(-1, D)
        out[f"{to}attn.c_proj.bias"] = initial(i, "attention", "out_bias")
        for theirs, ours in (("c_fc", "up"), ("c_proj", "down")):
            out[f"{to}mlp.{theirs}.weight"] = initial(i, "mlp", ours)
            out[f"{to}mlp.{theirs}.bias"] = initial(i, "mlp", f"{ours}_bias")
        for theirs, ours in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm")):
            out[f"{to}{theirs}.weight"] = initial(i, ours, "scale")
            out[f"{to}{theirs}.bias"] = initial(i, ours, "bias")
    return module, out


FAMILIES = {"llama": llama, "gpt2": gpt2}

if __name__ == "__main__":
    main()
