"""One side: TRL's own `training_step` and its AdamW, on the CPU. It needs no jaxscale, and writes the model for both.

Left out is what `train` does around a step (data loader, callbacks, logging), which would only make it slower.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.common import serve, time_steps

TEXT = {"prompt": "a", "completion": "a", "chosen": "a", "rejected": "a"}  # trainers ask for a dataset; it is not read


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("sft", "dpo"))
    parser.add_argument("folder", type=Path, help="holds batches.npz; the model is written into it")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arrays = dict(np.load(arguments.folder / "batches.npz"))
    trainer = TRAINERS[arguments.kind](random_model(arguments.folder / "llama", arrays["sizes"].tolist()), arrays)
    model, optimizer = trainer.model, trainer.create_optimizer()
    trainer.optimizer, trainer.current_gradient_accumulation_steps = optimizer, 1
    batches, done = BATCHES[arguments.kind](trainer, arrays), 0

    def one() -> float:
        nonlocal done
        inputs = {name: value.clone() for name, value in batches[done % len(batches)].items()}
        done += 1
        optimizer.zero_grad(set_to_none=True)
        loss = trainer.training_step(model, inputs, num_items_in_batch=None)
        optimizer.step()
        return loss.item()

    serve(
        {"threads": torch.get_num_threads(), "attention": "sdpa", "optimizer": type(optimizer).__name__},
        steps=lambda count: time_steps(one, count),
    )


def random_model(folder: Path, sizes: list[int]) -> transformers.PreTrainedModel:
    vocab, layers, embed, heads, kv_heads, mlp = sizes
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocab, num_hidden_layers=layers, hidden_size=embed, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=mlp, max_position_embeddings=1024, tie_word_embeddings=False,
        attn_implementation="sdpa", dtype=torch.float32, bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="a"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>")


def arguments_of(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        "output_dir": "/tmp/against-trl", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "report_to": "none", "per_device_train_batch_size": len(arrays["tokens"][0]), "disable_tqdm": True,
        "learning_rate": 1e-4, "weight_decay": 0.0, "max_length": None,
    }  # fmt: skip


def sft(model: Any, arrays: dict[str, np.ndarray]) -> Any:
    data = Dataset.from_list([TEXT]).select_columns(["prompt", "completion"])
    config = SFTConfig(**arguments_of(arrays))
    return SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer())


def dpo(model: Any, arrays: dict[str, np.ndarray]) -> Any:
    """With the reference's log-probabilities from before."""
    data = Dataset.from_list([TEXT]).select_columns(["prompt", "chosen", "rejected"])
    config = DPOConfig(**arguments_of(arrays), precompute_ref_log_probs=True, beta=0.1)
    return DPOTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer())


def sft_batches(trainer: Any, arrays: dict[str, np.ndarray]) -> list[dict[str, torch.Tensor]]:
    prompt = int(arrays["prompt"])
    return [
        trainer.data_collator([{"input_ids": r, "labels": [-100] * prompt + r[prompt:]} for r in batch])
        for batch in arrays["tokens"].tolist()
    ]


def dpo_batches(trainer: Any, arrays: dict[str, np.ndarray]) -> list[dict[str, torch.Tensor]]:
    """A row holds the chosen text and the rejected one, equally long."""
    prompt, found = int(arrays["prompt"]), []
    for batch in arrays["tokens"].tolist():
        halves = [(row[: len(row) // 2], row[len(row) // 2 :]) for row in batch]
        inputs = trainer.data_collator(
            [{"prompt_ids": c[:prompt], "chosen_ids": c[prompt:], "rejected_ids": r[prompt:]} for c, r in halves]
        )
        with torch.no_grad():
            chosen, rejected = trainer.compute_ref_log_probs(trainer.model, dict(inputs))
        found.append(inputs | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected})
    return found


TRAINERS, BATCHES = {"sft": sft, "dpo": dpo}, {"sft": sft_batches, "dpo": dpo_batches}

if __name__ == "__main__":
    main()
